"""Writing in one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.files import check_output, companions, remove, replacing, write_bytes
from export.registry import get_target
from models.errors import RunFolderError, UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_and_folder_replace_what_was_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a", b"1")
    write_bytes(tmp_path / "new" / "a", b"2")
    assert (tmp_path / "new" / "a").read_bytes() == b"2"
    for content in ("x", "y"):
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(tmp_path / "folder") == ["y"]
    assert names(tmp_path) == ["folder", "new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UsageError("no"), ValueError("no")])
def test_whatever_goes_wrong_the_old_one_stays(error: BaseException, tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")

    def fail() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"expected a writable folder, got .*; fix: free disk space, or choose"):
        write_bytes(tmp_path / "file" / "a", b"1")


def test_output_has_the_suffix_of_the_target() -> None:
    assert check_output(Path("x/a.engine"), get_target("tensorrt")) == Path("x/a.engine")
    with pytest.raises(
        UsageError, match=r"output of target coreml: expected a name in \.mlpackage, got a; fix: write to a\.ml"
    ):
        check_output(Path("a"), get_target("coreml"))


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "f").write_text("")
    for name in ("d", "f", "absent"):
        remove(tmp_path / name)
    assert names(tmp_path) == []


def test_companions_of_an_engine_and_of_a_graph() -> None:
    assert companions(Path("a/x.engine")) == [Path("a/x.engine.onnx")]
    assert companions(Path("a/x.onnx")) == [Path("a/x.ort"), Path("a/x.ort.json")]
    assert companions(Path("a/x.openvino")) == []
