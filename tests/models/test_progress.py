"""Progress: silent, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from models import progress as module
from models.progress import NULL_PROGRESS, RichProgress, format_count, format_seconds, format_values


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, legacy_windows=False)


def text(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (75, "1:15"), (3700, "1:01:40")])
def test_seconds(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (3.0, "3"), (1.36383, "1.36"), (12_345_678, "12345678")])
def test_counts(value: float, shown: str) -> None:
    assert format_count(value) == shown


def test_values() -> None:
    assert format_values({"loss": 0.123456, "size": 64, "last": "onnx"}) == "loss 0.1235  size 64  last onnx"


def test_the_default_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with NULL_PROGRESS.track("Working", total=3) as bar:
        bar.advance(1, loss=0.5)
    NULL_PROGRESS.note("done")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_plain_lines_have_an_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = console(terminal=False)
    with RichProgress(out, interval=5).track("Distilling", total=10) as bar:
        for _ in range(4):
            now[0] += 3
            bar.advance(1, loss=0.25)
    assert text(out) == (
        "Distilling: 2/10, ETA 0:24  loss 0.25\nDistilling: 4/10, ETA 0:18  loss 0.25\nDistilling: done in 0:12\n"
    )


def test_plain_lines_are_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = Console(file=io.StringIO(), force_terminal=False, width=40)
    with RichProgress(out).track("Distilling", total=10) as bar:
        now[0] += 6
        bar.advance(1, loss=0.25, output=0.125, feature=1.5, lpips=0.0625, size=192)
    line = "Distilling: 1/10, ETA 0:54  loss 0.25  output 0.125  feature 1.5  lpips 0.0625  size 192"
    assert text(out).splitlines()[0] == line


def test_a_short_job_says_nothing() -> None:
    out = console(terminal=False)
    with RichProgress(out).track("Short") as bar:
        bar.advance()
    assert text(out) == ""


def test_notes_are_plain_text() -> None:
    out = console(terminal=False)
    RichProgress(out).note("kept [1/2] of /tmp/a")
    assert text(out) == "kept [1/2] of /tmp/a\n"


def test_bars_on_a_terminal_nest_and_close() -> None:
    out = console(terminal=True)
    progress = RichProgress(out)
    with progress.track("Outer", total=2) as outer:
        with progress.track("Inner", total=4) as inner:
            inner.advance(2, loss=0.5)
            progress.note("between")
        outer.advance()
        assert progress._live is not None
    assert progress._live is None
    assert "Outer" in text(out)
    assert "between" in text(out)


def test_a_bar_closes_when_the_job_fails() -> None:
    progress = RichProgress(console(terminal=True))
    with pytest.raises(RuntimeError, match="broken"), progress.track("Job"):
        raise RuntimeError("broken")
    assert progress._live is None


def test_the_eta_of_a_resumed_job_counts_what_was_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = console(terminal=False)
    with RichProgress(out, interval=5).track("Training", total=100, completed=90) as bar:
        now[0] += 6
        bar.advance(2)
    assert text(out) == "Training: 92/100, ETA 0:24\nTraining: done in 0:06\n"
