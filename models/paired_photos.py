"""Folders of pairs: ``input/`` and ``target/`` with equal names, whatever the formats: what a person made of a photo.

A pair is one array of six channels: the photo, and behind it the target (a retouched photo, or a map). What happens to
a file beside the table of ``models.photos``:

=================  ==================================================================================
no partner         skipped: the other folder has no file of this name
two of one name    skipped: ``a.jpg`` and ``a.png`` in one folder cannot be told apart
sizes differ       skipped: both pictures must have one height and width (after EXIF orientation)
grey               kept: a map is grey, and a grey photo can be retouched
=================  ==================================================================================

16 bits a channel become 8, as everywhere in ``models.photos``; raw pairs keep them (``models.raw_pairs``).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from models.errors import DataError, explain
from models.photo_decode import Rejected, decode, inspect, upright_size
from models.photos import PhotoSet, Skipped, content_key, files_of, nothing_usable, open_photos

if TYPE_CHECKING:
    from models.tasks.base import Task

INPUT, TARGET = "input", "target"


class PairedPhotos(PhotoSet):
    """Pairs by the path of the photo; ``load`` gives (H, W, 6) uint8.

    Args:
        paths: Photos, in a fixed order.
        partners: Photo -> its target.
        root: Folder that holds ``input`` and ``target``.
        skipped: Files that are not used, with reasons.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        partners: Mapping[Path, Path],
        *,
        root: Path,
        skipped: list[Skipped] | None = None,
    ) -> None:
        super().__init__(paths, root=root, skipped=skipped, keep_grey=True)
        self.partners = partners

    def _decode(self, path: Path, short_side: int | None) -> Any:
        return self._pair(path, self.partners[path], short_side)

    @staticmethod
    def _pair(path: Path, partner: Path, short_side: int | None) -> Any:
        photo = decode(path, short_side=short_side, keep_grey=True)
        target = decode(partner, short_side=short_side, keep_grey=True)
        if photo.shape != target.shape and short_side is not None:  # decoders round a shrunk size differently
            size = (photo.shape[1], photo.shape[0])
            target = np.asarray(Image.fromarray(target).resize(size, Image.Resampling.LANCZOS))
        _check_sizes(photo.shape[:2], target.shape[:2], partner)
        return np.concatenate([photo, target], axis=2)

    def _key(self, path: Path) -> bytes:
        return hashlib.sha256(content_key(path) + content_key(self.partners[path])).digest()

    def _part(self, paths: Sequence[Path]) -> PhotoSet:
        return PairedPhotos(paths, self.partners, root=self.root, skipped=self.skipped)


def is_paired(folder: str | Path) -> bool:
    """Say whether a folder has the layout of pairs.

    Raises:
        DataError: It has only one of the two folders.
    """
    root = Path(folder).expanduser()
    there = [name for name in (INPUT, TARGET) if (root / name).is_dir()]
    if len(there) == 1:
        fix = "add the other one, or pass the folder of photos itself for targets that are made from the photos"
        raise DataError(explain(f"pairs in {root}", expected="folders input and target", got=there[0], fix=fix))
    return bool(there)


def open_pairs(folder: str | Path) -> PairedPhotos:
    """Find the pairs of ``folder/input`` and ``folder/target``, subfolders included; only headers are read.

    Raises:
        DataError: A folder is missing, or there is not one usable pair; the text counts what was skipped.
    """
    root = Path(folder).expanduser()
    partners, skipped = find_pairs(root, check_pair)
    if not partners:
        raise nothing_usable(root, len(skipped), skipped)
    return PairedPhotos(tuple(partners), partners, root=root, skipped=skipped)


def find_pairs(
    root: Path, check: Callable[[Path, Path], None], *, target: str = TARGET
) -> tuple[dict[Path, Path], list[Skipped]]:
    """Return the pairs of ``root`` (input -> target), by name, and what is not one.

    Args:
        root: Folder that holds ``input`` and ``target``.
        check: Raises ``Rejected`` for an input and a target that cannot be used.
        target: Folder of the targets in ``root``.

    Raises:
        DataError: A folder is missing.
    """
    if not is_paired(root):
        fix = "put the photos into input/ and what was made of them into target/, under equal names"
        raise DataError(explain(f"pairs in {root}", expected="folders input and target", got="neither", fix=fix))
    skipped: list[Skipped] = []
    photos, targets = (_by_stem(root / name, skipped) for name in (INPUT, target))
    partners: dict[Path, Path] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF, large pictures: judged below, not printed
        for stem in sorted(photos.keys() | targets.keys()):
            photo, partner = photos.get(stem), targets.get(stem)
            try:
                if photo is None or partner is None:
                    folder = INPUT if photo is None else target
                    raise Rejected("partner", f"has no partner: no {stem}.* in {folder}/")
                check(photo, partner)
                partners[photo] = partner
            except Rejected as error:
                skipped.append(Skipped(photo or partner or root / stem, error.kind, error.reason))
    return partners, skipped


def open_for(folder: str | Path, *, task: Task, keep_grey: bool = False) -> PhotoSet:
    """Open a folder as pairs where the task takes them and the folder has their layout, else as single photos.

    Args:
        folder: Where the photos are.
        task: Says whether it takes pairs, and reads them.
        keep_grey: Keep single photos without chroma where the task would skip them.
    """
    if task.paired and is_paired(folder):
        return task.open_pairs(folder)
    return open_photos(folder, keep_grey=keep_grey or not task.skips_grey)


def _by_stem(folder: Path, skipped: list[Skipped]) -> dict[str, Path]:
    """Return the files of a folder by their path without suffix; of two with one stem, neither."""
    found: dict[str, list[Path]] = {}
    for path in files_of(folder):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    for stem, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            skipped += [Skipped(path, "ambiguous", f"one of several files named {stem}: {names}") for path in paths]
    return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}


def check_pair(photo: Path, target: Path) -> None:
    """Raise ``Rejected`` unless both files are pictures of one size, by their headers."""
    for path in (photo, target):
        inspect(path, keep_grey=True)
    _check_sizes(upright_size(photo), upright_size(target), target)


def _check_sizes(photo: tuple[int, ...], target: tuple[int, ...], path: Path) -> None:
    if photo != target:
        raise Rejected("size", f"is {photo[0]}x{photo[1]}, but its target {path.name} is {target[0]}x{target[1]}")
