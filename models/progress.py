"""Progress of anything that takes more than a few seconds: bars with an ETA on a terminal, plain lines elsewhere.

Libraries take a ``Progress`` and report to it; only the command lines create one that is seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Bar(Protocol):
    """One running job."""

    def advance(self, steps: float = 1, **values: float | str) -> None:
        """Move on by ``steps``; ``values`` (loss, lpips, ...) are shown beside the bar."""


class Progress(Protocol):
    """Where a library reports what it is doing."""

    def track(
        self, description: str, total: float | None = None, *, completed: float = 0
    ) -> AbstractContextManager[Bar]:
        """Open a job of ``total`` steps (None: unknown), ``completed`` of them done earlier, and close it on exit."""

    def note(self, text: str) -> None:
        """Say one line."""


class _SilentBar:
    def advance(self, steps: float = 1, **values: float | str) -> None:
        return None


class SilentProgress:
    """Reports nothing: the default of every library call."""

    @contextmanager
    def track(self, description: str, total: float | None = None, *, completed: float = 0) -> Iterator[Bar]:
        """Open a job that is not shown."""
        yield _SilentBar()

    def note(self, text: str) -> None:
        """Say nothing."""


NULL_PROGRESS: Progress = SilentProgress()


def format_values(values: dict[str, float | str]) -> str:
    """Write ``{"loss": 0.12345}`` as ``loss 0.1235``."""
    parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()]
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """Write 75 as ``1:15`` and 3700 as ``1:01:40``."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def format_count(value: float) -> str:
    """Write how much of a job is done: whole numbers in full, others with two decimals at most."""
    return f"{round(value, 2):.15g}"


class _PlainBar:
    """Lines at most every ``interval`` seconds, for logs and pipes."""

    def __init__(self, console: Console, description: str, total: float | None, done: float, interval: float) -> None:
        self._console, self._description, self._total, self._interval = console, description, total, interval
        self._done = self._begun = done
        self._start = self._last = time.monotonic()

    def advance(self, steps: float = 1, **values: float | str) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        elapsed = now - self._start
        text = f"{self._description}: {format_count(self._done)}"
        if self._total:
            left = elapsed * (self._total - self._done) / max(self._done - self._begun, 1e-9)
            text += f"/{format_count(self._total)}, ETA {format_seconds(max(left, 0.0))}"
        self._say(f"{text}  {format_values(values)}".rstrip())

    def close(self) -> None:
        elapsed = time.monotonic() - self._start
        if elapsed >= 1.0:
            self._say(f"{self._description}: done in {format_seconds(elapsed)}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _RichBar:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: float = 1, **values: float | str) -> None:
        fields = {"values": format_values(values)} if values else {}
        self._progress.update(self._task, advance=steps, **fields)


class RichProgress:
    """Progress on a ``rich`` console.

    Args:
        console: Where to write; a terminal gets bars with an ETA, anything else plain lines.
        interval: Seconds between two plain lines of one job.
    """

    def __init__(self, console: Console, *, interval: float = 5.0) -> None:
        self._console, self._interval = console, interval
        self._live: Any = None
        self._depth = 0

    @contextmanager
    def track(self, description: str, total: float | None = None, *, completed: float = 0) -> Iterator[Bar]:
        """Open a job and show it until the block ends."""
        if not self._console.is_terminal:
            bar = _PlainBar(self._console, description, total, completed, self._interval)
            yield bar
            bar.close()
            return
        live = self._open()
        task = live.add_task(description, total=total, completed=completed, values="")
        try:
            yield _RichBar(live, task)
        finally:
            live.remove_task(task)
            self._close()

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        console = self._live.console if self._live is not None else self._console
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _open(self) -> Any:
        if self._live is None:
            from rich import progress as rich_progress

            self._live = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeElapsedColumn(),
                rich_progress.TextColumn("ETA"),
                rich_progress.TimeRemainingColumn(),
                rich_progress.TextColumn("{task.fields[values]}"),
                console=self._console,
                transient=True,
            )
            self._live.start()
        self._depth += 1
        return self._live

    def _close(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._live.stop()
            self._live = None
