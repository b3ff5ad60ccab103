"""Raw pairs on disk: 16 bits survive, what does not fit is refused; a RAW file becomes packed planes."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.color import bayer_to_rgb, pack_bayer, rgb_to_bayer
from models.errors import DataError
from models.raw_pairs import list_pairs, read_pair, read_raw, write_pair

tifffile = pytest.importorskip("tifffile")


def test_a_pair_comes_back_to_the_16th_bit(tmp_path: Path) -> None:
    raw, rgb = torch.rand(1, 4, 6, 8), torch.rand(1, 3, 12, 16)
    write_pair(tmp_path, "a", raw, rgb)
    (files,) = list_pairs(tmp_path)
    back = read_pair(*files)
    assert torch.allclose(back[0], raw, atol=0.6 / 65535)
    assert torch.allclose(back[1], rgb, atol=0.6 / 65535)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", torch.rand(1, 4, 6, 8), torch.rand(1, 3, 6, 8))
    with pytest.raises(DataError, match=r"expected \(H, W, 4\) and \(2H, 2W, 3\), got \(6, 8, 4\) and \(6, 8, 3\)"):
        read_pair(*list_pairs(tmp_path)[0])
    tifffile.imwrite(tmp_path / "input" / "a.tiff", np.zeros((6, 8, 4), np.uint8))
    with pytest.raises(DataError, match="expected uint16, got uint8"):
        read_pair(*list_pairs(tmp_path)[0])
    (tmp_path / "target" / "a.tiff").unlink()
    with pytest.raises(DataError, match=r"got without its other half: \['a'\]; fix: give each input"):
        list_pairs(tmp_path)
    with pytest.raises(DataError, match="got none"):
        list_pairs(tmp_path / "nowhere")


def test_packing_takes_the_planes_in_the_order_red_green_blue_green() -> None:
    mosaic = torch.arange(16.0).view(1, 1, 4, 4)
    packed = pack_bayer(mosaic)
    assert packed[0, :, 0, 0].tolist() == [0, 1, 5, 4]
    rgb = torch.rand(1, 3, 4, 4)
    cells = rgb_to_bayer(rgb)
    assert cells[0, 0, 1, 1] == rgb[0, 0, 2, 2]
    assert cells[0, 1, 1, 1] == rgb[0, 1, 2, 3]
    assert cells[0, 2, 1, 1] == rgb[0, 2, 3, 3]
    assert cells[0, 3, 1, 1] == rgb[0, 1, 3, 2]
    flat = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.allclose(bayer_to_rgb(rgb_to_bayer(flat)), flat)


def fake_rawpy(pattern: list[list[int]]) -> Any:
    photo = SimpleNamespace(
        color_desc=b"RGBG",
        raw_pattern=np.array(pattern),
        raw_image_visible=np.full((5, 6), 512 + 1587, np.uint16),
        black_level_per_channel=[512, 512, 512, 512],
        white_level=16383,
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
    monkeypatch.setitem(sys.modules, "rawpy", fake_rawpy([[2, 1], [3, 0]]))
    with pytest.raises(DataError, match="expected an RGGB sensor, got BGGR"):
        read_raw(Path("photo.arw"))
