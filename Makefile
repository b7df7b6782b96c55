# Every command sets up what it needs in $(VENV) first, and is quick when nothing has changed.

PYTHON ?= python3
VENV ?= .venv
CACHE := .cache
PORT ?= 30000
MODEL ?= $(CACHE)/demo-model
ARGS ?=
PYTEST_ARGS ?=
JOBS ?= 2
MODEL_RESULTS := tests/e2e/models.json
MODEL_TESTS := $(addprefix tests/e2e/test_,$(addsuffix .py,released_models same_answers states latent_rows \
	transformers_backend cross_attention sights whisper))
MUTANTS ?= 200
SEED ?= 0
ARCH ?= 9.0a
KIT ?= $(CACHE)/gpu-kit
KIT_ARGS ?=
OUT ?= $(CACHE)/gpu-results

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The one on PATH, or else the one that the recipe below puts into the environment.
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
# The core needs neither SGLang nor torch, nor do its unit tests.
MUTATION_VENV := $(CACHE)/mutation-venv
DEMO_MODEL := $(CACHE)/demo-model/config.json

# SGLang is large: without compiled modules kept, every server and test start compiles it anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install serve demo check test test-long test-gpu gpu-kit test-gpu-bare bench-gpu-bare models mutate lint format constraints clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Install everything into VENV (.venv)

serve: $(INSTALLED) $(if $(filter $(CACHE)/demo-model,$(MODEL)),$(DEMO_MODEL)) ## Serve MODEL (a made-up one by default) from Jenga memory; ARGS, PORT
	@$(BIN)/python -m examples.demo_model.serve --model-path $(MODEL) --port $(PORT) $(ARGS)

demo: $(INSTALLED) $(if $(filter $(CACHE)/demo-model,$(MODEL)),$(DEMO_MODEL)) ## Run the examples on stock SGLang and on Jenga, equal bytes, side by side; MODEL, ARGS
	@$(BIN)/python -m examples.demo --model-path $(MODEL) $(if $(filter $(CACHE)/demo-model,$(MODEL)),--dtype float32) $(ARGS)

check: lint ## Check style and types, and run the unit tests that take seconds
	$(BIN)/pytest tests/unit -m "not gpu and not long and not slow" $(PYTEST_ARGS)

test: lint ## Check style and types, and run the tests that need neither a GPU nor hours
	$(BIN)/pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

test-long: $(INSTALLED) ## Run the tests that take minutes to hours
	$(BIN)/pytest -m "long and not gpu" --hypothesis-profile=default $(PYTEST_ARGS)

test-gpu: $(INSTALLED) ## Run the tests that need a CUDA device
	$(BIN)/pytest -m gpu $(PYTEST_ARGS)

models: $(INSTALLED) ## Compare every model of docs/models.md with others, and make its table
	rm -f $(MODEL_RESULTS)
	JENGA_RESULTS=$(MODEL_RESULTS) $(BIN)/pytest $(MODEL_TESTS) -m "not gpu" $(PYTEST_ARGS)
	PYTHONPATH=. $(BIN)/python tests/e2e/models_table.py

mutate: $(MUTATION_VENV)/.installed ## Count the changes of the core that its unit tests notice; MUTANTS, SEED
	$(MUTATION_VENV)/bin/python tests/mutation/run.py --mutants $(MUTANTS) --seed $(SEED)

gpu-kit: $(INSTALLED) ## Put what a bare GPU machine lacks into one folder, compiled for ARCH (9.0a); KIT_ARGS
	$(BIN)/python -m benchmarks.kernels.kit --arch $(ARCH) --out $(KIT) $(KIT_ARGS)

test-gpu-bare: ## Run GPU tests from the kit with PYTHON, where nothing is installed; writes JSON to OUT
	$(PYTHON) -m benchmarks.kernels.bare tests --kit $(KIT) --out $(OUT)

bench-gpu-bare: ## Measure the kernels from the kit with PYTHON, where nothing is installed
	$(PYTHON) -m benchmarks.kernels.bare benchmarks --kit $(KIT) --out $(OUT)

lint: $(INSTALLED) ## Check style, types and the directions of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

constraints: ## Renew constraints.txt (needs uv): adds what is missing, or takes the newest with UPGRADE=1
	echo uv | $(UV) pip compile pyproject.toml - --all-extras --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url $(if $(UPGRADE),--upgrade) -o constraints.txt

clean: ## Remove the environment and everything made
	rm -rf $(VENV) $(CACHE) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "SGLang 0.5.23 needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/one" >&2; exit 1; }
	@echo "Installing SGLang and this project into $(VENV) (about 11 GB the first time)"
	@test -x $(BIN)/python || { \
		if test "$(UV)" = "$(BIN)/uv"; then $(PYTHON) -m venv $(VENV); \
		else $(UV) venv --python $(PYTHON) $(VENV); fi; }
	@test -x "$(UV)" || $(BIN)/python -m pip install -c constraints.txt uv
	$(UV) pip install --python $(BIN)/python -c constraints.txt -b constraints.txt -e '.[test]'
	@touch $@

$(MUTATION_VENV)/.installed: tests/mutation/requirements.txt
	$(PYTHON) -m venv $(MUTATION_VENV)
	$(MUTATION_VENV)/bin/python -m pip install --quiet -r $<
	@touch $@

$(DEMO_MODEL): $(INSTALLED) examples/demo_model/model.py examples/demo_model/tokenizer.py
	@$(BIN)/python -m examples.demo_model.model $(@D)
