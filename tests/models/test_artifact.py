"""Artifacts: what is written, what is refused, and pruned networks that load again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import models
from models import artifact as module
from models.artifact import (
    Artifact,
    load_network,
    load_weights,
    read_tensors,
    save_network,
    save_tensors,
    sha256_of,
    sidecar_of,
    size_of,
    write_json,
)
from models.errors import CheckpointError, RunFolderError
from models.layers import resize_to
from models.spec import Precision

KWARGS = {"reduction": 2, "widths": [8, 16], "depths": [1, 1]}


@pytest.fixture
def net() -> nn.Module:
    return models.create_model("chroma_unet", **KWARGS)


@pytest.fixture
def saved(net: nn.Module, tmp_path: Path) -> Artifact:
    return save_network(net, tmp_path / "net.safetensors", model="chroma_unet", task="colorize", model_kwargs=KWARGS)


class Code:
    """A pickle that would make a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_network_comes_back(net: nn.Module, saved: Artifact) -> None:
    back = load_network(saved.path)
    assert not back.training
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(back(x), net(x), rtol=0, atol=0)


def test_the_sidecar_says_where_it_came_from(net: nn.Module, saved: Artifact, tmp_path: Path) -> None:
    child = save_network(
        net,
        tmp_path / "child.safetensors",
        model="chroma_unet",
        task="colorize",
        parent=saved,
        stages=("teacher", "distill"),
        precision=Precision.INT8,
        metadata={"photos": 3},
    )
    content = json.loads(sidecar_of(child.path).read_text())
    assert content["schema"] == 1
    assert content["path"] == "child.safetensors"
    assert content["parent_sha256"] == saved.sha256 == hashlib.sha256(saved.path.read_bytes()).hexdigest()
    assert content["precision"] == "int8"
    assert content["stages"] == ["teacher", "distill"]
    assert content["model_kwargs"] == KWARGS
    assert content["versions"]["torch"] == torch.__version__
    assert Artifact.load(child.path) == child


def test_half_precision_is_stored_in_half_the_size(net: nn.Module, saved: Artifact, tmp_path: Path) -> None:
    half = save_network(
        net, tmp_path / "half.safetensors", model="chroma_unet", task="colorize", model_kwargs=KWARGS, half=True
    )
    assert size_of(half.path) < 0.6 * size_of(saved.path)
    stored = load_file(half.path)
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}
    back = load_network(half)
    assert next(back.parameters()).dtype == torch.float32
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(back(x), net(x), rtol=0, atol=2e-2)


def test_a_pruned_network_comes_back_without_pickle(net: nn.Module, tmp_path: Path) -> None:
    """Widths 8, 16 -> 4, 16 with the stem, its norm, the first blocks and their readers cut."""
    small = models.create_model("chroma_unet", **{**KWARGS, "widths": [4, 12]})
    resize_to(net, small.state_dict())
    net.load_state_dict(small.state_dict())
    path = tmp_path / "pruned.safetensors"
    artifact = save_network(net, path, model="chroma_unet", task="colorize", model_kwargs=KWARGS, stages=("prune",))
    back = load_network(artifact)
    assert back.stem[0].out_channels == 4
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(back(x), small(x), rtol=0, atol=0)


def test_folders_are_hashed_by_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        for file, content in files.items():
            (tmp_path / name / "inner").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "inner" / file).write_text(content)
        return sha256_of(tmp_path / name)

    assert folder("one", a="1", b="2") == folder("two", b="2", a="1")
    assert len({folder("one"), folder("three", a="1", c="2"), folder("four", a="1", b="3")}) == 3
    assert size_of(tmp_path / "one") == 2


def test_an_altered_file_is_refused(saved: Artifact) -> None:
    saved.path.write_bytes(saved.path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=rf"expected sha256 {saved.sha256[:12]}, got .*; fix: copy the file"):
        load_network(saved.path)
    assert Artifact.load(saved.path, verify=False) == saved


def test_a_truncated_file_is_refused(saved: Artifact) -> None:
    saved.path.write_bytes(saved.path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"truncated or altered"):
        Artifact.load(saved.path)
    with pytest.raises(CheckpointError, match=r"expected a readable checkpoint, got .*; fix: .*truncated"):
        read_tensors(saved.path)


@pytest.mark.parametrize("lost", ["file", "sidecar"])
def test_a_missing_file_is_named(saved: Artifact, lost: str) -> None:
    gone = saved.path if lost == "file" else sidecar_of(saved.path)
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"artifact: expected file .*{gone.name}, got no such file; fix: pass"):
        Artifact.load(saved.path)


