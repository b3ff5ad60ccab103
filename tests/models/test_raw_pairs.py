"""Raw pairs on disk: 16 bits survive, what does not fit is refused; a RAW file becomes packed planes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.color import bayer_to_rgb, pack_bayer, rgb_to_bayer, srgb_to_linear, unpack_bayer
from models.errors import DataError
from models.photos import centre_square, to_batch
from models.raw_crops import random_cut
from models.raw_pairs import open_raw_pairs, write_pair
from models.registry import get_task

tifffile = pytest.importorskip("tifffile")


def pair(folder: Path, name: str = "a", size: tuple[int, int] = (20, 24)) -> tuple[torch.Tensor, torch.Tensor]:
    """Write a random pair; return raw (1, 4, H, W) and sRGB (1, 3, 2H, 2W)."""
    rng = torch.Generator().manual_seed(len(name))
    raw = torch.rand(1, 4, *size, generator=rng) / 50
    rgb = torch.rand(1, 3, 2 * size[0], 2 * size[1], generator=rng)
    write_pair(folder, name, raw, rgb)
    return raw, rgb


def facts(folder: Path, **values: Any) -> None:
    (folder / "pairs.json").write_text(json.dumps(values))


def test_a_pair_comes_back_to_the_16th_bit(tmp_path: Path) -> None:
    raw, rgb = pair(tmp_path)
    facts(tmp_path, ratio=120)
    loaded = open_raw_pairs(tmp_path).load(0, short_side=8)
    assert loaded.dtype == np.uint16
    inputs, target = get_task("low_light").prepare(to_batch([loaded]))
    assert torch.allclose(inputs[:, :4], raw, atol=0.6 / 65535)
    assert torch.allclose(target, rgb, atol=0.6 / 65535)
    assert float(inputs[0, 4, 0, 0]) == pytest.approx(120, rel=1e-3)


def test_a_mosaic_is_the_same_as_its_planes(tmp_path: Path) -> None:
    raw, _ = pair(tmp_path)
    planes = open_raw_pairs(tmp_path).load(0)
    mosaic = (unpack_bayer(raw)[0, 0] * 65535).round().int().numpy().astype(np.uint16)
    tifffile.imwrite(tmp_path / "input" / "a.tiff", mosaic)
    assert np.array_equal(open_raw_pairs(tmp_path).load(0), planes)


def test_levels_and_ratios_come_from_the_facts_of_the_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pair(tmp_path, name)
    sensor = np.full((20, 24, 4), 512 + 1587, np.uint16)
    tifffile.imwrite(tmp_path / "input" / "a.tiff", sensor, photometric="minisblack", planarconfig="contig")
    facts(tmp_path, black_level=512, white_level=16383, ratio={"a": 250})
    found = open_raw_pairs(tmp_path)
    assert [(entry.path.name, entry.reason) for entry in found.skipped] == [("b.tiff", "has no ratio in pairs.json")]
    inputs, _ = get_task("low_light").prepare(to_batch([found.load(0)]))
    assert torch.allclose(inputs[:, :4], torch.tensor(1587 / 15871), atol=1e-5)
    assert float(inputs[0, 4, 0, 0]) == pytest.approx(250, rel=2e-3)
    before = found.fingerprint
    facts(tmp_path, black_level=512, white_level=16383, ratio={"a": 100})
    assert open_raw_pairs(tmp_path).fingerprint != before


def test_facts_that_are_wrong_are_refused(tmp_path: Path) -> None:
    pair(tmp_path)
    for values, text in (
        ({"ratio": 1000}, "ratio: expected from 1 to 300, got 1000"),
        ({"black_level": 9, "white_level": 9}, "expected 0 <= black < white <= 65535, got 9 and 9"),
        ({"ratio": "long"}, "fix: write for example"),
        ({"iso": 3}, "iso"),
    ):
        facts(tmp_path, **values)
        with pytest.raises(DataError, match=text):
            open_raw_pairs(tmp_path)


def test_without_a_stated_ratio_the_greens_decide(tmp_path: Path) -> None:
    photo = torch.full((1, 3, 40, 40), 0.6)
    linear = float(srgb_to_linear(torch.tensor(0.6)))
    write_pair(tmp_path, "a", torch.full((1, 4, 20, 20), linear / 80), photo)
    inputs, _ = get_task("low_light").prepare(to_batch([open_raw_pairs(tmp_path).load(0)]))
    assert float(inputs[0, 4, 0, 0]) == pytest.approx(80, rel=0.01)


def test_what_does_not_fit_is_listed_with_the_reason(tmp_path: Path) -> None:
    pair(tmp_path, "good")
    write_pair(tmp_path, "small", torch.rand(1, 4, 20, 24), torch.rand(1, 3, 20, 24))
    write_pair(tmp_path, "tiny", torch.rand(1, 4, 6, 8), torch.rand(1, 3, 12, 16))
    for name in ("eight", "text", "alone"):
        pair(tmp_path, name)
    tifffile.imwrite(tmp_path / "input" / "eight.tiff", np.zeros((20, 24, 4), np.uint8))
    (tmp_path / "target" / "text.tiff").write_text("notes")
    (tmp_path / "target" / "alone.tiff").unlink()
    found = open_raw_pairs(tmp_path)
    assert [path.stem for path in found.paths] == ["good"]
    reasons = {entry.path.stem: entry.reason for entry in found.skipped}
    assert reasons["small"].startswith("is (20, 24, 4) and its target small.tiff is (20, 24, 3), not packed (H, W, 4)")
    assert reasons["tiny"] == "is 12x16, under 32 pixels on a side"
    assert reasons["eight"] == "has uint8 values, not uint16"
    assert reasons["text"].startswith("is not a TIFF file: ")
    assert reasons["alone"] == "has no partner: no alone.* in target/"
    (tmp_path / "input" / "good.tiff").unlink()
    with pytest.raises(DataError, match=r"got 6 files, all skipped: .*; fix: write uint16 TIFF: input/ packed"):
        open_raw_pairs(tmp_path)


def marked(size: int) -> Any:
    """Return a pair whose mosaic is 0 to 3 for R, G, G, B, and whose photo has a number for each pixel."""
    rows, columns = np.mgrid[:size, :size]
    photo = (rows * size + columns).astype(np.uint16)
    mosaic = (rows % 2 * 2 + columns % 2).astype(np.uint16)
    return np.dstack([photo, photo, photo, mosaic, np.full_like(photo, 600)])


def test_crops_begin_with_red_mirrored_or_not_and_stay_on_the_photo() -> None:
    """A crop that is reversed begins at an odd place, so that the mosaic is RGGB and each value still at its pixel."""
    whole, rng = marked(40), np.random.default_rng(0)
    orders = set()
    for _ in range(40):
        part = random_cut(whole, 12, 16, rng, turn=True)
        assert part.shape == (12, 16, 5)
        assert np.array_equal(part[..., 3], np.tile([[0, 1], [2, 3]], (6, 8)))
        rows, columns = part[..., 0].astype(int) // 40, part[..., 0].astype(int) % 40
        assert len(np.unique(np.diff(rows, axis=0))) == len(np.unique(np.diff(columns, axis=1))) == 1
        orders.add((rows[0, 0] < rows[-1, 0], columns[0, 0] < columns[0, -1]))
    assert len(orders) == 4
    assert np.array_equal(random_cut(whole, 40, 40, rng), whole)  # no room to mirror


def test_a_centre_is_cut_and_never_resized() -> None:
    whole = marked(40)
    assert np.array_equal(centre_square(whole, 16), whole[12:28, 12:28])
    assert np.array_equal(centre_square(whole, 18), whole[10:28, 10:28])
    for size in (42, 15):
        with pytest.raises(DataError, match=rf"expected crops of even sides up to 40x40.*, got {size}x{size}; fix"):
            centre_square(whole, size)


def test_packing_takes_the_planes_in_the_order_red_green_blue_green() -> None:
    mosaic = torch.arange(16.0).view(1, 1, 4, 4)
    packed = pack_bayer(mosaic)
    assert packed[0, :, 0, 0].tolist() == [0, 1, 5, 4]
    assert torch.equal(unpack_bayer(packed), mosaic)
    rgb = torch.rand(1, 3, 4, 4)
    cells = rgb_to_bayer(rgb)
    assert cells[0, 0, 1, 1] == rgb[0, 0, 2, 2]
    assert cells[0, 1, 1, 1] == rgb[0, 1, 2, 3]
    assert cells[0, 2, 1, 1] == rgb[0, 2, 3, 3]
    assert cells[0, 3, 1, 1] == rgb[0, 1, 3, 2]
    flat = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.allclose(bayer_to_rgb(rgb_to_bayer(flat)), flat)
