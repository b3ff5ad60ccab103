"""What an app developer receives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.bundle import failures, verify_bundle, write_bundle
from export.collect import check_reference
from models.artifact import Artifact, sha256_of, sidecar_of, write_json
from models.errors import CheckpointError, UnsupportedError, UsageError
from models.spec import Precision

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

Exporter = Callable[..., Artifact]


@pytest.fixture(scope="module")
def shipped(exported: Exporter) -> list[Artifact]:
    made = [exported("onnx"), exported("openvino", Precision.INT8), exported("onnx", Precision.INT8)]
    try:
        import tensorrt_rtx  # noqa: F401
    except ImportError:
        return made
    return [*made, exported("tensorrt", Precision.FP16)]


@pytest.fixture(scope="module")
def bundle(shipped: list[Artifact], tiny_student: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundles") / "bundle"
    scores = {shipped[0].path.name: {"lpips": 0.1234, "latency_p50_ms": None}}
    return write_bundle(shipped, output, reference=tiny_student, teacher=tiny_student, scores=scores)


def copy_of(bundle: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(bundle, folder / "copy"))


def test_everything_is_in_it(bundle: Path, shipped: list[Artifact]) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["teacher_sha256"] == manifest["reference_sha256"]
    assert [row["file"] for row in manifest["artifacts"]] == [f"artifacts/{one.path.name}" for one in shipped]
    for row, artifact in zip(manifest["artifacts"], shipped, strict=True):
        assert row["sha256"] == artifact.sha256
        assert (bundle / row["file"]).exists()
        assert (bundle / (row["file"] + ".json")).is_file()
        assert row["checked_here"]["status"] == "passed"
        assert 0 < row["checked_here"]["max_abs"] <= row["limit"]
        assert 0 < row["checked_here"]["rms"] <= row["rms_limit"] <= row["limit"] / 4
        assert row["checked_here"]["emulated"] == (artifact.format == "tensorrt")
    (contract,) = json.loads((bundle / "contract.json").read_text()).values()
    assert contract["inputs"][0]["color_space"] == "cielab-l/100"
    assert any("CIELab lightness" in line for line in contract["words"])


def test_golden_vectors_are_those_of_pytorch(bundle: Path, tiny_student: Artifact) -> None:
    import torch
    from PIL import Image

    from models.artifact import load_network
    from models.registry import get_task

    (path,) = (bundle / "golden").glob("*.npz")
    arrays = dict(np.load(path))
    rgb = np.asarray(Image.open(path.with_name(path.stem + ".photo.png")), np.float32) / 255
    task = get_task("colorize")
    inputs, _ = task.prepare(torch.from_numpy(rgb.transpose(2, 0, 1)[None]))
    assert np.allclose(arrays["input"], inputs.numpy(), atol=1e-5)
    with torch.no_grad():
        outputs = load_network(tiny_student)(inputs)
    assert np.allclose(arrays["expected.output"], outputs.numpy(), atol=1e-5)
    shown = np.asarray(Image.open(path.with_name(path.stem + ".expected.png")), np.float32) / 255
    rendered = task.render(inputs, outputs)[0].permute(1, 2, 0).numpy()
    assert np.abs(shown - rendered).max() <= 0.5 / 255 + 1e-4


def test_readme_code_runs(bundle: Path) -> None:
    pytest.importorskip("skimage")
    text = (bundle / "README.md").read_text()
    blocks = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "cuda" not in code]
    assert len(blocks) == 2
    for code in blocks:
        check = "\nassert result.shape == rgb.shape and 0 <= result.min() and result.max() <= 1, result.shape"
        done = subprocess.run(
            [sys.executable, "-c", code + check], cwd=bundle, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "| lpips |" in text
    assert "0.1234" in text


def test_check_script_needs_no_pare(bundle: Path, tmp_path: Path) -> None:
    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-E", "check.py"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    done = run(bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed  ") == 3
    broken = copy_of(bundle, tmp_path)
    path = next((broken / "artifacts").glob("*.onnx"))
    path.write_bytes(path.read_bytes() + b" ")
    done = run(broken)
    assert done.returncode == 1
    assert f"failed   artifacts/{path.name}: another sha256" in done.stdout


def test_verify_runs_every_artifact(bundle: Path, shipped: list[Artifact]) -> None:
    checks = verify_bundle(bundle, threads=1)
    assert [check.artifact for check in checks] == [one.path.name for one in shipped]
    assert {check.status for check in checks} == {"passed"}
    assert all(check.runtime for check in checks)
    assert json.dumps([check.to_json() for check in checks])


def test_verify_finds_what_was_altered_or_exchanged(bundle: Path, tmp_path: Path) -> None:
    broken = copy_of(bundle, tmp_path)
    manifest = json.loads((broken / "bundle.json").read_text())
    first, second, third, *_ = manifest["artifacts"]
    path = broken / first["file"]
    path.write_bytes(path.read_bytes()[:-10])
    third["sha256"] = "0" * 64
    (broken / "bundle.json").write_text(json.dumps(manifest))
    checks = {check.artifact: check for check in verify_bundle(broken, threads=1)}
    assert checks[path.name].status == "failed"
    assert "expected sha256" in str(checks[path.name].reason)
    assert "an artifact was exchanged" in str(checks[Path(third["file"]).name].reason)
    assert checks[Path(second["file"]).name].status == "passed"


def test_verify_finds_wrong_answers(bundle: Path, tmp_path: Path) -> None:
    broken = copy_of(bundle, tmp_path)
    (path,) = (broken / "golden").glob("*.npz")
    arrays = dict(np.load(path))
    arrays["expected.output"] = arrays["expected.output"][:, ::-1]  # swapped channels
    np.savez(path, **arrays)
    checks = verify_bundle(broken, threads=1)
    assert {check.status for check in checks} == {"failed"}
    assert "expected an error of at most" in str(checks[0].reason)


def test_what_its_runtime_fails_at_is_a_failed_check(
    shipped: list[Artifact], tiny_student: Artifact, tmp_path: Path
) -> None:
    """A graph that loads and does not run ends no bundle: the other artifacts are in it."""
    import onnx

    graph = onnx.load(shipped[0].path)
    last = graph.graph.node[-1]
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([10**6]), "beyond"))
    graph.graph.node.append(onnx.helper.make_node("Gather", ["inner", "beyond"], [last.output[0]], axis=1))
    last.output[0] = "inner"
    path = tmp_path / "broken.onnx"
    onnx.save(graph, path)
    broken = replace(shipped[0], path=path, sha256=sha256_of(path))
    write_json(sidecar_of(path), broken.to_json())
    output = write_bundle([broken, shipped[1]], tmp_path / "bundle", reference=tiny_student)
    for checks in (failures(output), [one.artifact for one in verify_bundle(output) if one.status == "failed"]):
        assert checks == ["broken.onnx"]
    [row, _] = json.loads((output / "bundle.json").read_text())["artifacts"]
    assert re.search(r"onnxruntime .*: expected an answer, got .*Gather.*; fix: export", row["checked_here"]["reason"])
    assert row["checked_here"]["max_abs"] is None


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "expected file .*bundle.json, got no such file"), ("{}", "a bundle manifest, got KeyError"), ("[", "JSON")],
)
def test_no_bundle_is_said(content: str | None, text: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(CheckpointError, match=text):
        verify_bundle(tmp_path)


def test_bad_requests_are_refused(shipped: list[Artifact], tiny_student: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected artifacts of distinct names, got \[\]"):
        write_bundle([], tmp_path / "b", reference=tiny_student)
    with pytest.raises(UsageError, match="expected artifacts of distinct names"):
        write_bundle([shipped[0], shipped[0]], tmp_path / "b", reference=tiny_student)
    with pytest.raises(UsageError, match=r"expected exported artifacts, got chroma_unet.safetensors"):
        write_bundle([tiny_student], tmp_path / "b", reference=tiny_student)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(UsageError, match="expected a new folder or a bundle, got something else; fix: choose an empty"):
        write_bundle(shipped[:1], tmp_path / "mine", reference=tiny_student)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not delete"


def test_a_reference_of_another_network_is_refused(
    shipped: list[Artifact], tiny_student: Artifact, tiny_teacher: Artifact, quantized_student: Artifact, tmp_path: Path
) -> None:
    fp32, int8, _ = shipped[:3]
    narrow = replace(tiny_student, sha256="0" * 64)
    text = "reference of student-fp32.onnx: expected chroma_unet .* of task colorize after no stage, got resnet18_unet"
    with pytest.raises(UsageError, match=text):
        write_bundle([fp32], tmp_path / "b", reference=tiny_teacher)
    with pytest.raises(UsageError, match=rf"expected sha256 {tiny_student.sha256[:12]}, got 0{{12}}; fix: pass the"):
        write_bundle([fp32], tmp_path / "b", reference=narrow)
    for change in ({"model_kwargs": {"widths": [8, 8]}}, {"stages": ("prune",)}):
        with pytest.raises(UsageError, match=r"reference of student-int8.openvino: expected chroma_unet"):
            write_bundle([int8], tmp_path / "b", reference=replace(tiny_student, **change))
    assert not (tmp_path / "b").exists()
    check_reference(fp32, quantized_student)  # the quantized network keeps the float weights
    check_reference(int8, quantized_student)


def test_verify_on_a_device(exported: Exporter, tiny_student: Artifact, tmp_path: Path) -> None:
    bundle = write_bundle([exported("onnx"), exported("openvino")], tmp_path / "b", reference=tiny_student)
    onnx, openvino = verify_bundle(bundle, device="cuda", threads=1)
    assert (onnx.status, openvino.status) == ("failed", "not run")
    assert "expected device cuda, got" in str(onnx.reason)
    assert openvino.reason == "openvino has the devices cpu, gpu, npu"
    with pytest.raises(UnsupportedError, match="expected an artifact that runs on device ane, got student"):
        verify_bundle(bundle, device="ane")


def test_photo_of_another_size_is_resized_and_bundle_replaced(
    exported: Exporter, tiny_student: Artifact, tmp_path: Path
) -> None:
    import torch

    for _ in range(2):
        write_bundle([exported("onnx")], tmp_path / "b", reference=tiny_student, photo=torch.rand(1, 3, 100, 40))
    (path,) = (tmp_path / "b" / "golden").glob("*.npz")
    assert np.load(path)["input"].shape == (1, 1, 64, 64)
    assert [check.status for check in verify_bundle(tmp_path / "b", threads=1)] == ["passed"]
