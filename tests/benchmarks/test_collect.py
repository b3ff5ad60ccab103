"""Finding artifacts in run folders, bundles and zip files."""

from __future__ import annotations

import json
import shutil
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.collect import exported_size, find_artifacts, shipped_teacher
from models.artifact import Artifact
from models.errors import CheckpointError, DataError
from models.registry import WEIGHTS

NAMES = ["teacher.safetensors", "student.safetensors", "student-fp32.onnx", "student-fp32.openvino"]


def test_a_folder_teacher_first_other_json_ignored(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text('{"schema": 1, "rows": []}')
    (tmp_path / "run" / "teacher.json").write_text("not json")
    shutil.copytree(tmp_path / "run" / "artifacts", tmp_path / "run" / "copy")
    with ExitStack() as stack:
        found, root = find_artifacts([tmp_path / "run"], stack)
    assert [artifact.path.name for artifact in found] == NAMES
    assert root == tmp_path / "run"


def test_what_a_run_put_aside_is_not_found(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    old = tmp_path / "run" / ".before" / "bundle" / "old.onnx"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of the run before")
    Artifact.create(old, format="onnx", parent=Artifact.load(tmp_path / "run" / "teacher.safetensors"))
    with ExitStack() as stack:
        found, _ = find_artifacts([tmp_path / "run"], stack)
    assert [artifact.path.name for artifact in found] == NAMES


def test_the_folder_one_is_in(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_run)
    with ExitStack() as stack:
        found, root = find_artifacts([Path()], stack)
    assert [artifact.path.name for artifact in found] == NAMES
    assert root == tiny_run


def test_single_artifacts_files_and_folders(tiny_run: Path) -> None:
    paths = [tiny_run / "artifacts" / "student-fp32.openvino", tiny_run / "teacher.safetensors"]
    with ExitStack() as stack:
        found, root = find_artifacts(paths, stack)
    assert [artifact.format for artifact in found] == ["torch", "openvino"]
    assert root == tiny_run / "artifacts"


def test_the_shipped_teacher_is_found_by_its_hash(tiny_run: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        found, root = find_artifacts([tiny_run], stack)
    assert shipped_teacher(found, root) is None
    shipped = Artifact.load(WEIGHTS / "resnet18_unet.safetensors")
    assert shipped_teacher([replace(found[1], parent_sha256=shipped.sha256)], root) == shipped
    for folder in (tmp_path, tmp_path / "bundle"):
        folder.mkdir(exist_ok=True)
        (folder / "bundle.json").write_text(json.dumps({"teacher_sha256": shipped.sha256}))
        assert shipped_teacher(found, tmp_path) == shipped
        (folder / "bundle.json").write_text(json.dumps({"teacher_sha256": None}))
    assert shipped_teacher(found, tmp_path) is None


def test_artifacts_know_the_size_they_were_made_for(tiny_run: Path) -> None:
    with ExitStack() as stack:
        found, _ = find_artifacts([tiny_run], stack)
    assert exported_size(found) == (64, 64)
    assert exported_size(found[:2]) is None


def test_a_zip_is_unpacked_and_removed(tiny_run: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny_run))
    with ExitStack() as stack:
        found, root = find_artifacts([archive], stack)
        assert [artifact.path.name for artifact in found] == NAMES
        assert root.is_dir()
    assert not root.exists()


def test_a_zip_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../evil.json", "{}")
    with ExitStack() as stack, pytest.raises(CheckpointError, match=r"expected names inside of the zip, got \.\./evil"):
        find_artifacts([tmp_path / "bad.zip"], stack)


@pytest.mark.parametrize(
    ("name", "content", "error", "text"),
    [
        ("missing", None, CheckpointError, "got no such file; fix: pass an artifact, a run folder or a bundle"),
        ("half.zip", b"PK\x03\x04", CheckpointError, "expected a zip file.*looks truncated"),
        ("empty", b"", DataError, "expected at least one with its .json sidecar, got none below"),
    ],
)
def test_what_cannot_be_opened(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception], text: str
) -> None:
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with ExitStack() as stack, pytest.raises(error, match=text):
        find_artifacts([path], stack)


def test_an_altered_artifact_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "teacher.safetensors").write_bytes(b"other")
    with ExitStack() as stack, pytest.raises(CheckpointError, match="expected sha256"):
        find_artifacts([tmp_path / "run"], stack)
