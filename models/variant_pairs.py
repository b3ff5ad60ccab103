"""Photos with one target for each of several variants: what a retoucher made of a photo in more than one way.

``input/`` holds the photos, and ``target/`` one folder a variant with files of equal names (``target/volume/a.png`` for
``input/a.jpg``). A photo that lacks one of its targets is skipped with the reason, like what does not fit in
``models.paired_photos``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import DataError, explain
from models.paired_photos import INPUT, TARGET, PairedPhotos, check_pair, find_pairs
from models.photos import PhotoSet, Skipped, content_key, nothing_usable


class VariantPairs(PairedPhotos):
    """Photos with a target a variant; ``load`` gives (H, W, 3 + 3 a variant) uint8: the photo, then its targets.

    Args:
        paths: Photos, in a fixed order.
        partners: Photo -> its targets, in the order of the variants.
        root: Folder that holds ``input`` and ``target``.
        skipped: Files that are not used, with reasons.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Mapping[Path, tuple[Path, ...]],
        *,
        root: Path,
        skipped: list[Skipped] | None = None,
    ) -> None:
        super().__init__(paths, {path: found[0] for path, found in targets.items()}, root=root, skipped=skipped)
        self.targets = targets

    def _decode(self, path: Path, short_side: int | None) -> Any:
        pairs = [self._pair(path, target, short_side) for target in self.targets[path]]
        return np.concatenate([pairs[0][..., :3], *(pair[..., 3:] for pair in pairs)], axis=2)

    def _key(self, path: Path) -> bytes:
        return hashlib.sha256(b"".join(content_key(file) for file in (path, *self.targets[path]))).digest()

    def _part(self, paths: Sequence[Path]) -> PhotoSet:
        return VariantPairs(paths, self.targets, root=self.root, skipped=self.skipped)


def open_variant_pairs(folder: str | Path, variants: Sequence[str]) -> VariantPairs:
    """Find the photos of ``folder/input`` that have a target in each ``folder/target/VARIANT``; only headers are read.

    Raises:
        DataError: A folder is missing, or there is not one usable photo; the text counts what was skipped.
    """
    root = Path(folder).expanduser()
    missing = [name for name in variants if not (root / TARGET / name).is_dir()]
    if missing:
        fix = f"sort the targets by variant, under the names of the photos in {INPUT}/"
        expected = f"folders {', '.join(f'{TARGET}/{name}' for name in variants)}"
        got = f"no {', '.join(f'{TARGET}/{name}' for name in missing)}"
        raise DataError(explain(f"pairs in {root}", expected=expected, got=got, fix=fix))
    found = [find_pairs(root, check_pair, target=f"{TARGET}/{name}") for name in variants]
    usable = [path for path in found[0][0] if all(path in partners for partners, _ in found)]
    skipped = list({entry.path: entry for _, entries in found for entry in entries}.values())
    if not usable:
        raise nothing_usable(root, len(skipped), skipped)
    targets = {path: tuple(partners[path] for partners, _ in found) for path in usable}
    return VariantPairs(usable, targets, root=root, skipped=skipped)
