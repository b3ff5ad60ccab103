"""Colour look-up tables: ``.cube`` files read and written, and 1D and 3D tables applied to photos.

A 3D table is a tensor (3, B, G, R): output channel, then the nodes of blue, green and red, red fastest, as a ``.cube``
file lists them. A 1D table is (3, L): one curve for each channel. Both hold RGB values for inputs on an even grid from
``domain_min`` to ``domain_max``; inputs outside of the domain take the value at its border.

Source: Adobe, "Cube LUT Specification 1.0" (2013); tetrahedral interpolation: Kasson et al. 1995, "Performing color
space conversions with three-dimensional linear interpolation".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.errors import ConfigError, DataError, RunFolderError, explain

Interpolation = Literal["trilinear", "tetrahedral"]

_SIZES = {"LUT_1D_SIZE": (2, 65536), "LUT_3D_SIZE": (2, 256)}
_DOMAINS = ("DOMAIN_MIN", "DOMAIN_MAX")
_CHUNK = 1 << 21


@dataclass(frozen=True)
class Cube:
    """One look-up table.

    Attributes:
        table: (3, L) for a 1D table, (3, L, L, L) for a 3D one (output, blue, green, red), float32.
        title: What the file calls it.
        domain_min: Input (r, g, b) of the first node.
        domain_max: Input (r, g, b) of the last node.
    """

    table: Tensor
    title: str = ""
    domain_min: tuple[float, float, float] = (0.0, 0.0, 0.0)
    domain_max: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        shape = tuple(self.table.shape)
        if len(shape) not in (2, 4) or shape[0] != 3 or len(set(shape[1:])) != 1 or shape[1] < 2:
            fix = "stack three curves, or a grid of RGB values"
            raise ConfigError(explain("look-up table", expected="(3, L) or (3, L, L, L), L >= 2", got=shape, fix=fix))
        if any(low >= high for low, high in zip(self.domain_min, self.domain_max, strict=True)):
            got = f"{self.domain_min} to {self.domain_max}"
            raise ConfigError(explain("domain", expected="minimum below maximum", got=got, fix="swap them"))

    @property
    def size(self) -> int:
        """Nodes along an axis."""
        return int(self.table.shape[1])

    def apply(self, rgb: Tensor, *, interpolation: Interpolation = "tetrahedral") -> Tensor:
        """Map RGB (N, 3, H, W) through the table; ``interpolation`` is for 3D ones (a 1D table is linear).

        Memory beside input and output stays below 200 MB: pixels go through in chunks.

        Raises:
            ConfigError: Another shape, or no such interpolation.
        """
        if rgb.ndim != 4 or rgb.shape[1] != 3:
            fix = "stack photos as N, C, H, W"
            raise ConfigError(explain("rgb", expected="shape (N, 3, H, W)", got=tuple(rgb.shape), fix=fix))
        kinds = {"trilinear": _trilinear, "tetrahedral": _tetrahedral}
        if interpolation not in kinds:
            got, fix = repr(interpolation), "choose one"
            raise ConfigError(explain("interpolation", expected=" | ".join(kinds), got=got, fix=fix))
        look_up = _curves if self.table.ndim == 2 else kinds[interpolation]
        low = rgb.new_tensor(self.domain_min).view(3, 1)
        span = rgb.new_tensor(self.domain_max).view(3, 1) - low
        result = torch.empty_like(rgb, memory_format=torch.contiguous_format)
        table = self.table.to(rgb)
        for photo, out in zip(rgb.flatten(2), result.flatten(2), strict=True):
            for a, b in zip(photo.split(_CHUNK, 1), out.split(_CHUNK, 1), strict=True):
                b.copy_(look_up(table, ((a - low) / span).clamp(0, 1) * (self.size - 1)))
        return result


def identity_3d(size: int) -> Tensor:
    """Return the 3D table (3, size, size, size) that changes nothing."""
    axis = torch.linspace(0, 1, size)
    blue, green, red = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([red, green, blue])


def _cells(place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Places (3, P) in node units -> lower node (3, P) as integers and the fraction above it."""
    lower = place.floor().clamp_max(size - 2)
    return lower.long(), place - lower


