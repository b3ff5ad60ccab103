"""A command in a process of its own: what it says goes to a log, its JSON comes back, its failure is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import benchmarks
from models.errors import PareError, explain

_POLL_S = 0.5
#: How long a process may take to end by itself after Ctrl-C, and once it was asked to.
_OWN_ACCORD_S, _GRACE_S = 10.0, 60.0
_TAIL = 4000


class ChildFailed(PareError):
    """A command ended with another status than 0; the text is its reason."""


def call(command: Sequence[str], log: Path, *, tick: Callable[[str], None] = lambda said: None) -> dict[str, Any]:
    """Run ``command``, which prints a JSON object on stdout, and return that object.

    Args:
        command: Program and arguments.
        log: Gets what it writes on stderr; replaced.
        tick: Called twice a second with the last line of the log.

    Raises:
        ChildFailed: It ended with another status than 0, or printed something else.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    answer = log.with_suffix(".json")
    with log.open("wb") as said, answer.open("wb") as printed:
        child = subprocess.Popen(command, stdout=printed, stderr=said, stdin=subprocess.DEVNULL, env=_environment())
        try:
            while child.poll() is None:
                time.sleep(_POLL_S)
                tick(_last_line(log))
        except KeyboardInterrupt:  # a terminal has told the process too: let it save what it has
            _wait(child, _OWN_ACCORD_S)
            _stop(child)
            raise
        except BaseException:
            _stop(child)
            raise
    if child.returncode:
        raise ChildFailed(_reason(log, child.returncode))
    try:
        content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    except ValueError as error:
        fix = f"read {log}"
        raise ChildFailed(explain(" ".join(command[1:4]), expected="JSON on stdout", got=error, fix=fix)) from error
    return content


def _environment() -> dict[str, str]:
    """Return the environment with the folder of our packages first on the path of modules."""
    home = str(Path(benchmarks.__file__).resolve().parents[1])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([home, *([others] if others else [])])}


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Let the process save what it has, then end it."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    if not _wait(child, _GRACE_S):
        child.kill()
        child.wait()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the process; say whether it has ended."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _tail(log: Path) -> list[str]:
    """Return the last lines of the log that are not empty."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read().decode("utf-8", errors="replace")
    return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def _last_line(log: Path) -> str:
    lines = _tail(log)
    return lines[-1] if lines else ""


def _reason(log: Path, status: int) -> str:
    """Return the error that the command printed, else its last line, else the status alone."""
    lines = _tail(log)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said = errors[-1] if errors else lines[-1] if lines else "it said nothing"
    if status < 0:
        return f"ended by signal {-status} (out of memory, or stopped by hand); last words: {said}"
    return said if errors else f"exit status {status}: {said}"
