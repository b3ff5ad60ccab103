"""The folder of a run: who may write into it and what is finished in it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from models.artifact import Artifact, save_tensors
from models.errors import RunFolderError
from optimize import run_folder
from optimize.run_folder import (
    RunFolder,
    StageFolder,
    check_space,
    clear,
    describe_difference,
    disk_errors,
    fingerprint,
)

ENTRIES = ("stages", "recipe.yaml", "*.safetensors")


def folder_with_run(root: Path, recipe: dict[str, object]) -> RunFolder:
    """A folder that holds a run."""
    folder = RunFolder(root, ENTRIES)
    folder.claim(recipe)
    (root / "stages" / "01-distill").mkdir(parents=True)
    (root / "stages" / "01-distill" / "stage.json").write_text("{}")
    (root / "x.safetensors").write_text("x")
    (root / "notes.txt").write_text("mine")
    return folder


def test_new_and_empty_folders_are_taken(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "a" / "b", ENTRIES).claim({"seed": 1}) is False
    (tmp_path / "empty").mkdir()
    assert RunFolder(tmp_path / "empty", ENTRIES).claim({"seed": 1}) is False
    assert json.loads((tmp_path / "empty" / "run.json").read_text())["recipe"] == {"seed": 1}


def test_same_recipe_goes_on(tmp_path: Path) -> None:
    folder = folder_with_run(tmp_path, {"seed": 1, "size": (2, 3)})
    assert folder.claim({"seed": 1, "size": [2, 3]}) is True
    assert (tmp_path / "stages" / "01-distill" / "stage.json").exists()


def test_another_recipe_is_refused_and_named(tmp_path: Path) -> None:
    folder = folder_with_run(tmp_path, {"seed": 1, "data": {"source": None}})
    text = (
        r"got a run of another recipe: data.source \(None, now x\), seed \(1, now 2\); fix: choose another --output, or"
    )
    with pytest.raises(RunFolderError, match=text):
        folder.claim({"seed": 2, "data": {"source": "x"}})
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["seed"] == 1


def test_resume_keeps_and_overwrite_removes_only_its_own(tmp_path: Path) -> None:
    folder = folder_with_run(tmp_path, {"seed": 1})
    assert folder.claim({"seed": 2}, policy="resume") is True
    assert (tmp_path / "stages" / "01-distill" / "stage.json").exists()
    assert folder.claim({"seed": 3}, policy="overwrite") is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "run.json"]
    (tmp_path / "stages").mkdir()
    assert folder.claim({"seed": 3}, policy="overwrite") is False
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize("policy", ["same", "resume", "overwrite"])
def test_other_peoples_folder_is_never_taken(tmp_path: Path, policy: run_folder.Policy) -> None:
    (tmp_path / "holiday.jpg").write_text("x")
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(RunFolderError, match=r"an empty folder or a run, got 'holiday.jpg' and 1 more; fix: choose"):
        RunFolder(tmp_path, ENTRIES).claim({"seed": 1}, policy=policy)
    assert len(list(tmp_path.iterdir())) == 2


def test_file_and_damaged_mark(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="expected a folder, got a file"):
        RunFolder(tmp_path / "file", ENTRIES).claim({})
    folder = folder_with_run(tmp_path / "run", {"seed": 1})
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="a run of another recipe: seed"):
        folder.claim({"seed": 1})


def test_run_that_ended_before_its_first_stage_does_not_block_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ENTRIES)
    folder.claim({"seed": 1})
    (tmp_path / "recipe.yaml").write_text("old")
    assert folder.claim({"seed": 2}) is False
    assert not (tmp_path / "recipe.yaml").exists()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ENTRIES)
    with folder.locked():
        assert (tmp_path / ".lock").read_text().strip() == str(os.getpid())
    assert not (tmp_path / ".lock").exists()
    (tmp_path / ".lock").write_text(str(os.getppid()))
    with pytest.raises(RunFolderError, match=f"got process {os.getppid()} at work in it"), folder.locked():
        pytest.fail("the folder was shared")
    (tmp_path / ".lock").write_text("999999999")
    with folder.locked():
        assert (tmp_path / ".lock").exists()


def test_full_disk_has_a_clear_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFolderError, match=r"No space left.*; fix: free disk space"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5e6})())
    with pytest.raises(RunFolderError, match="expected 600 MB, got 5 MB free; fix: free disk space"):
        check_space(tmp_path / "new" / "folder", 600)
    check_space(tmp_path, 4)


def test_difference_is_short() -> None:
    assert describe_difference({"a": 1}, {"a": 1}) == "unreadable run.json"
    many = describe_difference({}, dict.fromkeys("abcde", 1))
    assert many == "a (None, now 1), b (None, now 1), c (None, now 1) and 2 more"


def test_fingerprint_depends_on_everything() -> None:
    assert fingerprint("a", {"x": 1, "y": 2}) == fingerprint("a", {"y": 2, "x": 1})
    assert fingerprint("a", {"x": 1}) != fingerprint("a", {"x": 2})
    assert len(fingerprint()) == 16


def finish(folder: StageFolder) -> Artifact:
    """Write a finished stage."""
    import torch

    record = folder.begin()
    path = folder.path / "net.safetensors"
    save_tensors({"w": torch.ones(1)}, path)
    artifact = Artifact.create(path, format="torch", model="chroma_unet", task="colorize")
    folder.write(run_folder.replace(record, status="finished", artifact=path.name, seconds=3.0, accepted=True))
    return artifact


def test_stage_is_finished_only_with_its_fingerprint_and_a_whole_file(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "s", "distill", "key")
    assert folder.finished() is None
    artifact = finish(folder)
    done = folder.finished()
    assert done is not None
    assert done[1] == artifact
    assert done[0].seconds == 3.0
    assert StageFolder(tmp_path / "s", "distill", "other").finished() is None
    artifact.path.write_bytes(artifact.path.read_bytes()[:-1])
    assert folder.finished() is None


def test_interrupted_stage_keeps_its_checkpoint_and_another_one_does_not(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "s", "distill", "key")
    record = folder.begin()
    (folder.path / "train.checkpoint.safetensors").write_text("x")
    folder.write(run_folder.replace(record, seconds=5.0, reason="interrupted"))
    assert folder.begin().seconds == 5.0
    assert (folder.path / "train.checkpoint.safetensors").exists()
    assert StageFolder(tmp_path / "s", "distill", "other").begin().seconds == 0.0
    assert [path.name for path in folder.path.iterdir()] == ["stage.json"]


def test_clear_removes_by_pattern(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.txt", "run.json"):
        (tmp_path / name).write_text("x")
    clear(tmp_path, ("*.safetensors", "run.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]
