"""Photo folders: what is used, what is converted, what is skipped and why."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.errors import DataError
from models.photos import (
    EMBEDDED,
    PhotoSet,
    centre_crop,
    centre_square,
    embedded_photos,
    open_photos,
    to_batch,
)


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    """A smooth colour picture."""
    rows, columns = np.mgrid[0:height, 0:width]
    rgb = np.stack([rows * 255 / height, columns * 255 / width, np.full_like(rows, 40 + 20 * seed)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def noise(side: int = 96) -> Image.Image:
    """A picture that does not compress, so that half its file is pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good photos, one in a subfolder."""
    (tmp_path / "trip").mkdir()
    for index, name in enumerate(("a.png", "trip/b.jpg", "trip/c.webp")):
        picture(seed=index).save(tmp_path / name)
    return tmp_path


def reasons(photos: PhotoSet) -> dict[str, str]:
    """File name -> kind of the skipped ones."""
    return {entry.path.name: entry.kind for entry in photos.skipped}


def png_16_bit_rgb(path: Path, value: int) -> None:
    """Write a 32x32 PNG of 16 bits a channel by hand; Pillow cannot."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">HHH", value, 0, 0) * 32
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(row * 32))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))


def test_open_finds_photos_in_subfolders_in_a_fixed_order(folder: Path) -> None:
    photos = open_photos(folder)
    assert photos.names == ("a.png", "trip/b.jpg", "trip/c.webp")
    assert photos.skipped == []
    assert photos.load(0).shape == (48, 64, 3)
    assert photos.load(0).dtype == np.uint8
    assert [photo.shape for photo in photos] == [(48, 64, 3)] * 3


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    inside, outside = tmp_path / "photos" / "inside", tmp_path / "elsewhere"
    for place in (inside, outside):
        place.mkdir(parents=True)
        noise = np.random.default_rng(len(place.name)).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / "a.png")
    try:
        (inside.parent / "linked").symlink_to(outside, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    (inside.parent / "twice").symlink_to(outside, target_is_directory=True)
    (inside / "loop").symlink_to(inside.parent, target_is_directory=True)
    (outside / "back").symlink_to(outside, target_is_directory=True)
    assert open_photos(inside.parent).names == ("inside/a.png", "linked/a.png")


def test_open_lists_what_it_skips_with_reasons(folder: Path) -> None:
    (folder / "notes.txt").write_text("no photo")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    (folder / "empty.png").write_bytes(b"")
    picture(20, 200).save(folder / "tiny.png")
    picture().convert("L").save(folder / "grey.png")
    Image.fromarray(np.full((40, 40), 60_000, np.uint16)).save(folder / "grey16.png")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(folder / "float.tif")
    picture().save(folder / "film.gif", save_all=True, append_images=[picture(seed=3)])
    (folder / ".hidden.jpg").write_bytes(b"")
    photos = open_photos(folder)
    assert len(photos) == 3
    assert reasons(photos) == {
        "notes.txt": "non-image",
        "broken.jpg": "corrupt",
        "empty.png": "corrupt",
        "tiny.png": "tiny",
        "grey.png": "grey",
        "grey16.png": "grey",
        "float.tif": "float",
        "film.gif": "animated",
    }
    assert photos.describe_skipped().startswith("8 skipped (2 ")
    assert "under 32 pixels" in next(entry.reason for entry in photos.skipped if entry.kind == "tiny")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_skipped_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    os.symlink(folder / "nowhere", folder / "lost.jpg")
    photos = open_photos(folder)
    assert len(photos) == 3
    assert reasons(photos) == {"pipe.jpg": "non-image", "lost.jpg": "corrupt"}


def test_huge_photos_are_skipped_by_their_header(folder: Path) -> None:
    header = bytearray((folder / "a.png").read_bytes())
    header[16:24] = struct.pack(">II", 20_000, 20_000)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    (folder / "bomb.png").write_bytes(header)
    header[16:24] = struct.pack(">II", 12_000, 11_000)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    (folder / "wall.png").write_bytes(header)
    assert reasons(open_photos(folder)) == {"bomb.png": "huge", "wall.png": "huge"}


def test_truncated_file_is_found_on_load_and_the_next_one_taken(folder: Path) -> None:
    noise().save(folder / "a_cut.jpg")
    whole = (folder / "a_cut.jpg").read_bytes()
    (folder / "a_cut.jpg").write_bytes(whole[: len(whole) // 2])
    photos = open_photos(folder)
    assert photos.skipped == []
    index = photos.names.index("a_cut.jpg")
    part, _ = photos.split(0.5)
    np.testing.assert_array_equal(photos.load(index), photos.load(index + 1))
    assert reasons(part) == {"a_cut.jpg": "corrupt"}
    assert "cannot be decoded" in photos.skipped[0].reason
    photos.load(index)
    assert len(photos.skipped) == 1


def test_rgb_file_without_chroma_is_grey(folder: Path) -> None:
    picture().convert("L").convert("RGB").save(folder / "0.png")
    photos = open_photos(folder)
    np.testing.assert_array_equal(photos.load(0), photos.load(1))
    assert reasons(photos) == {"0.png": "grey"}
    kept = open_photos(folder, keep_grey=True)
    assert kept.load(0)[..., 0].tolist() == kept.load(0)[..., 2].tolist()
    assert kept.skipped == []


def test_sixteen_bit_colour_becomes_eight(tmp_path: Path) -> None:
    png_16_bit_rgb(tmp_path / "deep.png", 0xC0FF)
    photo = open_photos(tmp_path).load(0)
    assert photo.shape == (32, 32, 3)
    np.testing.assert_array_equal(np.unique(photo.reshape(-1, 3), axis=0), [[0xC0, 0, 0]])


def test_sixteen_bit_grey_is_scaled_when_grey_is_kept(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 257 * 90, np.uint16)).save(tmp_path / "grey16.png")
    np.testing.assert_array_equal(open_photos(tmp_path, keep_grey=True).load(0), np.full((40, 40, 3), 90))


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    red = Image.new("RGBA", (40, 40), (255, 0, 0, 255))
    red.paste((0, 0, 255, 0), (0, 0, 20, 40))
    red.paste((0, 0, 255, 51), (20, 0, 30, 40))
    red.save(tmp_path / "a.png")
    photo = open_photos(tmp_path).load(0)
    assert photo[0, [0, 25, 39]].tolist() == [[255, 255, 255], [204, 204, 255], [255, 0, 0]]


def test_palette_with_transparency_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 200, 0, 255, 0, 0])
    image.paste(1, (20, 0, 40, 40))
    image.save(tmp_path / "a.png", transparency=0)
    assert open_photos(tmp_path).load(0)[0, [0, 39]].tolist() == [[255, 255, 255], [255, 0, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    photo = open_photos(tmp_path).load(0).astype(int)
    assert np.abs(photo - [255, 0, 0]).max() <= 6


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to be upright
    picture(40, 80).save(tmp_path / "a.jpg", exif=exif, quality=95)
    photo = open_photos(tmp_path).load(0)
    assert photo.shape == (80, 40, 3)
    upright = np.asarray(picture(40, 80).transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(photo.astype(int) - upright).mean() < 4


def test_srgb_and_damaged_profiles_change_nothing(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (40, 40), (128, 60, 30)).save(tmp_path / "same.png", icc_profile=srgb)
    Image.new("RGB", (40, 40), (128, 60, 30)).save(tmp_path / "damaged.png", icc_profile=b"no profile at all")
    photos = open_photos(tmp_path)
    for index in range(2):
        assert photos.load(index)[0, 0].tolist() == [128, 60, 30]


def test_other_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    """A profile whose red and green primaries are swapped must turn red into green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        bytes(profile[green + 4 : green + 12]),
        bytes(profile[red + 4 : red + 12]),
    )
    position, size = struct.unpack(">II", profile[tags[b"desc"] + 4 : tags[b"desc"] + 12])
    name = profile[position : position + size]
    profile[position : position + size] = name.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    Image.new("RGB", (40, 40), (200, 20, 20)).save(tmp_path / "a.png", icc_profile=bytes(profile))
    red_value, green_value, _ = open_photos(tmp_path).load(0)[0, 0].tolist()
    assert green_value > 180
    assert red_value < 60


def test_phone_mpo_is_used_and_plain_gif_too(tmp_path: Path) -> None:
    picture().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[picture(seed=2)])
    picture().save(tmp_path / "plain.gif")
    photos = open_photos(tmp_path)
    assert photos.names == ("phone.jpg", "plain.gif")
    assert photos.load(0).shape == (48, 64, 3)


def test_short_side_shrinks_but_never_enlarges(tmp_path: Path) -> None:
    picture(400, 600).save(tmp_path / "a.jpg")
    photos = open_photos(tmp_path)
    assert photos.load(0, short_side=100).shape == (100, 150, 3)
    assert photos.load(0, short_side=1000).shape == (400, 600, 3)
    full = Image.fromarray(photos.load(0)).resize((150, 100), Image.Resampling.LANCZOS)
    assert np.abs(photos.load(0, short_side=100).astype(int) - np.asarray(full)).mean() < 2


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "at least one usable photo, got an empty folder; fix: pass a folder with JPEG"),
        ({"a.txt": b"x", "b.jpg": b""}, r"got 2 files, all skipped: 1 non-image, 1 corrupt \(first: a.txt: is not"),
    ],
)
def test_folder_without_photos_is_an_error(tmp_path: Path, files: dict[str, bytes], text: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text):
        open_photos(tmp_path)


def test_missing_folder_and_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder .*nowhere, got no such folder; fix: pass the folder"):
        open_photos(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="got a file"):
        open_photos(tmp_path / "file")


def test_nothing_decodable_is_an_error(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        noise().save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:3000])
    photos = open_photos(tmp_path)
    with pytest.raises(DataError, match="got 2 files, all skipped: 2 corrupt"):
        photos.load(0)
    with pytest.raises(DataError, match="2 corrupt"):
        photos.sample(1, verify=True)


def many(folder: Path, count: int) -> PhotoSet:
    """A folder of ``count`` different photos."""
    for index in range(count):
        picture(seed=0).point([min(v + index, 255) for v in range(256)] * 3).save(folder / f"{index:02d}.png")
    return open_photos(folder)


def test_split_never_mixes_and_survives_renaming_and_growth(tmp_path: Path) -> None:
    photos = many(tmp_path, 20)
    (tmp_path / "copy_of_03.png").write_bytes((tmp_path / "03.png").read_bytes())
    photos = open_photos(tmp_path)
    train, held = photos.split(0.3, seed=1)
    assert len(train) + len(held) == 21
    assert not set(train.paths) & set(held.paths)
    assert 2 <= len(held) <= 12
    side = {name: name in held.names for name in photos.names}
    assert side["copy_of_03.png"] == side["03.png"]
    (tmp_path / "00.png").rename(tmp_path / "renamed.png")
    picture(seed=9).save(tmp_path / "new.png")
    _, again = open_photos(tmp_path).split(0.3, seed=1)
    assert ("renamed.png" in again.names) == side["00.png"]
    assert {name for name in again.names if name in side} == {name for name in held.names if name != "00.png"}
    assert photos.split(0.3, seed=2)[1].names != held.names


def test_split_of_two_photos_gives_one_each(tmp_path: Path) -> None:
    photos = many(tmp_path, 2)
    for seed in range(6):
        train, held = photos.split(0.1, seed=seed)
        assert (len(train), len(held)) == (1, 1)


def test_split_needs_two_different_photos(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected two different photos, got 1; fix: add photos, or pass a folder"):
        many(tmp_path, 1).split(0.5)
    with pytest.raises(DataError, match=r"a fraction between 0 and 1, got 1\.5"):
        many(tmp_path, 3).split(1.5)


def test_sample_is_seeded_and_verified(tmp_path: Path) -> None:
    photos = many(tmp_path, 12)
    assert photos.sample(5, seed=3).names == photos.sample(5, seed=3).names
    assert photos.sample(5, seed=3).names != photos.sample(5, seed=4).names
    assert len(photos.sample(50)) == 12
    broken = photos.sample(5, seed=3).paths[0]
    noise().save(broken)
    broken.write_bytes(broken.read_bytes()[:3000])
    checked = photos.sample(5, seed=3, verify=True)
    assert len(checked) == 5
    assert broken not in checked.paths
    assert reasons(photos) == {broken.name: "corrupt"}


def test_fingerprint_follows_names_and_content_not_place(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first, second = many(tmp_path / "one", 3), many(tmp_path / "two", 3)
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 16
    assert first[:2].fingerprint != first.fingerprint
    picture(seed=5).save(tmp_path / "two/01.png")
    assert open_photos(tmp_path / "two").fingerprint != first.fingerprint


def test_centre_crop_covers_and_keeps_the_middle() -> None:
    rgb = np.zeros((60, 120, 3), np.uint8)
    rgb[:, 50:70] = 255
    square = centre_square(rgb, 30)
    assert square.shape == (30, 30, 3)
    assert square[15, 15].tolist() == [255] * 3
    assert square[15, 0].tolist() == [0] * 3
    assert centre_crop(rgb, 64, 32).shape == (64, 32, 3)
    np.testing.assert_array_equal(centre_crop(rgb, 60, 120), rgb)


def test_to_batch_scales_to_one(tmp_path: Path) -> None:
    photo = np.zeros((4, 6, 3), np.uint8)
    photo[1, 2] = (255, 51, 0)
    batch = to_batch([photo, photo])
    assert tuple(batch.shape) == (2, 3, 4, 6)
    assert batch[1, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    with pytest.raises(DataError, match="of one size"):
        to_batch([photo, photo[:2]])


def test_embedded_photos_never_mix_and_are_photos() -> None:
    train, held = embedded_photos("train"), embedded_photos("eval")
    assert not set(train.names) & set(held.names)
    for photos, side in ((train, "train"), (held, "eval")):
        assert [path.name for path in photos.paths] == [Path(name).name for _, name, own in EMBEDDED if own == side]
    sides = {name: side for _, name, side in EMBEDDED}
    assert sides["data/motorcycle_left.png"] == sides["data/motorcycle_right.png"]
    assert min(len(train), len(held)) >= 4
    for photos in (train, held):
        assert all(min(photo.shape[:2]) >= 256 for photo in photos)
        assert photos.skipped == []
    with pytest.raises(DataError, match="expected train or eval, got 'test'"):
        embedded_photos("test")  # type: ignore[arg-type]


def test_photos_do_not_import_torch() -> None:
    code = "import sys, models.photos as p; p.embedded_photos('train').load(0); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_shared_photos_open_quickly_and_whole(pare_data: Path) -> None:
    photos = open_photos(pare_data / "photos_val")
    assert len(photos) == 93
    assert min(photos.load(0).shape[:2]) >= 321
