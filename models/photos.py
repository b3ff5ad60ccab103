"""Folders of photos: found at once, decoded on use; what cannot be used is listed with a reason, never fatal.

What happens to a file:

==================  =====================================================================================
not an image        skipped at opening (also documents, movies, and formats that need an external program)
corrupt, truncated  skipped: at opening when the header is damaged, else when it is first decoded
tiny                skipped: a side under 32 pixels
huge                skipped above 120 million pixels; below that, JPEG is decoded at the scale that is needed
animated            skipped: GIF, WebP, APNG or TIFF of several frames (the second picture of a phone's MPO is ignored)
grey                skipped unless ``keep_grey``: it would teach a colorizer grey. By its header at opening, an RGB
                    file without chroma when it is first decoded
floating point      skipped
16 bits a channel   converted to 8 (raw pairs keep them: ``models.raw_pairs``)
CMYK, YCbCr, Lab    converted to RGB
palette             converted to RGB
alpha               composited on white
EXIF orientation    applied
ICC profile         converted to sRGB; a damaged profile is ignored
==================  =====================================================================================

This module does not import torch until ``to_batch`` is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models import photo_decode
from models.errors import DataError, explain
from models.photo_decode import MINIMUM_SIDE, Rejected, decode, inspect
from models.raw_crops import centre_cut, is_raw_pair

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = 4096
_USABLE = "pass a folder with JPEG, PNG, WebP, TIFF or BMP colour photos of at least 32x32 pixels"

#: Colour photos inside scikit-image and scikit-learn: (package, file, side). The two motorcycles are one scene.
EMBEDDED: tuple[tuple[str, str, Literal["train", "eval"]], ...] = (
    ("skimage", "data/astronaut.png", "train"),
    ("skimage", "data/motorcycle_left.png", "train"),
    ("skimage", "data/motorcycle_right.png", "train"),
    ("skimage", "data/retina.jpg", "train"),
    ("skimage", "data/ihc.png", "train"),
    ("sklearn", "datasets/images/flower.jpg", "train"),
    ("skimage", "data/chelsea.png", "eval"),
    ("skimage", "data/coffee.png", "eval"),
    ("skimage", "data/rocket.jpg", "eval"),
    ("sklearn", "datasets/images/china.jpg", "eval"),
)


@dataclass(frozen=True)
class Skipped:
    """A file that is not used.

    Attributes:
        path: The file.
        kind: One word of the table of this module: ``corrupt``, ``tiny``, ``grey``, ...
        reason: The same in a sentence.
    """

    path: Path
    kind: str
    reason: str


class PhotoSet(Sequence[Any]):
    """Photos by path; decoding happens in ``load``.

    Parts made by ``split`` and ``sample`` share the list ``skipped``, so that a photo that turns out to be damaged
    while training is seen by whoever opened the folder.

    Args:
        paths: Usable files, in a fixed order.
        root: Folder that names are relative to.
        skipped: Files that are not used, with reasons.
        keep_grey: Keep photos without chroma.
    """

    def __init__(
        self, paths: Sequence[Path], *, root: Path, skipped: list[Skipped] | None = None, keep_grey: bool = False
    ) -> None:
        self.paths = tuple(paths)
        self.root = root
        self.skipped: list[Skipped] = [] if skipped is None else skipped
        self.keep_grey = keep_grey
        self._fingerprint: str | None = None
        self._bad: tuple[int, frozenset[Path]] = (0, frozenset())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self._part(self.paths[index]) if isinstance(index, slice) else self.load(index)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self.load(index)

    def __repr__(self) -> str:
        return f"PhotoSet({len(self)} photos of {self.root}, {len(self.skipped)} skipped)"

    @property
    def names(self) -> tuple[str, ...]:
        """Names relative to ``root``, with forward slashes."""
        return tuple(_name(path, self.root) for path in self.paths)

    def load(self, index: int, *, short_side: int | None = None) -> Any:
        """Decode photo ``index``; one that cannot be decoded is listed in ``skipped`` and the next one taken.

        Args:
            index: 0 to ``len(self) - 1``; negative from the end.
            short_side: Shrink to this many pixels on the short side (never enlarged); faster for large JPEG files.

        Returns:
            Array (H, W, 3) uint8, sRGB; of pairs (``models.paired_photos``) (H, W, 6); of photos with two targets
            (``models.variant_pairs``) (H, W, 9); of raw pairs (``models.raw_pairs``) (H, W, 5) uint16.

        Raises:
            DataError: No photo of the set can be decoded.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(explain("photo", expected=f"an index below {len(self)}", got=index, fix="use len()"))
        for step in range(len(self)):
            path = self.paths[(index + step) % len(self)]
            if path in self._known_bad():
                continue
            try:
                return self._decode(path, short_side)
            except Rejected as error:
                self._record(Skipped(path, error.kind, error.reason))
        raise nothing_usable(self.root, len(self), self.skipped)

    def split(self, fraction: float, *, seed: int = 0) -> tuple[PhotoSet, PhotoSet]:
        """Split in two, about ``1 - fraction`` and ``fraction`` of the photos.

        Each photo is placed by a hash of its content, so that it stays on its side when the folder grows or is
        renamed, and copies of one file stay together.

        Raises:
            DataError: Fewer than two different photos.
        """
        if not 0 < fraction < 1:
            fix = "use for example 0.1"
            raise DataError(explain("split", expected="a fraction between 0 and 1", got=fraction, fix=fix))
        places = {path: _place(path, seed) for path in self.paths}
        order = sorted(set(places.values()))
        if len(order) < 2:
            fix = "add photos, or pass a folder for evaluation with --eval-data"
            raise DataError(explain("split", expected="two different photos", got=len(order), fix=fix))
        limit = min(max(fraction, order[0]), order[-2])
        small = [path for path in self.paths if places[path] <= limit]
        large = [path for path in self.paths if places[path] > limit]
        return self._part(large), self._part(small)

    def sample(self, count: int, *, seed: int = 0, verify: bool = False) -> PhotoSet:
        """Return at most ``count`` photos drawn at random, in their old order.

        Args:
            count: How many.
            seed: Of the draw.
            verify: Decode each one now, and draw another for one that cannot be decoded.

        Raises:
            DataError: No photo of the set can be decoded.
        """
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        if not verify:
            return self._part([self.paths[index] for index in sorted(order[:count])])
        chosen: list[int] = []
        for index in order:
            if len(chosen) == count:
                break
            try:
                self._decode(self.paths[index], MINIMUM_SIDE)
                chosen.append(index)
            except Rejected as error:
                self._record(Skipped(self.paths[index], error.kind, error.reason))
        if not chosen:
            raise nothing_usable(self.root, len(self), self.skipped)
        return self._part([self.paths[index] for index in sorted(chosen)])

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes, and the first and last 4 KB of each file: 16 hexadecimal digits."""
        if self._fingerprint is None:
            digest = hashlib.sha256(b"grey" if self.keep_grey else b"colour")
            for name, path in zip(self.names, self.paths, strict=True):
                digest.update(name.encode() + b"\0" + self._key(path))
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def describe_skipped(self) -> str:
        """Say what was skipped, for example ``3 skipped (2 grey, 1 corrupt)``; empty when nothing was."""
        return f"{len(self.skipped)} skipped ({_counts(self.skipped)})" if self.skipped else ""

    def without(self, other: PhotoSet) -> PhotoSet:
        """Return the photos that are not in ``other``."""
        gone = set(other.paths)
        return self._part([path for path in self.paths if path not in gone])

    def _decode(self, path: Path, short_side: int | None) -> Any:
        return decode(path, short_side=short_side, keep_grey=self.keep_grey)

    def _key(self, path: Path) -> bytes:
        return content_key(path)

    def _known_bad(self) -> frozenset[Path]:
        if self._bad[0] != len(self.skipped):
            self._bad = len(self.skipped), frozenset(entry.path for entry in self.skipped)
        return self._bad[1]

    def _record(self, entry: Skipped) -> None:
        if entry.path not in self._known_bad():
            self.skipped.append(entry)

    def _part(self, paths: Sequence[Path]) -> PhotoSet:
        return PhotoSet(paths, root=self.root, skipped=self.skipped, keep_grey=self.keep_grey)


def open_photos(folder: str | Path, *, keep_grey: bool = False) -> PhotoSet:
    """Find the photos of a folder and its subfolders, linked ones too; only headers are read (10,000 in a second).

    Hidden files and folders (a leading dot) and ``__MACOSX`` are passed over in silence.

    Raises:
        DataError: No such folder, or not one usable photo in it; the text counts what was skipped.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        got = "a file" if root.exists() else "no such folder"
        fix = "pass the folder that holds the photos"
        raise DataError(explain("photos", expected=f"a folder {root}", got=got, fix=fix))
    paths: list[Path] = []
    skipped: list[Skipped] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF, large pictures: judged below, not printed
        for path in files_of(root):
            try:
                inspect(path, keep_grey=keep_grey)
                paths.append(path)
            except Rejected as error:
                skipped.append(Skipped(path, error.kind, error.reason))
    if not paths:
        raise nothing_usable(root, len(skipped), skipped)
    return PhotoSet(paths, root=root, skipped=skipped, keep_grey=keep_grey)


