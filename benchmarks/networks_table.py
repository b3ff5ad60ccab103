"""The table of ``python -m benchmarks networks``: a row a network, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import describe_machine
from benchmarks.markdown import table
from benchmarks.view import BUSY_LIMIT, number, short
from benchmarks.zoo_table import Engine
from models.artifact import write_json

if TYPE_CHECKING:
    from benchmarks.settings import Settings

SCHEMA = 1


@dataclass(frozen=True)
class NetworkRow:
    """What one network costs. Unknown is None.

    Attributes:
        model: Registry name.
        params_m: Parameters, millions.
        gmacs: Multiply-adds at this size, thousand millions.
        height: Of the input, pixels.
        width: Of the input, pixels.
        torch_ms: Median of one call of PyTorch eager FP32.
        engines: One a target and precision.
        smoothness: Mean gradient of the output over that of the target; None for untrained weights.
        interference: Part of the processors that other processes used meanwhile, 0 to 1.
        groups: How many groups the engines were timed in, one after another: 1 where memory held all of them.
    """

    model: str
    params_m: float
    gmacs: float
    height: int
    width: int
    torch_ms: float | None
    engines: tuple[Engine, ...]
    smoothness: float | None
    interference: float | None
    groups: int = 1

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> NetworkRow:
        """Read what ``dataclasses.asdict`` gave.

        Raises:
            TypeError: A field is unknown or missing.
        """
        return cls(**{**content, "engines": tuple(Engine(**engine) for engine in content["engines"])})


def write_networks(out: Path, rows: Sequence[NetworkRow], settings: Settings) -> None:
    """Write ``networks.json`` and ``networks.md`` into ``out``."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": describe_machine(threads=settings.threads).to_json(),
        "settings": settings.to_json(),
        "rows": [asdict(row) for row in rows],
    }
    write_json(out / "networks.json", content)
    (out / "networks.md").write_text(markdown(rows, content["machine"], settings), encoding="utf-8")


def markdown(rows: Sequence[NetworkRow], machine: Mapping[str, Any], settings: Settings) -> str:
    """Render ``networks.md``: the table, what could not be timed and why, and the machine."""
    pairs = {(engine.target, engine.precision): None for row in rows for engine in row.engines}
    head = ["Network", "Params M", "GMACs", "PyTorch ms", *(f"{target} {kind} ms" for target, kind in pairs)]
    body = []
    for row in rows:
        engines = {(engine.target, engine.precision): engine for engine in row.engines}
        cells = [row.model, number(row.params_m, 2), number(row.gmacs, 1), short(row.torch_ms)]
        body.append([*cells, *(_cell(engines.get(pair)) for pair in pairs), number(row.smoothness, 2)])
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for engine in row.engines:
            if engine.reason:
                reasons.setdefault(engine.reason, []).append(f"{row.model} {engine.target} {engine.precision}")
    height, width = settings.input_size
    said = f"1x{height}x{width}, {settings.threads} threads, {machine.get('cpu', 'unknown processor')}: medians of one "
    said += "call, the engines of a network interleaved; `~`: quartiles further apart than 10%."
    busy = [f"{row.model} {row.interference:.0%}" for row in rows if (row.interference or 0.0) > BUSY_LIMIT]
    notes = [f"> Other processes used the processors meanwhile: {', '.join(busy)}."] if busy else []
    if split := [f"{row.model} in {row.groups} groups" for row in rows if row.groups > 1]:
        notes.append(f"> Not interleaved, for memory did not hold all engines at once: {', '.join(split)}.")
    why = [f"- {', '.join(who)}: {reason}" for reason, who in reasons.items()]
    parts = ["# Networks", said, *notes, table([*head, "Smoothness"], body)]
    return "\n\n".join([*parts, *(["## What was not timed, and why", "\n".join(why)] if why else [])]) + "\n"


def _cell(engine: Engine | None) -> str:
    if engine is None:
        return "–"
    if engine.p50_ms is None:
        return "no" if engine.status == "unsupported" else engine.status
    return short(engine.p50_ms) + ("~" if engine.is_noisy else "")
