"""Folders of pairs: what is matched, what is skipped and why, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from models.paired_photos import PairedPhotos, is_paired, open_for, open_pairs
from models.photos import centre_square, to_batch
from models.registry import get_task


def save(path: Path, seed: int, size: tuple[int, int] = (40, 52), **options) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path, **options)
    return rgb


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two pairs in several formats, and one of each kind of trouble."""
    for index, suffix in enumerate(("png", "tif")):
        save(tmp_path / "input" / f"sub/{index}.png", index)
        save(tmp_path / "target" / f"sub/{index}.{suffix}", 10 + index)
    save(tmp_path / "input" / "alone.png", 2)
    save(tmp_path / "target" / "stranger.png", 3)
    save(tmp_path / "input" / "large.png", 4)
    save(tmp_path / "target" / "large.png", 5, size=(40, 50))
    for name in ("twice.png", "twice.bmp"):
        save(tmp_path / "input" / name, 6)
    save(tmp_path / "target" / "twice.png", 7)
    save(tmp_path / "input" / "text.png", 8)
    (tmp_path / "target" / "text.txt").write_text("notes")
    return tmp_path


def test_pairs_are_six_channels(pairs: Path) -> None:
    found = open_pairs(pairs)
    assert found.names == ("input/sub/0.png", "input/sub/1.png")
    pair = found.load(1)
    assert pair.shape == (40, 52, 6)
    assert pair.dtype == np.uint8
    assert np.array_equal(pair[..., :3], np.asarray(Image.open(pairs / "input/sub/1.png")))
    assert np.array_equal(pair[..., 3:], np.asarray(Image.open(pairs / "target/sub/1.tif")))
    assert found.load(0, short_side=32).shape == (32, 42, 6)


def test_what_cannot_be_paired_is_listed_with_the_reason(pairs: Path) -> None:
    reasons = {f"{entry.path.parent.name}/{entry.path.name}": entry.reason for entry in open_pairs(pairs).skipped}
    assert reasons.pop("input/alone.png") == "has no partner: no alone.* in target/"
    assert reasons.pop("target/stranger.png") == "has no partner: no stranger.* in input/"
    assert reasons.pop("input/large.png") == "is 40x52, but its target large.png is 40x50"
    for name in ("input/twice.png", "input/twice.bmp"):
        assert reasons.pop(name) == "one of several files named twice: twice.bmp, twice.png"
    assert reasons.pop("target/twice.png") == "has no partner: no twice.* in input/"
    assert reasons.pop("input/text.png") == "is not an image of a known format"
    assert reasons == {}


def test_orientation_counts_before_sizes_are_compared(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "input" / "a.jpg", 0, size=(40, 52), exif=exif)
    save(tmp_path / "target" / "a.png", 1, size=(52, 40))
    assert open_pairs(tmp_path).load(0).shape == (52, 40, 6)


def test_sixteen_bits_and_grey_maps(tmp_path: Path) -> None:
    save(tmp_path / "input" / "a.jpg", 0)
    deep = np.full((40, 52), 0.75 * 65535, np.uint16)
    (tmp_path / "target").mkdir()
    Image.fromarray(deep).save(tmp_path / "target" / "a.png")
    pair = open_pairs(tmp_path).load(0)
    assert np.unique(pair[..., 3:]).tolist() == [191]


def test_crops_and_batches_keep_both_pictures_aligned(tmp_path: Path) -> None:
    rgb = save(tmp_path / "input" / "a.png", 0, size=(64, 80))
    (tmp_path / "target").mkdir()
    Image.fromarray(255 - rgb).save(tmp_path / "target" / "a.png")
    square = centre_square(open_pairs(tmp_path).load(0), 48)
    assert square.shape == (48, 48, 6)
    batch = to_batch([square])
    assert batch.shape == (1, 6, 48, 48)
    assert float((batch[:, :3] + batch[:, 3:] - 1).abs().max()) < 3 / 255


def test_a_changed_target_changes_the_fingerprint_and_parts_stay_pairs(pairs: Path) -> None:
    found = open_pairs(pairs)
    small, large = found.split(0.5)
    assert isinstance(small, PairedPhotos)
    assert len(small) + len(large) == 2
    assert found.sample(1, verify=True).load(0).shape[2] == 6
    before = found.fingerprint
    save(pairs / "target" / "sub/0.png", 99)
    assert open_pairs(pairs).fingerprint != before


def test_a_damaged_target_is_found_when_it_is_decoded(pairs: Path) -> None:
    file = pairs / "target" / "sub/0.png"
    file.write_bytes(file.read_bytes()[:400])
    found = open_pairs(pairs)
    assert np.array_equal(found.load(0), found.load(1))
    assert [entry.kind for entry in found.skipped if entry.path.name == "0.png"] == ["corrupt"]


def test_single_photos_where_the_task_or_the_layout_is_not_paired(pairs: Path, tmp_path: Path) -> None:
    assert open_for(pairs, task=get_task("image")).load(0).shape[2] == 6
    assert open_for(pairs, task=get_task("colorize")).load(0).shape[2] == 3
    assert open_for(pairs / "input" / "sub", task=get_task("image")).load(0).shape[2] == 3


def test_grey_photos_are_for_tasks_that_do_not_skip_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(tmp_path / "grey.png")
    assert len(open_for(tmp_path, task=get_task("image"))) == 1
    assert len(open_for(tmp_path, task=get_task("colorize"), keep_grey=True)) == 1
    with pytest.raises(DataError, match=r"1 grey .*colour photos .*, or keep grey ones with --set data.keep_grey=true"):
        open_for(tmp_path, task=get_task("colorize"))


def test_half_of_the_layout_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "input" / "a.png", 0)
    with pytest.raises(DataError, match=r"expected folders input and target, got input; fix: add the other one"):
        is_paired(tmp_path)
    with pytest.raises(DataError, match=r"expected folders input and target, got neither; fix: put the photos into"):
        open_pairs(tmp_path / "input")
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match=r"at least one usable photo, got 1 files, all skipped: 1 partner"):
        open_pairs(tmp_path)
