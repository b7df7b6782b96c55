"""The bar that is shown while a replay runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.replay.loop import Progress as Callback
from benchmarks.replay.recorder import Recorder


@contextmanager
def show_progress(title: str, num_requests: int) -> Iterator[Callback]:
    """Show finished requests and the current figures; yields what the loop calls each step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=num_requests, figures="")

        def update(recorder: Recorder, now: float) -> None:
            if recorder.steps % 20 and len(recorder.finish_times) != num_requests:
                return
            rate = recorder.output_tokens / now
            figures = f"t={now:.0f}s {rate:.0f} tok/s {recorder.retractions} retracted"
            bar.update(task, completed=len(recorder.finish_times), figures=figures)

        yield update
