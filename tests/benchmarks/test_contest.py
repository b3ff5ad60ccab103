"""Opening artifacts: what cannot run says why, and one that fails does not stop the others."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import contest
from benchmarks.contest import Contestant, open_contestants
from models.artifact import Artifact, load_network
from models.errors import ConfigError, UnsupportedError, UsageError
from models.registry import get_task
from models.spec import Precision, TensorSpec

SIZE = (64, 64)


class FakeRunner:
    """Answers with a constant; says how it was opened."""

    def __init__(self, *, emulated: bool = False, knob: bool = False) -> None:
        self.inputs = (TensorSpec("input", ("N", 1, "H", "W")), *([TensorSpec("strength", (1,))] if knob else []))
        self.outputs = (TensorSpec("output", ("N", 2, "H", "W")),)
        self.device, self.runtime, self.threads, self.load_ms = "cpu", "fake 1", 1, 1.0
        self.emulated, self.reason = emulated, None
        self.feeds: dict[str, Any] = {}

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.inputs = ()

    def infer(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.feeds = feeds
        return {"output": np.zeros((1, 2, *feeds["input"].shape[2:]), np.float32)}


def opened(artifact: Artifact, **more: Any) -> Contestant:
    """Open one artifact without a probe."""
    with ExitStack() as stack:
        (one,) = open_contestants([artifact], stack, threads=1, input_size=SIZE, probes=False, **more)
    return one


def test_real_artifacts_open_and_answer(tiny_run: Path) -> None:
    inputs = np.full((1, 1, *SIZE), 0.5, np.float32)
    paths = [tiny_run / "distill" / "student.safetensors", *sorted((tiny_run / "artifacts").glob("*.o[np]*[xo]"))]
    with ExitStack() as stack:
        artifacts = [Artifact.load(path) for path in paths]
        able = open_contestants(artifacts, stack, threads=1, input_size=SIZE, probes=False)
        assert [one.status for one in able] == ["measured"] * 3
        first, *others = [one.infer(inputs) for one in able]
        assert first.shape == (1, 2, *SIZE)
        for other in others:
            assert np.abs(other - first).max() < 1e-4
        assert all(one.can_be_timed for one in able)
        assert able[0].reasons == {"load, memory": "not asked for"}


def test_int8_in_pytorch_is_a_record_only(tiny_teacher: Artifact) -> None:
    one = opened(replace(tiny_teacher, precision=Precision.INT8))
    assert (one.status, one.runner) == ("built", None)
    assert "PyTorch eager computes in FP32 only" in one.reasons["latency, quality"]


def test_another_device_is_said_and_not_replaced(tiny_run: Path) -> None:
    one = opened(Artifact.load(tiny_run / "artifacts" / "student-fp32.openvino"), device="cuda")
    assert one.status == "built"
    assert one.reasons["latency"] == "openvino runs on cpu | gpu | npu, not on cuda"
    assert not one.can_be_timed


def test_what_cannot_run_here_is_emulated(tiny_teacher: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "can_run", lambda path, device: "it needs macOS")
    monkeypatch.setattr(contest, "open_emulated", lambda path, threads: FakeRunner(emulated=True))
    with ExitStack() as stack:
        (one,) = open_contestants([tiny_teacher], stack, threads=1, input_size=SIZE, probes=True)
        assert one.status == "built"
        assert one.reasons == {"latency": "it needs macOS"}
        assert one.infer(np.zeros((1, 1, *SIZE), np.float32)).shape == (1, 2, *SIZE)
        assert not one.can_be_timed


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (
            UnsupportedError("engine: expected sm89, got sm75; fix: build for it"),
            "unsupported",
            "engine: expected sm89",
        ),
        (RuntimeError("out of\n memory"), "failed", "RuntimeError: out of memory"),
    ],
)
def test_whatever_goes_wrong_is_written_down(
    tiny_teacher: Artifact,
    tiny_student: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: str,
    text: str,
) -> None:
    def opener(path: Path, device: str, threads: int) -> FakeRunner:
        if path == tiny_teacher.path:
            raise error
        return FakeRunner()

    monkeypatch.setattr(contest, "open_runner", opener)
    with ExitStack() as stack:
        artifacts = [tiny_teacher, tiny_student]
        first, second = open_contestants(artifacts, stack, threads=1, input_size=SIZE, probes=False)
        assert (first.status, first.runner) == (status, None)
        assert first.reasons["latency, quality"].startswith(text)
        assert second.status == "measured"


def test_a_size_that_the_artifact_does_not_take_is_unsupported(tiny_run: Path) -> None:
    artifact = Artifact.load(tiny_run / "artifacts" / "student-fp32.onnx")
    with ExitStack() as stack:
        (one,) = open_contestants([artifact], stack, threads=1, input_size=(96, 96), probes=False)
    assert one.status == "unsupported"
    assert "got (1, 1, 96, 96)" in one.reasons["latency, quality"]


def test_a_damaged_artifact_fails_alone(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "artifacts", tmp_path / "artifacts")
    path = tmp_path / "artifacts" / "student-fp32.onnx"
    artifact = Artifact.load(path)
    path.write_bytes(path.read_bytes()[:100])
    one = opened(artifact)
    assert one.status == "failed"
    assert "expected sha256" in one.reasons["latency, quality"]


def test_knobs_get_their_defaults(tiny_teacher: Artifact) -> None:
    runner = FakeRunner(knob=True)
    one = Contestant(tiny_teacher, "cpu", runner=runner)  # type: ignore[arg-type]
    one.infer(np.zeros((1, 1, *SIZE), np.float32))
    assert runner.feeds["strength"].tolist() == [0.0]


def test_without_a_runner_nothing_is_computed(tiny_teacher: Artifact) -> None:
    with pytest.raises(UsageError, match="expected an open runner, got none"):
        Contestant(tiny_teacher, "cpu").infer(np.zeros((1, 1, *SIZE), np.float32))


def test_errors_are_said_in_one_line() -> None:
    assert contest.say(ConfigError("a: expected b,\n got c")) == "a: expected b, got c"
    assert contest.say(ValueError("bad")) == "ValueError: bad"


def test_a_packed_control_reaches_the_graph(two_inputs: Artifact) -> None:
    task = get_task(two_inputs.task)
    packed = task.prepare(torch.rand(1, 3, 16, 16))[0]
    with ExitStack() as stack:
        (contestant,) = open_contestants([two_inputs], stack, threads=1, input_size=(16, 16), probes=False)
        with torch.inference_mode():
            want = load_network(two_inputs)(packed).numpy()
        assert np.allclose(contestant.infer(packed.numpy()), want, atol=1e-6)
        packed[:, 3] += 1
        assert not np.allclose(contestant.infer(packed.numpy()), want, atol=1e-3)
