"""RAW files: levels, pattern and size by a stand-in for rawpy; with rawpy, real DNG files alone and as pairs."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.camera_raw import develop, raw_size, read_raw
from models.controls import unpack
from models.errors import DataError
from models.paired_photos import open_for
from models.photos import to_batch
from models.registry import get_task

BLACK, WHITE = 512, 16383


def fake_rawpy(pattern: list[list[int]] | None) -> Any:
    photo = SimpleNamespace(
        color_desc=b"RGBG",
        raw_pattern=None if pattern is None else np.array(pattern),
        raw_image_visible=np.full((5, 6), BLACK + 1587, np.uint16),
        black_level_per_channel=[BLACK] * 4,
        white_level=WHITE,
        sizes=SimpleNamespace(height=5, width=6),
    )

    @contextmanager
    def imread(path: str) -> Any:
        yield photo

    return SimpleNamespace(imread=imread, LibRawError=RuntimeError)


def test_a_raw_file_loses_its_black_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", fake_rawpy([[0, 1], [3, 2]]))
    packed = read_raw(Path("photo.arw"))
    assert packed.shape == (1, 4, 2, 3)
    assert torch.allclose(packed, torch.full_like(packed, 1587 / 15871))
    assert raw_size(Path("photo.arw")) == (4, 6)


def test_another_sensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern, name in (([[2, 1], [3, 0]], "BGGR"), (None, "no mosaic")):
        monkeypatch.setitem(sys.modules, "rawpy", fake_rawpy(pattern))
        with pytest.raises(DataError, match=f"expected an RGGB sensor, got {name}; fix: crop one row or column"):
            read_raw(Path("photo.arw"))


def write_dng(path: Path, cells: tuple[int, int, int, int], *, pattern: tuple[int, ...] = (0, 1, 1, 2)) -> None:
    """Write a DNG of 64x96 whose cells of four places hold these values above the black level."""
    tifffile = pytest.importorskip("tifffile")
    path.parent.mkdir(parents=True, exist_ok=True)
    mosaic = BLACK + np.tile(np.array(cells, np.uint16).reshape(2, 2), (32, 48))
    tags = [
        (50706, "B", 4, (1, 4, 0, 0), True),  # DNGVersion
        (33421, "H", 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, "B", 4, pattern, True),  # CFAPattern
        (50708, "s", 0, "Pare", True),  # UniqueCameraModel
        (50714, "H", 1, BLACK, True),
        (50717, "H", 1, WHITE, True),
        (50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True),  # ColorMatrix1
        (50728, "2I", 3, (1, 2, 1, 1, 5, 8), True),  # AsShotNeutral: gains 2, 1, 1.6
    ]
    tifffile.imwrite(path, mosaic, photometric=32803, extratags=tags, metadata=None)


def test_a_real_dng_is_read_and_developed(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    write_dng(tmp_path / "a.dng", (1000, 2000, 2000, 500))
    packed = read_raw(tmp_path / "a.dng")
    assert packed.shape == (1, 4, 32, 48)
    assert torch.allclose(packed[0, :, 5, 5] * (WHITE - BLACK), torch.tensor([1000.0, 2000.0, 500.0, 2000.0]))
    rgb = develop(tmp_path / "a.dng")
    assert (rgb.shape, rgb.dtype) == ((64, 96, 3), np.uint16)
    (tmp_path / "b.dng").write_text("notes")
    with pytest.raises(DataError, match=r"expected a RAW file, got .*; fix: convert it to DNG"):
        read_raw(tmp_path / "b.dng")


def test_pairs_of_raw_files(tmp_path: Path) -> None:
    """A long exposure is ten times lighter; a pair whose sensor begins with blue is skipped with the reason."""
    pytest.importorskip("rawpy")
    for name in ("a", "b"):
        write_dng(tmp_path / "input" / f"{name}.dng", (100, 200, 200, 125))
        write_dng(tmp_path / "target" / f"{name}.dng", (1000, 2000, 2000, 1250))
    write_dng(tmp_path / "input" / "blue.dng", (125, 200, 200, 100), pattern=(2, 1, 1, 0))
    write_dng(tmp_path / "target" / "blue.dng", (1000, 2000, 2000, 1250))
    (tmp_path / "pairs.json").write_text(json.dumps({"black_level": 9, "white_level": 99, "ratio": 10}))
    task = get_task("low_light")
    pairs = open_for(tmp_path, task=task)
    assert pairs.names == ("input/a.dng", "input/b.dng")
    (skipped,) = pairs.skipped
    assert skipped.kind == "camera"
    assert "expected an RGGB sensor, got BGGR" in skipped.reason
    inputs, target = task.prepare(to_batch([pairs.load(0)]))
    raw, ratio = unpack(inputs, 1)
    assert raw.shape == (1, 4, 32, 48)
    wanted = torch.tensor([100.0, 200.0, 125.0, 200.0])
    assert torch.allclose(raw[0, :, 3, 3] * (WHITE - BLACK), wanted, atol=0.2)  # levels are the file's own
    assert float(ratio) == pytest.approx(10, rel=1e-3)
    assert target.shape == (1, 3, 64, 96)
    assert float((target[0, 0] - target[0, 1]).abs().max()) < 0.02  # grey in the camera's white balance
