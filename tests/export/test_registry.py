"""The table of targets, and opening an artifact of any target."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import export
from export.registry import TARGETS, _table, get_target, list_targets, target_of
from models.artifact import Artifact
from models.errors import CheckpointError, ConfigError, UnknownNameError, UnsupportedError
from models.spec import Precision

Exporter = Callable[..., Artifact]
ROOT = Path(export.__file__).parents[1]


def test_table_has_the_four_targets_and_the_reference() -> None:
    assert list_targets() == ["onnx", "openvino", "tensorrt", "coreml"]
    assert set(TARGETS) == {"torch", *list_targets()}
    for name in list_targets():
        assert {Precision.FP32, Precision.FP16, Precision.INT8} <= set(TARGETS[name].precisions)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_row_has_its_module(name: str) -> None:
    module = get_target(name).load()
    assert callable(module.export)
    assert callable(module.open_runner)
    assert callable(module.can_run)


def test_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown target: .* got 'tensorflow'; fix: use 'tensorrt'"):
        get_target("tensorflow")
    with pytest.raises(UnknownNameError, match=r"unknown artifact suffix: .* got '\.onxx'; fix: use '\.onnx'"):
        target_of(Path("a.onxx"))
    assert target_of(Path("a.ort")).name == "onnx"


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected each name once, got 'onnx' twice"):
        _table((TARGETS["onnx"], TARGETS["onnx"]))


def test_listing_needs_no_torch_and_no_runtime() -> None:
    code = (
        "import sys, export; from export.registry import list_targets; list_targets();"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'numpy', 'coremltools'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_runner_is_the_network(tiny_student: Artifact) -> None:
    import torch

    from models.artifact import load_network

    x = np.random.default_rng(0).random((2, 1, 32, 64), np.float32)
    with export.open_runner(tiny_student.path, threads=1) as runner:
        answer = runner.infer({"input": x})["output"]
        assert (runner.device, runner.threads, runner.emulated, runner.reason) == ("cpu", 1, False, None)
        assert runner.runtime.startswith("torch ")
        assert runner.load_ms is not None
        assert runner.load_ms > 0
    with torch.no_grad():
        expected = load_network(tiny_student)(torch.from_numpy(x)).numpy()
    assert np.array_equal(answer, expected)


def test_torch_artifact_is_no_export(tiny_student: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"expected onnx \| openvino \| tensorrt \| coreml, got torch"):
        get_target("torch").load().export(tiny_student, tmp_path / "a.safetensors", precision=Precision.FP32)


def test_what_is_missing_altered_or_absent_is_said(exported: Exporter, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected file .*absent.onnx, got no such file; fix"):
        export.open_runner(tmp_path / "absent.onnx")
    made = exported("onnx")
    copy = tmp_path / made.path.name
    copy.write_bytes(made.path.read_bytes()[:-1] + b"x")
    copy.with_name(copy.name + ".json").write_text(made.path.with_name(made.path.name + ".json").read_text())
    with pytest.raises(CheckpointError, match=r"expected sha256 .*, got .*; fix: copy the file again"):
        export.open_runner(copy)
    with pytest.raises(UnsupportedError, match=r"device of target onnx: expected cpu \| cuda, got 'gpu'"):
        export.open_runner(made.path, "gpu")
    with pytest.raises(UnsupportedError, match="has no CUDAExecutionProvider"):
        export.open_runner(made.path, "cuda")
    assert export.can_run(made.path) is None
    assert "CUDAExecutionProvider" in str(export.can_run(made.path, "cuda"))
    with pytest.raises(UnsupportedError, match="expected tensorrt or coreml, got onnx; fix: use open_runner"):
        export.open_emulated(made.path)


def test_artifact_without_sidecar_opens_by_what_is_inside(exported: Exporter, tmp_path: Path) -> None:
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(exported("onnx").path.read_bytes())
    with export.open_runner(bare, threads=1) as runner:
        assert runner.inputs == exported_inputs(exported("onnx"))
        assert runner.infer({"input": np.zeros((1, 1, 64, 64), np.float32)})["output"].shape == (1, 2, 64, 64)


def exported_inputs(made: Artifact) -> tuple[object, ...]:
    from export.contract import contract_in

    return contract_in(made).inputs
