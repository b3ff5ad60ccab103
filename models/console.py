"""What the command lines share: exit statuses, progress on stderr, JSON on stdout. No torch import.

Exit status 0 for success, 1 for failure, 2 for a wrong call, 130 after Ctrl-C. Answers go to stdout, progress and
errors to stderr, so that ``--json`` output can be piped.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from models.errors import PareError, RunFolderError, UsageError, explain
from models.progress import NULL_PROGRESS, Progress, RichProgress

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130


def run_app(app: typer.Typer, argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run a Typer application and return its exit status; every expected error becomes one line on stderr.

    Args:
        app: The application.
        argv: Arguments without the program name; None takes those of the process.
        prog: Name shown in the usage line, for example ``"python -m export"``.

    Returns:
        0 on success, 1 on failure, 2 on a wrong call, 130 after Ctrl-C.
    """
    import typer

    wrong_call: Any = typer.BadParameter.__base__  # click's UsageError, from wherever this version of Typer has it
    status = 0
    try:
        with answers_only():
            answer = app(args=None if argv is None else list(argv), prog_name=prog, standalone_mode=False)
        status = answer if isinstance(answer, int) else 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except wrong_call as error:
        status = _print_wrong_call(error)
    except PareError as error:
        status = print_error(error)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as error:
        fix = "free disk space, or choose another --output"
        status = print_error(RunFolderError(explain("files", expected="a usable file", got=error, fix=fix)))
    if status == INTERRUPTED:
        sys.stderr.write("interrupted: run the same command again to go on from what is finished\n")
    return status


@contextlib.contextmanager
def answers_only() -> Iterator[None]:
    """Keep stdout for answers: what libraries in C print on its descriptor goes to stderr inside of the block.

    TensorRT warns there, in the middle of what ``--json`` prints. A ``sys.stdout`` that is not descriptor 1 (a test's,
    a notebook's) stays as it is.
    """
    try:
        redirected = sys.stdout.fileno() == 1
    except (OSError, ValueError, AttributeError):
        redirected = False
    if not redirected:
        yield
        return
    stdout = sys.stdout
    stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(answers, "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False) as sys.stdout:
            yield
    finally:
        sys.stdout = stdout
        os.dup2(answers, 1)
        os.close(answers)


def print_error(error: PareError) -> int:
    """Write ``error: ...`` on stderr, in one line, and return the exit status of the error."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return error.exit_status


def _print_wrong_call(error: Any) -> int:
    """Write what Typer found wrong with flags or verbs as an error of ours; the help where no verb was given."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return UsageError.exit_status
    command = f"{error.ctx.command_path} --help" if error.ctx is not None else "--help"
    return print_error(UsageError(f"{error.format_message().rstrip('.')}; fix: see {command}"))


def make_progress(*, quiet: bool = False) -> Progress:
    """Return the progress of a command line, on stderr: bars on a terminal, plain lines otherwise, or nothing."""
    if quiet:
        return NULL_PROGRESS
    from rich.console import Console

    return RichProgress(Console(stderr=True))


def print_json(content: Any) -> None:
    """Write ``content`` as JSON on stdout; paths and enums become text. NaN is refused (``ValueError``)."""
    sys.stdout.write(json.dumps(content, indent=2, default=_plain, allow_nan=False) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
