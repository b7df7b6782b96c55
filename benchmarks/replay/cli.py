"""Replays traces through SGLang's scheduler on a chosen memory backend, and compares results."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.replay.drafts import Drafting
from benchmarks.replay.geometry import NotYetSupportedError, load_geometry
from benchmarks.replay.spec import RATIOS, RunSpec
from jenga_sglang.units import argument, parse_bytes

DATA = Path(__file__).parent / "data"
WINDOW_RATIOS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
STATE_RATIOS = (0.3, 0.6, 0.9, 1.8, 3.6, 7.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run the chosen command, return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.handler(options)
    except NotYetSupportedError as error:
        raise SystemExit(str(error)) from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_run(commands)
    _add_sweep(commands)
    _add_seeds(commands)
    _add_table(commands)
    _add_ablation(commands)
    _add_host_times(commands)
    _add_host_tiers(commands)
    _add_drafts(commands)
    _add_plot(commands)
    _add_generate(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="replay one trace on one backend")
    _add_experiment(run)
    run.add_argument("--backend", required=True, help="stock, stock-hybrid-off, unified or jenga")
    run.add_argument("--swa-full-tokens-ratio", type=float, help="stock only; default SGLang's 0.8")
    run.add_argument("--mamba-full-memory-ratio", type=float, help="likewise; default SGLang's 0.9")
    run.add_argument(
        "--no-window-pool",
        dest="window_pool",
        action="store_false",
        help="jenga only: SGLang has no pool of windows for this model, by which it sizes pools",
    )
    run.add_argument(
        "--jenga-policy",
        action="append",
        default=[],
        metavar="NAME=off",
        help="switch a Jenga policy; may be given several times",
    )
    run.set_defaults(handler=_run)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser("sweep", help="find stock's best fixed ratio")
    _add_experiment(sweep)
    sweep.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        help="of --swa-full-tokens-ratio, or --mamba-full-memory-ratio for a model with states",
    )
    sweep.set_defaults(handler=_sweep)


def _add_seeds(commands: Any) -> None:
    seeds = commands.add_parser("seeds", help="compare backends on several traces of each kind")
    _add_matrix(seeds)
    seeds.set_defaults(handler=_seeds)
    held_out = commands.add_parser("held-out", help="Jenga and unified memory on seeds kept apart")
    _add_runs(held_out)
    held_out.set_defaults(handler=_held_out)


def _add_host_tiers(commands: Any) -> None:
    tiers = commands.add_parser("host-tiers", help="all backends with host memory below the pool")
    _add_runs(tiers)
    tiers.set_defaults(handler=_host_tiers)


def _add_drafts(commands: Any) -> None:
    drafts = commands.add_parser("drafts", help="all backends with pairs of models, one drafting")
    _add_matrix(drafts)
    drafts.set_defaults(handler=_drafts)


def _add_ablation(commands: Any) -> None:
    ablation = commands.add_parser("ablation", help="what each Jenga policy is worth, likewise")
    _add_matrix(ablation)
    ablation.add_argument("--policies", nargs="+", default=(), help="only these, as hold_hits")
    ablation.set_defaults(handler=_ablation)


def _add_host_times(commands: Any) -> None:
    host_times = commands.add_parser(
        "host-times", help="host CPU time in the manager, unified memory and Jenga in turns"
    )
    host_times.add_argument("--rounds", type=int, default=3)
    _add_choice(host_times)
    host_times.add_argument("--json", type=Path, required=True, help="where rows are added")
    host_times.set_defaults(handler=_host_times)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--geometries", nargs="+", help="only these, as gemma3-27b")
    parser.add_argument("--kinds", nargs="+", help="only these, as docqa")


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    """Add what commands of several seeds have in common."""
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=(1, 2, 3), help="1 is the trace in data/"
    )
    _add_runs(parser)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    """Add what every command of many runs takes."""
    _add_choice(parser)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--json", type=Path, required=True, help="where rows go; those it has are not run again"
    )


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    """Add what `run` and `sweep` have in common."""
    parser.add_argument("--geometry", type=Path, required=True)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--kv-bytes", type=argument(parse_bytes), required=True, metavar="40GiB")
    parser.add_argument("--page-size", type=int, help="tokens; default the backend's own")
    parser.add_argument(
        "--draft", type=Path, metavar="GEOMETRY", help="of a model that drafts, in the same budget"
    )
    parser.add_argument("--draft-algorithm", default="STANDALONE", help="or EAGLE, EAGLE3")
    parser.add_argument("--draft-steps", type=int, default=4, help="drafts of a request in a step")
    parser.add_argument(
        "--acceptance", type=float, default=0.7, help="of a draft whose predecessors were right"
    )
    parser.add_argument("--chunk-tokens", type=int, default=RunSpec.chunk_tokens)
    parser.add_argument("--max-running-requests", type=int, default=RunSpec.max_running_requests)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument(
        "--host-bytes", type=argument(parse_bytes), default=0, help="host memory below the pool"
    )
    parser.add_argument("--copy-bytes-per-s", type=float, default=RunSpec.copy_bytes_per_s)
    parser.add_argument("--write-policy", default=RunSpec.write_policy)
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="SGLang's overlap schedule: a step is launched before the last one's result is known",
    )
    parser.add_argument(
        "--strict", action="store_true", help="check leaks and tokens at every step (slow)"
    )


def _add_table(commands: Any) -> None:
    table = commands.add_parser("table", help="print results as a Markdown table")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--drafts", action="store_true", help="of runs with --draft, compared")
    table.set_defaults(handler=_table)


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser("plot", help="draw results as bars")
    plot.add_argument("results", type=Path, nargs="+")
    plot.add_argument("--out", type=Path, required=True)
    plot.set_defaults(handler=_plot)


def _add_generate(commands: Any) -> None:
    from benchmarks.replay.generators import GENERATORS

    generate = commands.add_parser("generate", help="write a synthetic trace")
    generate.add_argument("kind", choices=sorted(GENERATORS))
    generate.add_argument("--seed", type=int, required=True)
    generate.add_argument("--requests", type=int, default=400, help="about so many requests")
    generate.add_argument("--out", type=Path, required=True)
    generate.set_defaults(handler=_generate)


def _spec(options: argparse.Namespace, backend: str, **ratios: float | None) -> RunSpec:
    geometry, drafting = load_geometry(options.geometry), None
    if options.draft is not None:
        draft = load_geometry(options.draft)
        drafting = Drafting.of(
            geometry, draft, options.draft_steps, options.acceptance, options.draft_algorithm
        )
        geometry = drafting.target
    return RunSpec(
        backend=backend,
        geometry=geometry,
        drafting=drafting,
        trace=options.trace,
        kv_bytes=options.kv_bytes,
        page_size_tokens=options.page_size,
        chunk_tokens=options.chunk_tokens,
        max_running_requests=options.max_running_requests,
        window_pool=getattr(options, "window_pool", True),
        jenga_policies=dict(p.split("=", 1) for p in getattr(options, "jenga_policy", ())),
        overlap=options.overlap,
        host_bytes=options.host_bytes,
        copy_bytes_per_s=options.copy_bytes_per_s,
        write_policy=options.write_policy,
        strict=options.strict,
        **ratios,
    )


def _run(options: argparse.Namespace) -> None:
    from benchmarks.replay.backends import BACKENDS
    from benchmarks.replay.report import markdown_table
    from benchmarks.replay.run import replay

    if options.strict and options.host_bytes and options.backend != "jenga":
        raise SystemExit("--strict: not with SGLang's host tier, which loads into other places")
    if not options.window_pool and options.backend != "jenga":
        raise SystemExit("--no-window-pool: with --backend jenga only; stock is stock-hybrid-off")
    if options.draft is not None and options.overlap:
        raise SystemExit("--draft: not with --overlap, whose steps know one token")
    if options.backend not in BACKENDS:
        raise SystemExit(f"--backend must be one of {', '.join(BACKENDS)}")
    ratios = {name: getattr(options, name) for name in RATIOS}
    result = replay(_spec(options, options.backend, **ratios))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown_table([result]))


def _sweep(options: argparse.Namespace) -> None:
    from benchmarks.replay.report import markdown_table
    from benchmarks.replay.sweep import sweep_ratios

    has_states = bool(load_geometry(options.geometry).state_groups)
    name = RATIOS[has_states]
    ratios = options.ratios or (STATE_RATIOS if has_states else WINDOW_RATIOS)
    results = sweep_ratios(name, [_spec(options, "stock", **{name: r}) for r in ratios], options)
    if options.json is not None and results:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown_table(results))


def _seeds(options: argparse.Namespace) -> None:
    from benchmarks.replay.seeds import Experiment, ratio_table

    print(ratio_table(_matrix(options, Experiment.backends)))


def _held_out(options: argparse.Namespace) -> None:
    from benchmarks.replay.seeds import (
        HELD_OUT,
        HELD_OUT_SEEDS,
        Experiment,
        held_out_table,
        run_seeds,
    )

    chosen, sides = _chosen(options, HELD_OUT), Experiment.against_unified
    rows = run_seeds(HELD_OUT_SEEDS, chosen, sides, options.json, options.jobs)
    print(held_out_table(rows))


def _host_tiers(options: argparse.Namespace) -> None:
    from benchmarks.replay.host_tiers import EXPERIMENTS, KEPT, sides, tiers_table
    from benchmarks.replay.seeds import run_seeds

    chosen = _chosen(options, EXPERIMENTS)
    rows = run_seeds([1], chosen, sides, options.json, options.jobs, KEPT)
    print(tiers_table(rows))


def _drafts(options: argparse.Namespace) -> None:
    from benchmarks.replay.draft_pairs import EXPERIMENTS, KEPT, Pair, pairs_table
    from benchmarks.replay.seeds import run_seeds

    chosen = _chosen(options, EXPERIMENTS)
    rows = run_seeds(options.seeds, chosen, Pair.backends, options.json, options.jobs, KEPT)
    print(pairs_table(rows))


def _ablation(options: argparse.Namespace) -> None:
    from benchmarks.replay.seeds import Experiment, ablation_table

    sides = partial(Experiment.policies, only=options.policies)
    print(ablation_table(_matrix(options, sides)))


def _host_times(options: argparse.Namespace) -> None:
    from benchmarks.replay.host_times import host_table, is_compared, run_rounds

    chosen = [e for e in _chosen(options) if is_compared(e)]
    print(host_table(run_rounds(options.rounds, chosen, options.json)))


def _matrix(options: argparse.Namespace, sides: Any) -> list[dict[str, Any]]:
    from benchmarks.replay.seeds import run_seeds

    return run_seeds(options.seeds, _chosen(options), sides, options.json, options.jobs)


def _chosen(options: argparse.Namespace, experiments: Any = None) -> list[Any]:
    """The experiments that the options name, or all."""
    from benchmarks.replay.seeds import EXPERIMENTS

    return [
        e
        for e in experiments or EXPERIMENTS
        if (not options.geometries or e.geometry in options.geometries)
        and (not options.kinds or e.kind in options.kinds)
    ]


def _table(options: argparse.Namespace) -> None:
    from benchmarks.replay.report import drafts_table, load_results, markdown_table

    table = drafts_table if options.drafts else markdown_table
    print(table(load_results(options.results)))


def _plot(options: argparse.Namespace) -> None:
    from benchmarks.replay.figures import plot_results
    from benchmarks.replay.report import load_results

    plot_results(load_results(options.results), options.out)


def _generate(options: argparse.Namespace) -> None:
    from benchmarks.replay.generators import GENERATORS
    from benchmarks.replay.trace import save_trace

    save_trace(options.out, GENERATORS[options.kind](options.seed, options.requests))