def _curves(table: Tensor, place: Tensor) -> Tensor:
    """1D tables (3, L) at places (3, P) -> (3, P)."""
    lower, fraction = _cells(place, table.shape[1])
    below = table.gather(1, lower)
    return below + fraction * (table.gather(1, lower + 1) - below)


def _corner(table: Tensor, node: Tensor) -> Tensor:
    """Nodes of a flattened 3D table (3, L^3) at flat indices (P,) -> (3, P)."""
    return table.index_select(1, node)


def _trilinear(table: Tensor, place: Tensor) -> Tensor:
    """3D table at places (3, P), interpolated in each axis in turn -> (3, P)."""
    size = table.shape[1]
    (r, g, b), (fr, fg, fb) = _cells(place, size)
    flat, base = table.flatten(1), (b * size + g) * size + r
    result = torch.zeros_like(place)
    for corner in range(8):
        dr, dg, db = corner & 1, corner >> 1 & 1, corner >> 2
        weight = (fr if dr else 1 - fr) * (fg if dg else 1 - fg) * (fb if db else 1 - fb)
        result += weight * _corner(flat, base + (db * size + dg) * size + dr)
    return result


def _tetrahedral(table: Tensor, place: Tensor) -> Tensor:
    """3D table at places (3, P): from the lower corner along the axes, the largest fraction first -> (3, P)."""
    size = table.shape[1]
    (r, g, b), fraction = _cells(place, size)
    flat, node = table.flatten(1), (b * size + g) * size + r
    steps = torch.tensor([1, size, size * size], device=place.device)
    weights, order = fraction.sort(dim=0, descending=True)
    value = _corner(flat, node)
    result = value * (1 - weights[0])
    for rank in range(3):
        node = node + steps[order[rank]]
        left = weights[rank] - (weights[rank + 1] if rank < 2 else 0)
        result += left * _corner(flat, node)
    return result


def read_cube(path: str | Path) -> Cube:
    """Read a ``.cube`` file with a 1D or a 3D table.

    Raises:
        DataError: Missing, or damaged; the text names the line.
    """
    path = Path(path)
    fix = "pass a text file with LUT_1D_SIZE or LUT_3D_SIZE"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(explain(f"{path}", expected="a .cube file", got=error, fix=fix)) from error
    if b"\0" in content:
        raise DataError(explain(f"{path}", expected="a .cube file", got="a binary file", fix=fix))
    try:
        lines = [line.decode("utf-8-sig") for line in content.splitlines()]
    except UnicodeDecodeError:
        lines = [line.decode("latin-1") for line in content.splitlines()]  # titles and comments; numbers are ASCII
    return _Reader(path).read(lines)


