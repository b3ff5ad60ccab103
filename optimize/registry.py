"""The table of stages: explicit rows, modules imported on use, duplicates rejected. No torch import."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from models.errors import ConfigError, UnknownNameError, explain

if TYPE_CHECKING:
    from optimize.stage import Stage


@dataclass(frozen=True)
class StageRow:
    """One row of the table.

    Attributes:
        name: Registry name and CLI verb.
        module: Module with ``name``, ``config_type`` and ``run`` (see ``optimize.stage.Stage``).
        about: One line for people.
        in_pipeline: Whether ``run`` can use it: it takes an artifact and returns a smaller or faster one.
        photos: Photos of the context that its result depends on; when others change it is not run again.
        times_engines: Its result depends on how fast engines are, and so on the number of their threads.
    """

    name: str
    module: str
    about: str
    in_pipeline: bool = True
    photos: tuple[str, ...] = ("train", "eval")
    times_engines: bool = False


_ROWS = (
    StageRow("train", "optimize.train", "train a teacher from photos", in_pipeline=False),
    StageRow("distill", "optimize.distill", "teach a small student what the teacher answers"),
    StageRow("prune", "optimize.prune", "remove channels, to a ratio or to a measured latency", times_engines=True),
    StageRow(
        "quantize", "optimize.quantize", "calibrate INT8 on photos, layer by layer", photos=("eval", "calibration")
    ),
)


def _table(rows: tuple[StageRow, ...]) -> dict[str, StageRow]:
    table: dict[str, StageRow] = {}
    for row in rows:
        if row.name in table:
            raise ConfigError(explain("stages", expected="each name once", got=f"{row.name!r} twice", fix="rename it"))
        table[row.name] = row
    return table


STAGES: Mapping[str, StageRow] = _table(_ROWS)


def get_row(name: str) -> StageRow:
    """Return the row of the stage ``name``.

    Raises:
        UnknownNameError: No such stage.
    """
    if name not in STAGES:
        raise UnknownNameError("stage", name, STAGES)
    return STAGES[name]


def get_stage(name: str) -> Stage:
    """Import the stage ``name``.

    Raises:
        UnknownNameError: No such stage.
    """
    return cast("Stage", importlib.import_module(get_row(name).module))