def embedded_photos(side: Literal["train", "eval"]) -> PhotoSet:
    """Return the sample photos that scikit-image and scikit-learn carry, as the table ``EMBEDDED`` splits them.

    Raises:
        DataError: Neither package is installed with its photos.
    """
    if side not in ("train", "eval"):
        raise DataError(explain("embedded photos", expected="train or eval", got=repr(side), fix="use one of them"))
    paths: list[Path] = []
    missing: list[Path] = []
    for package, name, owner in EMBEDDED:
        spec = importlib.util.find_spec(package)
        folder = Path(spec.origin).parent if spec and spec.origin else Path(package)
        if owner == side:
            (paths if (folder / name).is_file() else missing).append(folder / name)
    skipped = [Skipped(path, "missing", "not in the installed version of its package") for path in missing]
    if not paths:
        fix = "pip install scikit-image scikit-learn, or pass --data FOLDER"
        got = "none of their files"
        raise DataError(explain("embedded photos", expected="scikit-image and scikit-learn", got=got, fix=fix))
    return PhotoSet(paths, root=Path(os.path.commonpath([path.parent for path in paths])), skipped=skipped)


def centre_crop(rgb: Any, height: int, width: int) -> Any:
    """Resize (H, W, 3, 6 or 9) uint8 so that it just covers ``height`` x ``width``, and cut out the centre.

    A raw pair (H, W, 5) uint16 is cut, not resized.

    Raises:
        DataError: A raw pair is smaller.
    """
    return centre_cut(rgb, height, width) if is_raw_pair(rgb) else photo_decode.cover(rgb, height, width)


