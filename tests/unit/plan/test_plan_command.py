"""The command line: what it prints, what it refuses, and what it does not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plan_configs import CONFIGS, MIB, NAMES

from jenga_sglang.cli import main
from jenga_sglang.units import human_tokens, parse_bytes, parse_tokens


def run(*arguments: str, name: str = "gemma-3-27b") -> int:
    return main(["plan", str(CONFIGS / f"{name}.json"), "--kv-bytes", "40GiB", *arguments])


@pytest.mark.parametrize("name", NAMES)
def test_every_config_prints_within_100_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run(name=name) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for title in ("Layer groups", "Geometry", "Why", "Room for running requests"):
        assert title in text


def test_the_tables_say_what_was_chosen_and_what_was_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # a narrower terminal breaks labels in two
    run("--page-size", "16")
    text = capsys.readouterr().out
    assert "12,602 large pages of 3.25 MiB (bound 32 MiB), 16 tokens a page" in text
    assert "→ 2 + 5" in text and text.count(" 2 + 5 ") == 1
    assert "✗ 1 + 1 (exact LCM)" in text
    assert "✗ its large page exceeds the bound" in text
    assert "→ SGLang, full KV" in text


def test_host_memory_holds_what_hits_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma-3-27B in bf16: 10 layers of 62 keep 8 KiB of every token, the others of the last 1,024.

    At 4k tokens that is 320 MiB and 416 MiB; all rows would be 1,984 MiB.
    """
    monkeypatch.setenv("COLUMNS", "120")
    run("--host-bytes", "64GiB", "--lengths", "4k")
    text = capsys.readouterr().out
    assert "histories of one length that stay hits" in text
    run("--host-bytes", "64GiB", "--lengths", "4k", "--json")
    host = json.loads(capsys.readouterr().out)["host"]
    assert host["hit_bytes"] == [(320 + 416) * MIB]
    assert host["all_rows_bytes"] == [1984 * MIB]
    assert host["in_host"][0] == pytest.approx(64 * 1024 / 736, rel=0.001)
    assert host["in_pool"][0] == pytest.approx(40 * 1024 / 736, rel=0.001)


def test_host_memory_is_refused_where_there_is_no_tier(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--host-bytes", "64GiB", name="llama-3.2-11b-vision") != 0
    assert "no host tier for encoder-decoder models" in capsys.readouterr().err
    assert run("--host-bytes", "1KiB") != 0
    assert "no room" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("mistral-7b-v0.1", "--jenga-window config"),
        ("gemma-3n-e4b", "Layers 20-34 share the KV of an earlier layer"),
        ("llama-3.2-11b-vision", "6,404 image tokens"),
        ("qwen3.5-27b", "States: SGLang sets 5 aside"),
        ("jamba-1.5-mini", "SGLang 0.5.23 has no JambaForCausalLM"),
        ("gemma-2-27b", "longer than the model's 8,192 tokens: 32k, 128k"),
    ],
)
def test_notes_say_what_the_numbers_do_not(
    name: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name=name)
    assert note in " ".join(capsys.readouterr().out.split())


def test_json_holds_the_geometry_and_every_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--page-size", "16", "--tp", "4") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["page_size_tokens"] == 16
    assert [g["small_page_bytes"] * g["small_pages_per_large_page"] for g in report["groups"]] == [
        report["large_page_bytes"]
    ] * 2
    exact = [c for c in report["candidates"] if c["exact_lcm"]]
    assert exact[0]["large_page_bytes"] == 8320 << 10
    assert report["chosen"] in report["candidates"]
    assert {row["name"] for row in report["layouts"]} >= {"planned (ours)", "ideal"}


def test_options_reach_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--jenga-window", "config", "--kv-dtype", "fp8_e4m3", "--lengths", "1k,2k")
    assert run("--json", *options, name="mistral-7b-v0.1") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lengths_tokens"] == [1024, 2048]
    assert report["groups"][0]["dependency"] == "window 4096"
    assert report["groups"][0]["k_bytes"] == 8 * 128


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_figure_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan.{suffix}"
    assert run("--plot", str(path), name="qwen3.5-27b") == 0
    assert path.stat().st_size > 10_000


def test_a_field_that_cannot_be_read_is_named_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    assert main(["plan", str(tmp_path), "--kv-bytes", "1GiB"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "config.json: field 'num_key_value_heads' is missing" in captured.err


def test_a_pool_that_is_too_small_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CONFIGS / "llama-3.1-8b.json")
    assert main(["plan", file, "--kv-bytes", "32KiB"]) == 2
    assert "no room for one large page" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lengths", "4q"], "a length such as 4k"),
        (["--tp", "0"], "a number of ranks such as 8 above 0"),
        (["--page-size", "x"], "a length such as 4k"),
        (["--page-size", "24"], "a power of two from 1 to 256"),
        (["--kv-bytes", "9" * 400], "a size such as 40GiB"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert f"argument {arguments[0]}: expected {expected}" in capsys.readouterr().err


def test_image_tokens_need_layers_that_read_them_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--image-tokens", "256") == 2
    assert "no layer has cross-attention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("40GiB", 40 << 30), ("1.5 MiB", 3 * MIB // 2), ("2GB", 2 * 10**9), ("4096", 4096)],
)
def test_sizes_are_read_as_written(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "4 GiBs"])
def test_a_size_that_makes_no_sense_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_bytes(text)


