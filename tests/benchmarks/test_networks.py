"""Networks at full width, timed before they are trained."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks import networks
from benchmarks.contest import Contestant, open_contestants
from benchmarks.networks import measure_networks
from benchmarks.networks_table import NetworkRow
from benchmarks.settings import Settings
from export import to_onnx
from models.artifact import Artifact, save_network
from models.errors import ConfigError, InputSizeError, UnknownNameError, UnsupportedError
from models.photos import embedded_photos
from models.registry import create_model
from models.spec import Precision

SETTINGS = Settings(input_size=(64, 48), threads=1, warmup=0, iterations=3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NetworkRow]:
    """Folder and row of a network that was exported and timed."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("measured")
    (row,) = measure_networks(["hdrnet"], embedded_photos("train"), folder, targets=["onnx"], settings=SETTINGS)
    return folder, row


@pytest.fixture
def exported(measured: tuple[Path, NetworkRow], tmp_path: Path) -> Path:
    """A folder that was interrupted after its exports."""
    folder = shutil.copytree(measured[0], tmp_path / "out")
    (folder / "hdrnet" / "row.json").unlink()
    return folder


def test_a_network_is_exported_timed_and_tabled(measured: tuple[Path, NetworkRow]) -> None:
    folder, row = measured
    assert row.params_m == pytest.approx(0.48, abs=0.01)
    assert (row.height, row.width) == (64, 48)
    assert row.torch_ms is not None
    assert [engine.precision for engine in row.engines] == ["fp32", "fp16", "int8"]
    assert all(engine.p50_ms is not None and engine.p50_ms > 0 for engine in row.engines)
    assert row.smoothness is None
    content = json.loads((folder / "networks.json").read_text())
    assert content["rows"][0]["engines"][2]["p50_ms"] == row.engines[2].p50_ms
    assert content["settings"]["threads"] == 1
    lines = (folder / "networks.md").read_text().splitlines()
    assert lines[-1].startswith("| hdrnet | 0.48 |")
    assert lines[-1].count("|") == lines[-3].count("|")


