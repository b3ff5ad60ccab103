"""The exception tree of Pare. Every message says what was expected, what was got, and how to fix it.

::

    PareError                      exit status 1
    ├── UsageError (ValueError)    exit status 2: the call itself is wrong
    │   ├── ConfigError            a config value out of range or of the wrong kind
    │   └── UnknownNameError       no such model, task, stage, target or metric (nearest name suggested)
    ├── DataError                  photos: empty folder, nothing readable, one colour only
    ├── CheckpointError            weights or artifact: truncated, altered, another architecture, a pickle
    ├── InputSizeError             a height or width that the network cannot take
    ├── MissingExtraError          an optional dependency is not installed (names the extra)
    ├── UnsupportedError           the combination cannot be done; lists what can
    │   └── OutOfReachError        pruning cannot make the network as fast as was asked
    ├── ExportError                a converter refused the network
    ├── ParityError                the artifact does not compute what PyTorch computes
    ├── TrainingError              NaN or infinite loss
    ├── RunFolderError             an output folder that holds another run, or cannot be written
    └── QualityGateError           an artifact lost more LPIPS than allowed
"""

from __future__ import annotations

import difflib
import importlib
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from models.unreported import unreported


def explain(what: str, *, expected: object, got: object, fix: str) -> str:
    """Build the text of an error: ``what: expected X, got Y; fix: Z``."""
    return f"{what}: expected {expected}, got {got}; fix: {fix}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


class PareError(Exception):
    """Base of every error that Pare raises on purpose. The CLIs print it and exit with ``exit_status``."""

    exit_status = 1


class UsageError(PareError, ValueError):
    """The call itself is wrong; nothing was started."""

    exit_status = 2


class ConfigError(UsageError):
    """A config value is out of range or of the wrong kind."""


class UnknownNameError(UsageError):
    """No such model, task, stage, target or metric.

    Args:
        kind: What the name was meant to be, for example ``"model"``.
        name: The name as given.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        close = nearest(name, self.known)
        fix = f"use {close!r}" if close else "use one of these names"
        super().__init__(explain(f"unknown {kind}", expected=" | ".join(self.known), got=repr(name), fix=fix))


class DataError(PareError):
    """Photos that cannot be used: an empty folder, nothing readable, one colour only."""


class CheckpointError(PareError):
    """Weights or an artifact that cannot be trusted: truncated, altered, another architecture, a pickle."""


class InputSizeError(PareError):
    """A height or width that the network cannot take."""


class MissingExtraError(PareError):
    """An optional dependency is not installed.

    Args:
        extra: The extra of ``pare`` that brings it, for example ``"coreml"``.
        package: The module that could not be imported.
    """

    def __init__(self, extra: str, package: str) -> None:
        self.extra, self.package = extra, package
        fix = f"pip install 'pare[{extra}]'"
        super().__init__(explain("missing dependency", expected=f"package {package!r}", got="not installed", fix=fix))


class UnsupportedError(PareError):
    """The combination cannot be done; the message lists what can."""


class OutOfReachError(UnsupportedError):
    """Pruning cannot make the network as fast as was asked."""


class ExportError(PareError):
    """A converter refused the network."""


class ParityError(PareError):
    """The artifact does not compute what PyTorch computes."""


class TrainingError(PareError):
    """The loss became NaN or infinite."""


class RunFolderError(PareError):
    """An output folder that holds another run, or that cannot be written."""


class QualityGateError(PareError):
    """An artifact lost more LPIPS than allowed."""


def first_line(error: BaseException) -> str:
    """Return the first line of what ``error`` says; where it says nothing (a bare assert), its type and its place."""
    lines = str(error).strip().splitlines()
    if lines:
        return f"{type(error).__name__}: {lines[0]}" if isinstance(error, KeyError) else lines[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return f"{type(error).__name__}{place}"


def unforeseen(error: Exception) -> str:
    """Return in a line what code of the user's or a library raised; with ``PARE_DEBUG`` set it is raised again."""
    if os.environ.get("PARE_DEBUG"):
        raise error
    return " ".join(f"{type(error).__name__}: {error}".split()) if str(error).strip() else first_line(error)


@contextmanager
def running_users_code(what: str, *, expected: str) -> Iterator[None]:
    """Make one line of whatever code of a user's raises inside of the block.

    Args:
        what: The code, for example ``"factory net.py:build"``.
        expected: What it should have done.

    Raises:
        UsageError: It raised anything but a ``PareError``.
    """
    try:
        yield
    except PareError:
        raise
    except Exception as error:  # code of a user's may raise anything
        fix = "correct it; PARE_DEBUG=1 in the environment shows where"
        raise UsageError(explain(what, expected=expected, got=unforeseen(error), fix=fix)) from error


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, reporting its use to nobody, or raise MissingExtraError naming the extra that brings it."""
    try:
        with unreported():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(extra, module) from error