@pytest.mark.parametrize("tokens", [1, 1000, 1024, 4096, 131072, 1 << 20, 3 << 20])
def test_lengths_are_written_as_they_are_read(tokens: int) -> None:
    assert parse_tokens(human_tokens(tokens)) == tokens


def test_planning_imports_neither_torch_nor_sglang() -> None:
    file = CONFIGS / "gemma-3-27b.json"
    code = (
        "import sys\n"
        "from jenga_sglang.cli import main\n"
        f"main(['plan', {str(file)!r}, '--kv-bytes', '40GiB', '--json'])\n"
        "heavy = {'torch', 'sglang', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_drafts_layers_are_further_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """Gemma-3 27B has 52 layers with a window and 10 without; the 4B has 29 and 5, of other rows,
    so that none of its layers joins a group of the 27B's."""
    assert run("--draft", str(CONFIGS / "gemma-3-4b.json"), "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"]["name"] == "gemma-3-27b + gemma-3-4b"
    assert sorted(len(group["layers"]) for group in plan["groups"]) == [5, 10, 29, 52]
    layers = [layer for group in plan["groups"] for layer in group["layers"]]
    assert sorted(layers) == list(range(62 + 34))


def test_a_draft_of_the_same_shape_joins_the_targets_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--draft", str(CONFIGS / "gemma-3-27b.json"), "--json") == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [len(group["layers"]) for group in groups] == [2 * 52, 2 * 10]


def test_tails_of_drafts_take_pages_of_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    """At 4,096 tokens Llama-3.1-8B keeps 512 pages of 8 tokens; 20 drafts are verified at once, so
    room for 40 is kept behind them, in 5 pages. SGLang's rows give as many tokens."""
    counts = []
    for drafts in ([], ["--draft-tokens", "20"]):
        assert run("--json", "--lengths", "4096", *drafts, name="llama-3.1-8b") == 0
        report = json.loads(capsys.readouterr().out)
        layouts = {row["name"]: row["concurrent"][0] for row in report["layouts"]}
        names = ("planned (ours)", "SGLang, full KV", "ideal")
        counts.append([layouts[name] for name in names])
    assert report["model"]["tail_tokens"] == 40
    (ours, stock, ideal), (ours_drafting, stock_drafting, same) = counts
    assert ours_drafting == pytest.approx(ours * 512 / 517)
    assert stock_drafting == pytest.approx(stock * 4096 / 4136)
    assert same == ideal


def test_a_window_is_followed_by_a_tail(capsys: pytest.CaptureFixture[str]) -> None:
    """Of Gemma-3's 52 windows as of its 10 full layers; the note says so."""
    assert run("--lengths", "32k", "--draft-tokens", "8") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "room for 16 tokens of drafts behind its own" in text


def test_a_draft_with_recurrent_layers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--draft", str(CONFIGS / "qwen3.5-27b.json")) != 0
    assert "a model with recurrent layers drafts for nobody yet" in capsys.readouterr().err
    falcon = "falcon-h1-7b"
    assert run("--draft", str(CONFIGS / f"{falcon}.json"), name=falcon) != 0
    assert "a model with recurrent layers drafts for nobody yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "layers"), [("qwen3-next-80b", (36, 12)), ("qwen3.5-27b", (48, 16))]
)
def test_a_head_in_a_checkpoint_is_one_more_layer_with_attention(
    name: str, layers: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    states, attention = layers
    for draft, extra in ([], 0), (["--draft", str(CONFIGS / f"{name}.json")], 1):
        assert run("--json", *draft, name=name) == 0
        report = json.loads(capsys.readouterr().out)
        counts = {group["name"]: len(group["layers"]) for group in report["groups"]}
        assert counts == {"state": states, "full": attention + extra}
    assert report["model"]["name"] == f"{name} + its head"
    assert run("--lengths", "32k", *draft, name=name) == 0
    assert "a state behind every draft" in " ".join(capsys.readouterr().out.split())


def test_a_draft_without_a_word_of_its_tokens_drafts_as_a_servers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    draft = ("--draft", str(CONFIGS / "gemma-3-4b.json"))
    outputs = []
    for tokens in ([], ["--draft-tokens", "4"], ["--draft-tokens", "6"]):
        assert run(*draft, *tokens) == 0
        outputs.append(" ".join(capsys.readouterr().out.split()))
    assert outputs[0] == outputs[1] and "room for 8 tokens of drafts" in outputs[0]
    assert "room for 12 tokens of drafts" in outputs[2]