def test_a_folder_is_no_artifact(saved: Artifact) -> None:
    with pytest.raises(CheckpointError, match=r"artifact: expected file .*\.json, got the folder .*; fix: pass an"):
        Artifact.load(saved.path.parent)


@pytest.mark.parametrize("content", ["no json", "{}", "[]", '{"schema": 1, "precision": "fp7", "stages": []}'])
def test_a_damaged_sidecar_is_refused(saved: Artifact, content: str) -> None:
    sidecar_of(saved.path).write_text(content)
    with pytest.raises(CheckpointError, match=r"sidecar .*net\.safetensors\.json: expected a Pare artifact, got"):
        Artifact.load(saved.path)


def test_only_torch_artifacts_become_networks(saved: Artifact, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"graph")
    graph = Artifact.create(tmp_path / "net.onnx", format="onnx", parent=saved)
    assert (graph.model, graph.task, graph.parent_sha256) == ("chroma_unet", "colorize", saved.sha256)
    with pytest.raises(CheckpointError, match=r"net\.onnx: expected format torch, got onnx; fix: pass the"):
        load_network(graph)


@pytest.mark.parametrize(("format", "model"), [("pytorch", "chroma_unet"), ("onnx", None)])
def test_an_artifact_needs_a_format_and_a_model(tmp_path: Path, format: str, model: str | None) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"artifact: expected one of .*, got format '{format}'.*fix: pass"):
        Artifact.create(tmp_path / "file", format=format, model=model, task="colorize")


@pytest.mark.parametrize("key", [None, "state_dict", "params_ema"])
def test_torch_files_of_tensors_load(net: nn.Module, tmp_path: Path, key: str | None) -> None:
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "net.pth")
    other = models.create_model("chroma_unet", **KWARGS)
    load_weights(other, tmp_path / "net.pth")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))


def test_a_pickle_with_code_is_never_run(net: nn.Module, tmp_path: Path) -> None:
    torch.save({"weight": Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: expected tensors only, got a pickle with code.*fix: save"):
        load_weights(net, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_torch_file_is_refused(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    for length in (0, 10, len(whole) // 2):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pth: expected (tensors only|a readable checkpoint), got .*"):
            load_weights(net, tmp_path / "cut.pth")


def test_another_architecture_is_refused(net: nn.Module, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in net.state_dict().items()}
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "linear.safetensors")
    message = r"expected the \d+ tensors of the network, got \d+ missing \(first: .*2 unknown .*fix: pass the"
    with pytest.raises(CheckpointError, match=message):
        load_weights(net, tmp_path / "linear.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_shapes_that_do_not_fit_together_are_refused(net: nn.Module, tmp_path: Path) -> None:
    state = net.state_dict()
    state["head.weight"] = torch.zeros(2, 8, 5, 5)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"weights 'head\.weight': expected shape \(2, 8, 3, 3\) or .* \(2, 8, 5, 5\)"
    ):
        load_weights(net, tmp_path / "other.safetensors")


def test_weights_that_are_not_numbers_are_refused(net: nn.Module, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state["head.weight"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="expected finite weights, got NaN or infinity; fix: train again"):
        load_weights(net, tmp_path / "nan.safetensors")


def test_a_file_that_is_no_state_dict_is_refused(net: nn.Module, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"expected a state_dict, got list; fix: save net\.state_dict"):
        load_weights(net, tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"weights: expected file .*none\.pth, got no such file; fix: check"):
        load_weights(net, tmp_path / "none.pth")


def test_writing_is_whole_or_not_at_all(saved: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old file, and no half of a new one."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = saved.path.read_bytes(), sidecar_of(saved.path).read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunFolderError, match=r"writing .*net\.safetensors: .*No space left on device; fix: free"):
        save_tensors({"a": torch.zeros(2)}, saved.path)
    monkeypatch.setattr(module.Path, "write_text", full)
    with pytest.raises(RunFolderError, match=r"No space left on device; fix: free disk space"):
        write_json(sidecar_of(saved.path), {"a": 1})
    assert (saved.path.read_bytes(), sidecar_of(saved.path).read_bytes()) == before
    assert sorted(path.name for path in saved.path.parent.iterdir()) == ["net.safetensors", "net.safetensors.json"]


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    save_tensors({"base": base, "view": base.T}, tmp_path / "t.safetensors", metadata={"model": "m"})
    back = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(back["view"], base.T)


def test_moved_to_keeps_the_rest(saved: Artifact, tmp_path: Path) -> None:
    moved = saved.moved_to(tmp_path / "elsewhere")
    assert moved.path == tmp_path / "elsewhere"
    assert moved.sha256 == saved.sha256
