"""``python -m export``, every verb."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import export
from export.cli import main
from models.artifact import Artifact, sidecar_of
from models.spec import Precision

pytest.importorskip("onnxruntime")

Exporter = Callable[..., Artifact]
ROOT = Path(export.__file__).parents[1]
SIZE = ["--input-size", "64", "64"]


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from export.cli import main; status = main(['--help']);"
        "heavy = {'torch', 'onnx', 'numpy', 'openvino'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    start = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert time.process_time() >= start
    for verb in ("onnx", "openvino", "tensorrt", "coreml", "bundle", "verify"):
        assert f" {verb} " in done.stdout


def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "export", "onx"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "Did you mean 'onnx'?" in done.stderr


def test_export_says_what_it_wrote(tiny_student: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "student.onnx"
    arguments = ["onnx", str(tiny_student.path), "-o", str(output), *SIZE, "--threads", "1", "--option", "ort=true"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{output}  fp32  ")
    assert "error against PyTorch" in captured.out
    assert output.with_suffix(".ort").is_file()
    assert main([*arguments, "--precision", "fp16", "--json"]) == 1
    assert "expected fp32 | int8, got fp16" in capsys.readouterr().err
    assert main([*arguments[:-2], "--precision", "fp16", "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert (content["target"], content["precision"], content["parity"]["passed"]) == ("onnx", "fp16", True)
    assert captured.err == ""


def test_folder_stands_for_the_artifact_in_it(
    tiny_student: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in (tiny_student.path, sidecar_of(tiny_student.path)):
        shutil.copy(path, folder)
    assert main(["onnx", str(folder), "-o", str(tmp_path / "a.onnx"), *SIZE, "--no-check", "--quiet"]) == 0
    assert "error against" not in capsys.readouterr().out
    assert main(["onnx", str(tmp_path / "absent"), "-o", str(tmp_path / "a.onnx")]) == 1
    assert "got no such file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["onnx", str(tmp_path / "empty"), "-o", str(tmp_path / "a.onnx")]) == 1
    assert "expected a .safetensors in" in capsys.readouterr().err
    second = folder / "second.safetensors"
    shutil.copy(tiny_student.path, second)
    content = json.loads(sidecar_of(tiny_student.path).read_text())
    sidecar_of(second).write_text(json.dumps({**content, "path": second.name}))
    assert main(["onnx", str(folder), "-o", str(tmp_path / "a.onnx")]) == 2
    assert "second.safetensors; fix: name one of these" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["onnx"], 2, "Missing argument"),
        (["onnx", "ARTIFACT"], 2, "Missing option"),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--precision", "fp8"], 2, "fp8"),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--precision", "bf16"], 1, "expected fp32 | fp16 | int8, got bf16"),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--precision", "int8"], 2, "run `python -m optimize quantize` first"),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--input-size", "30", "64"], 1, "got 30x64; fix: resize, crop or pad"),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--input-size", "64"], 2, "--input-size"),
        (["onnx", "ARTIFACT", "-o", "OUT.pt"], 2, "fix: write to OUT.onnx"),
        (
            ["onnx", "ARTIFACT", "-o", "OUT.onnx", "--set", "ort=true"],
            2,
            "an option of the target is --option NAME=VALUE",
        ),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--option", "ort"], 2, "expected NAME=VALUE, got 'ort'"),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--option", "art=1"], 2, "got ['art']; fix: leave it out"),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--device", "tpu"], 1, "expected cpu | cuda, got 'tpu'"),
        (
            ["onnx", "ARTIFACT", "-o", "OUT.onnx", "--device", "cuda"],
            1,
            "expected a device that onnx runs on here",
        ),
        (["onnx", "ARTIFACT", "-o", "OUT.onnx", "--threads", "0", "-q"], 2, "--threads"),
        (["bundle", "FOLDER", "-o", "OUT"], 2, "fix: run `python -m export onnx ...` first"),
        (["bundle", "FOLDER/absent.onnx", "-o", "OUT"], 1, "got no such file"),
        (["verify", "FOLDER/absent"], 1, "got no such file"),
        (["verify", "FOLDER"], 1, "bundle.json, got no such file; fix: pass the folder"),
    ],
)
def test_bad_calls(
    arguments: list[str],
    status: int,
    text: str,
    tiny_student: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"ARTIFACT": str(tiny_student.path), "FOLDER": str(tmp_path), "OUT": str(tmp_path / "OUT")}
    given = []
    for argument in arguments:
        for name, place in places.items():
            argument = argument.replace(name, place) if argument.startswith(name) else argument
        given.append(argument)
    assert main(given) == status
    captured = capsys.readouterr()
    assert text in " ".join(captured.err.split())
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_bundle_and_verify(
    exported: Exporter, tiny_student: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "artifacts").mkdir(parents=True)
    (run / "stages").mkdir()
    for artifact, folder in ((exported("onnx"), "artifacts"), (exported("onnx", Precision.FP16), "artifacts")):
        for path in (artifact.path, sidecar_of(artifact.path)):
            shutil.copy(path, run / folder)
    for path in (tiny_student.path, sidecar_of(tiny_student.path)):
        shutil.copy(path, run / "stages")
    bundle = tmp_path / "bundle"
    assert main(["bundle", str(run), "-o", str(bundle), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == {"path": str(bundle), "artifacts": ["student-fp16.onnx", "student-fp32.onnx"]}
    assert main(["verify", str(bundle), "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("passed   student-") == 2
    assert main(["verify", str(bundle), "--json", "--threads", "1"]) == 0
    assert [row["status"] for row in json.loads(capsys.readouterr().out)] == ["passed", "passed"]
    assert main(["verify", str(run / "artifacts" / "student-fp32.onnx"), "--threads", "1"]) == 0
    assert "error against PyTorch" in capsys.readouterr().out  # the reference is found in the run folder
    assert main(["verify", str(exported("onnx").path), "--threads", "1"]) == 1
    assert "fix: pass it with --reference" in capsys.readouterr().err
    reference = ["--reference", str(tiny_student.path)]
    assert main(["verify", str(run / "artifacts" / "student-fp32.onnx"), *reference, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["passed"] is True
    for arguments in (["verify", str(run / "artifacts" / "student-fp32.onnx")], ["verify", str(bundle)]):
        assert main([*arguments, "--device", "cuda"]) == 1
        captured = capsys.readouterr()
        assert "expected device cuda, got" in captured.out + captured.err
    path = bundle / "artifacts" / "student-fp32.onnx"
    path.write_bytes(path.read_bytes()[:100])
    assert main(["verify", str(bundle), "--threads", "1"]) == 1
    captured = capsys.readouterr()
    assert "failed   student-fp32.onnx" in captured.out
    assert "expected every artifact to pass, got student-fp32.onnx" in captured.err


def test_another_reference(
    exported: Exporter,
    tiny_student: Artifact,
    tiny_teacher: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import models

    for verb in (["bundle", "-o", str(tmp_path / "b")], ["verify"]):
        assert main([*verb, str(exported("onnx").path), "--reference", str(tiny_teacher.path)]) == 2
        assert "got resnet18_unet" in capsys.readouterr().err
    net = models.load_network(tiny_student)
    net.head.weight.data *= -1  # the same architecture: of an INT8 artifact alone only the answers tell
    path, kwargs = tmp_path / "other.safetensors", tiny_student.model_kwargs
    models.save_network(net, path, model="chroma_unet", task="colorize", model_kwargs=kwargs)
    arguments = ["bundle", "-o", str(tmp_path / "b"), "--reference", str(path), "-q"]
    assert main([*arguments, str(exported("onnx", Precision.INT8).path)]) == 1
    assert "expected every artifact to pass, got student-int8.onnx; fix: pass the --ref" in capsys.readouterr().err


def test_photo_that_is_none(
    exported: Exporter, tiny_student: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_text("no picture")
    arguments = ["bundle", str(exported("onnx").path), "-o", str(tmp_path / "b"), "--reference", str(tiny_student.path)]
    assert main([*arguments, "--photo", str(photo)]) == 1
    assert "expected a photo, got" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_artifact_that_differs_fails(
    tiny_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import MappingProxyType

    from export.registry import get_target
    from export.target import Tolerance

    strict = MappingProxyType(dict.fromkeys(Precision, Tolerance(1e-12, 1e-12)))
    monkeypatch.setattr("export.target.Target.__setattr__", object.__setattr__)
    target = get_target("onnx")
    monkeypatch.setattr(target, "tolerance", strict)
    monkeypatch.setattr("export.parity.OWN_MARGIN", 0.0)
    assert main(["onnx", str(tiny_student.path), "-o", str(tmp_path / "a.onnx"), *SIZE]) == 1
    assert "expected an error of at most" in capsys.readouterr().err