def centre_square(rgb: Any, size: int) -> Any:
    """Resize the short side of (H, W, 3, 6 or 9) uint8 to ``size`` (antialiased) and cut out the central square.

    A raw pair is cut, not resized.
    """
    return centre_crop(rgb, size, size)


def to_batch(photos: Sequence[Any]) -> Tensor:
    """Stack arrays (H, W, C) of one size into a float32 tensor (N, C, H, W) in [0, 1].

    Photos have three channels, pairs six, photos with two targets nine (uint8), raw pairs five (uint16).

    Raises:
        DataError: No photo, or photos of different sizes.
    """
    import numpy as np
    import torch

    shapes = {tuple(photo.shape) for photo in photos}
    if len(shapes) != 1 or any(len(shape) != 3 or shape[2] not in (3, 5, 6, 9) for shape in shapes):
        fix = "crop them with centre_square first"
        raise DataError(explain("batch", expected="photos (H, W, 3) of one size", got=sorted(shapes), fix=fix))
    stacked = np.ascontiguousarray(np.stack(photos).transpose(0, 3, 1, 2))
    return torch.from_numpy(stacked).float().div_(np.iinfo(stacked.dtype).max)


def files_of(root: Path) -> Iterator[Path]:
    """Walk a folder in sorted order; hidden files and folders and ``__MACOSX`` are left out.

    Linked folders are followed; each folder is entered once, however many links lead to it, so that no link makes a
    loop and no photo comes twice.
    """
    entered: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in entered:
            subfolders.clear()
            continue
        entered.add(place)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder, name)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def content_key(path: Path) -> bytes:
    """Hash the size and both ends of a file: enough to tell photos apart without reading them whole."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(_HEAD)
            stream.seek(max(size - _HEAD, 0))
            return hashlib.sha256(str(size).encode() + head + stream.read(_HEAD)).digest()
    except OSError:
        return b"unreadable"


def _place(path: Path, seed: int) -> float:
    digest = hashlib.sha256(str(seed).encode() + content_key(path)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _counts(skipped: Sequence[Skipped]) -> str:
    counts = Counter(entry.kind for entry in skipped)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def nothing_usable(root: Path, files: int, skipped: Sequence[Skipped], *, fix: str = _USABLE) -> DataError:
    """Return the error that says why not one of ``files`` files can be used."""
    got = f"{files} files, all skipped: {_counts(skipped)}" if skipped else "an empty folder"
    if any(entry.kind == "grey" for entry in skipped):
        fix += ", or keep grey ones with --set data.keep_grey=true"
    if skipped:
        first = skipped[0]
        got += f" (first: {_name(first.path, root)}: {first.reason})"
    return DataError(explain(f"photos in {root}", expected="at least one usable photo", got=got, fix=fix))
