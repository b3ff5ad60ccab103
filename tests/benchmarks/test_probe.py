"""Probes: a fresh process answers, or its end is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import probe as module
from benchmarks.probe import example, peak_mb, probe, probe_in_subprocess, resident_mb
from models.errors import InputSizeError, PareError
from models.spec import TensorSpec


def test_a_fresh_process_measures_onnx(tiny_run: Path) -> None:
    path = tiny_run / "artifacts" / "student-fp32.onnx"
    found = probe_in_subprocess(path, target="onnx", device="cpu", threads=1, input_size=(64, 64))
    assert found.load_ms > 0
    assert found.first_inference_ms > 0
    assert found.peak_rss_mb >= found.rss_idle_mb > 10
    assert found.runtime.startswith("onnxruntime")
    assert found.device == "cpu"


def test_its_error_keeps_its_kind(tiny_run: Path) -> None:
    path = tiny_run / "artifacts" / "student-fp32.onnx"
    with pytest.raises(InputSizeError, match=r"got \(1, 1, 96, 96\)"):
        probe_in_subprocess(path, target="onnx", device="cpu", threads=1, input_size=(96, 96))


def fake(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the child run ``code`` instead."""
    real = subprocess.run

    def run(command: list[str], **more: object) -> object:
        return real([sys.executable, "-c", code], **more)  # type: ignore[call-overload]

    monkeypatch.setattr(module.subprocess, "run", run)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are told apart on POSIX")
def test_a_crash_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(PareError, match=r"a\.engine: the process that opened it died of SIGSEGV"):
        probe_in_subprocess(Path("a.engine"), target="tensorrt", device="cuda", threads=None, input_size=(64, 64))


def test_a_failure_without_an_answer_tells_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "raise SystemExit('no room left')")
    with pytest.raises(PareError, match=r"a\.onnx: no room left"):
        probe_in_subprocess(Path("a.onnx"), target="onnx", device="cpu", threads=None, input_size=(64, 64))


def test_in_this_process_too(tiny_run: Path) -> None:
    found = probe(
        tiny_run / "teacher.safetensors", target="torch", device="cpu", threads=1, input_size=(64, 64)
    ).to_json()
    assert found["runtime"].startswith("torch")
    assert set(found) == {"load_ms", "first_inference_ms", "peak_rss_mb", "rss_idle_mb", "runtime", "device"}


def test_examples_fit_their_spec() -> None:
    values = example(TensorSpec("input", ("N", 2, "H", "W"), value_range=(-0.5, 0.5)), (4, 6))
    assert values.shape == (1, 2, 4, 6)
    assert values.dtype == np.float32
    assert -0.5 <= values.min() < 0 < values.max() <= 0.5


def test_memory_is_read() -> None:
    assert peak_mb() >= resident_mb() * 0.9 > 1
