"""The plumbing of the command lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from models.console import make_progress, print_json, run_app
from models.errors import CheckpointError, UnknownNameError
from models.progress import NULL_PROGRESS
from models.spec import Precision

ROOT = Path(__file__).resolve().parents[2]


def app_that(action: object) -> typer.Typer:
    """An application whose only command raises or returns ``action``."""
    app = typer.Typer()

    @app.command()
    def main(size: int = 1) -> None:
        if isinstance(action, BaseException):
            raise action

    return app


@pytest.mark.parametrize(
    ("action", "argv", "status", "text"),
    [
        (None, [], 0, ""),
        (CheckpointError("file: expected a, got b; fix: c"), [], 1, "error: file: expected a, got b; fix: c\n"),
        (UnknownNameError("target", "onx", ["onnx"]), [], 2, "expected onnx, got 'onx'; fix: use 'onnx'"),
        (KeyboardInterrupt(), [], 130, "interrupted"),
        (typer.Exit(3), [], 3, ""),
        (OSError(28, "No space left on device"), [], 1, "No space left on device; fix: free disk space"),
        (CheckpointError("file: expected\n  a,\tgot b; fix: c"), [], 1, "error: file: expected a, got b; fix: c\n"),
        (None, ["--size", "wide"], 2, "error: Invalid value for '--size': "),
        (None, ["--size", "wide"], 2, "fix: see python -m test --help\n"),
        (None, ["--sise", "1"], 2, "error: No such option: --sise"),
    ],
)
def test_run_app_maps_errors_to_exit_status(
    action: object, argv: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app_that(action), argv, prog="python -m test") == status
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == bool(captured.err)
    assert captured.out == ""


def test_print_json_writes_paths_and_enums_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": Path("a/b"), "precision": Precision.INT8})
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "precision": "int8"}


def test_print_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        print_json({"x": float("nan")})
    with pytest.raises(TypeError, match="cannot write object"):
        print_json({"x": object()})


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_progress(quiet=True) is NULL_PROGRESS
    make_progress().note("working")
    captured = capsys.readouterr()
    assert captured.err == "working\n"
    assert captured.out == ""


def test_only_answers_are_on_stdout() -> None:
    code = """
import os, sys, typer
from models.console import print_json, run_app

app = typer.Typer()

@app.command()
def main() -> None:
    os.write(1, b"WARNING of a library in C\\n")
    print_json({"answer": 42})

status = run_app(app, [])
print("after")
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == '{\n  "answer": 42\n}\nafter\n'
    assert done.stderr == "WARNING of a library in C\n"
