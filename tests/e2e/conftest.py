"""Tiny models and in-process schedulers for the tests that compare two memories."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from e2e.engine import Job, Report, run_jobs
from models.tiny import make_tiny_model

BACKENDS = ("default", "jenga")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from an architecture's name to its model's directory, made once per run."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = make_tiny_model(
                tmp_path_factory.mktemp("model") / architecture, architecture
            )
        return made[architecture]

    return make


@pytest.fixture
def run_both(tmp_path: Path) -> Callable[..., tuple[Report, Report]]:
    """A function `(flags, requests, **job) -> (stock, jenga)`; the two run side by side."""

    def run(flags: Mapping[str, Any], requests: Any, **job: Any) -> tuple[Report, Report]:
        jobs = {
            backend: Job({**flags, "memory_backend": backend}, requests, **job)
            for backend in BACKENDS
        }
        reports = run_jobs(jobs, tmp_path)
        return reports["default"], reports["jenga"]

    return run