class _Reader:
    """The state of reading one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.title, self.size, self.kind, self.size_line = "", 0, "", 0
        self.domain: dict[str, tuple[float, float, float]] = {}
        self.rows: list[tuple[float, float, float]] = []

    def fail(self, line: int, expected: str, got: object, fix: str) -> DataError:
        return DataError(explain(f"{self.path}, line {line}", expected=expected, got=got, fix=fix))

    def read(self, lines: list[str]) -> Cube:
        for number, text in enumerate(lines, start=1):
            words = text.strip().split()
            if not words or words[0].startswith("#"):
                continue
            if words[0][0].isalpha() and words[0].lower() not in ("nan", "inf"):
                self._keyword(number, words, text)
            else:
                self._row(number, words)
        if not self.kind:
            raise self.fail(max(len(lines), 1), "LUT_1D_SIZE or LUT_3D_SIZE", "neither", "add the size")
        wanted = self.size if self.kind == "LUT_1D_SIZE" else self.size**3
        if len(self.rows) != wanted:
            got = f"{len(self.rows)}"
            raise self.fail(len(lines), f"{wanted} rows of values", got, f"check {self.kind} {self.size}")
        shape = (self.size,) if self.kind == "LUT_1D_SIZE" else (self.size,) * 3
        table = torch.tensor(self.rows, dtype=torch.float32).T.reshape(3, *shape).contiguous()
        low, high = self.domain.get("DOMAIN_MIN", (0.0,) * 3), self.domain.get("DOMAIN_MAX", (1.0,) * 3)
        try:
            return Cube(table, self.title, low, high)
        except ConfigError as error:
            raise self.fail(
                self.size_line, "a table with a domain", error, "correct DOMAIN_MIN and DOMAIN_MAX"
            ) from error

    def _keyword(self, number: int, words: list[str], text: str) -> None:
        key = words[0].upper()
        if key == "TITLE":
            title = text.strip()[len("TITLE") :].strip()
            self.title = title[1:-1] if len(title) > 1 and title[0] == title[-1] == '"' else title
        elif key in _SIZES:
            low, high = _SIZES[key]
            if self.kind:
                raise self.fail(number, "one size", f"a second one, {text.strip()!r}", "remove one of both")
            if len(words) != 2 or not words[1].isdigit() or not low <= int(words[1]) <= high:
                raise self.fail(number, f"{key} from {low} to {high}", repr(text.strip()), "correct the size")
            self.kind, self.size, self.size_line = key, int(words[1]), number
        elif key in _DOMAINS:
            self.domain[key] = self._three(number, words[1:])
        elif key in ("LUT_1D_INPUT_RANGE", "LUT_3D_INPUT_RANGE"):
            if len(words) != 3:
                raise self.fail(number, f"{key} MIN MAX", repr(text.strip()), "give two numbers")
            first, last = (self._number(number, word) for word in words[1:])
            self.domain.update(DOMAIN_MIN=(first,) * 3, DOMAIN_MAX=(last,) * 3)
        else:
            known = " | ".join(("TITLE", *_SIZES, *_DOMAINS))
            raise self.fail(number, known, repr(words[0]), "remove the line, or correct the keyword")

    def _row(self, number: int, words: list[str]) -> None:
        if not self.kind:
            raise self.fail(number, "a size before the values", "values", "put LUT_3D_SIZE above them")
        self.rows.append(self._three(number, words))

    def _three(self, number: int, words: list[str]) -> tuple[float, float, float]:
        if len(words) != 3:
            raise self.fail(number, "three numbers", f"{len(words)}", "write red, green and blue")
        red, green, blue = (self._number(number, word) for word in words)
        return red, green, blue

    def _number(self, number: int, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.fail(number, "a finite number", repr(word), "correct the value")
        return value


def write_cube(cube: Cube, path: str | Path) -> None:
    """Write a ``.cube`` file (six decimals), in one step.

    Raises:
        ConfigError: Values that are not finite.
        RunFolderError: The folder cannot be written.
    """
    path = Path(path)
    if not bool(torch.isfinite(cube.table).all()):
        raise ConfigError(explain("look-up table", expected="finite values", got="NaN or infinity", fix="fit it again"))
    kind = "LUT_1D_SIZE" if cube.table.ndim == 2 else "LUT_3D_SIZE"
    lines = [f'TITLE "{" ".join(cube.title.split())}"'] if cube.title else []
    lines.append(f"{kind} {cube.size}")
    for name, values in zip(_DOMAINS, (cube.domain_min, cube.domain_max), strict=True):
        lines.append(f"{name} " + " ".join(f"{value:.9g}" for value in values))
    lines += [" ".join(f"{value:.6f}" for value in row) for row in cube.table.flatten(1).T.tolist()]
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        fix = "free disk space, or choose another path"
        raise RunFolderError(explain(f"writing {path}", expected="a writable folder", got=error, fix=fix)) from error