def test_what_is_finished_is_not_measured_again(
    measured: tuple[Path, NetworkRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, first = embedded_photos("train"), measured[1]
    shutil.copytree(measured[0], tmp_path, dirs_exist_ok=True)

    def measure(*names: str, settings: Settings = SETTINGS) -> list[NetworkRow]:
        return measure_networks(names, photos, tmp_path, targets=["onnx"], settings=settings)

    made = (tmp_path / "hdrnet" / "hdrnet-int8.onnx").stat().st_mtime_ns
    assert measure("hdrnet") == [first]
    monkeypatch.setattr(networks, "_export_all", lambda *_: ([], []))
    assert [row.model for row in measure("adafm")] == ["adafm", "hdrnet"]  # what is there stays in the table
    assert "| hdrnet | 0.48 |" in (tmp_path / "networks.md").read_text()
    monkeypatch.undo()
    (tmp_path / "hdrnet" / "row.json").unlink()  # interrupted after its exports
    (again,) = (row for row in measure("hdrnet") if row.model == "hdrnet")
    assert (tmp_path / "hdrnet" / "hdrnet-int8.onnx").stat().st_mtime_ns == made
    assert again.torch_ms != first.torch_ms
    (other,) = measure("hdrnet", settings=replace(SETTINGS, input_size=(48, 64)))
    assert (other.height, other.width) == (48, 64)
    assert (tmp_path / "hdrnet" / "hdrnet-int8.onnx").stat().st_mtime_ns != made


def test_engines_that_do_not_fit_together_are_timed_in_groups(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, opened = [5.0], [0]

    def counting(artifacts: Sequence[Artifact], stack: ExitStack, **given: Any) -> list[Contestant]:
        def close() -> None:
            free[0] += 2
            opened[0] -= 1

        free[0] -= 2  # each takes two of five, and one more needs four
        opened[0] += 1
        assert opened[0] <= 1
        stack.callback(close)
        return open_contestants(artifacts, stack, **given)

    monkeypatch.setattr(networks, "_free_bytes", lambda: free[0])
    monkeypatch.setattr(networks, "open_contestants", counting)
    (row,) = measure_networks(["hdrnet"], embedded_photos("train"), exported, targets=["onnx"], settings=SETTINGS)
    assert row.groups == 4
    assert row.torch_ms is not None
    assert all(engine.p50_ms is not None for engine in row.engines)
    assert "hdrnet in 4 groups" in (exported / "networks.md").read_text()


@pytest.mark.parametrize(("takes", "onnx", "groups"), [(4.0, 1.0, 4), (3.0, 1.0, 2), (1.0, 1.0, 1), (2.0, 6.0, 3)])
def test_room_for_what_a_call_takes_for_a_while_is_left(
    takes: float, onnx: float, groups: int, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each engine holds one of eight (ONNX FP32 perhaps more), and takes more while it is called."""
    free, together = [8.0], [0]

    def infer(contestant: Contestant, inputs: object) -> None:
        free[0] -= takes - 1
        time.sleep(0.05)  # the watcher looks every 5 ms
        free[0] += takes - 1

    def opening(artifacts: Sequence[Artifact], stack: ExitStack, **given: Any) -> list[Contestant]:
        is_onnx = (artifacts[0].format, artifacts[0].precision) == ("onnx", "fp32")
        holds = onnx if is_onnx else 1.0

        def close() -> None:
            free[0] += holds
            together[0] -= 1

        free[0] -= holds
        together[0] += 1
        stack.callback(close)
        return open_contestants(artifacts, stack, **given)

    monkeypatch.setattr(networks, "_free_bytes", lambda: free[0])
    monkeypatch.setattr(networks, "open_contestants", opening)
    monkeypatch.setattr(Contestant, "infer", infer)
    (row,) = measure_networks(["hdrnet"], embedded_photos("train"), exported, targets=["onnx"], settings=SETTINGS)
    assert row.groups == groups
    assert (free[0], together[0]) == (8.0, 0)


def test_smoothness_is_that_of_the_trained_weights(tmp_path: Path) -> None:
    folder = tmp_path / "trained" / "hdrnet"
    folder.mkdir(parents=True)
    save_network(create_model("hdrnet"), folder / "hdrnet.safetensors", model="hdrnet", task="overlay")
    (row,) = measure_networks(
        ["hdrnet"],
        embedded_photos("train"),
        tmp_path / "out",
        targets=[],
        settings=SETTINGS,
        weights=tmp_path / "trained",
    )
    assert row.smoothness == 0.0  # a new overlay network is neutral: a flat map


def test_what_a_target_refuses_is_a_cell_and_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise UnsupportedError("onnx cannot take this")

    monkeypatch.setattr(to_onnx, "export", refuse)
    (row,) = measure_networks(["hdrnet"], embedded_photos("train"), tmp_path, targets=["onnx"], settings=SETTINGS)
    assert [(engine.status, engine.p50_ms) for engine in row.engines] == [("unsupported", None)] * 3
    assert row.torch_ms is not None
    text = (tmp_path / "networks.md").read_text()
    assert "| no | no | no |" in text
    assert "- hdrnet onnx fp32, hdrnet onnx fp16, hdrnet onnx int8: onnx cannot take this" in text


def test_some_precisions_alone(exported: Path) -> None:
    (row,) = measure_networks(
        ["hdrnet"],
        embedded_photos("train"),
        exported,
        targets=["onnx"],
        settings=SETTINGS,
        precisions=[Precision.INT8],
    )
    assert [(engine.target, engine.precision) for engine in row.engines] == [("onnx", "int8")]
    assert row.engines[0].p50_ms is not None
    head = (exported / "networks.md").read_text()
    assert "onnx int8 ms" in head
    assert "onnx fp32 ms" not in head


def test_bad_questions_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    photos = embedded_photos("train")
    with pytest.raises(ConfigError, match="networks: expected one or more names"):
        measure_networks([], photos, tmp_path, targets=["onnx"], settings=SETTINGS)
    with pytest.raises(UnknownNameError, match="hdrnet"):
        measure_networks(["hdrnett"], photos, tmp_path, targets=["onnx"], settings=SETTINGS)
    with pytest.raises(InputSizeError):
        measure_networks(["pix2pix"], photos, tmp_path, targets=["onnx"], settings=SETTINGS)
    assert not list(tmp_path.iterdir())
