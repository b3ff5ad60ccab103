"""Which network goes to which target in which precision: some in the usual suite, all with PARE_EVERY_EXPORT=1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from export.registry import TARGETS, list_targets
from models.spec import Precision

Case = tuple[str, str, Precision]


def export_cases(names: Iterable[str], usual: Callable[[Case], bool]) -> list[Case]:
    """Return (network, target, precision) of what ``usual`` says yes to; of all where PARE_EVERY_EXPORT is set."""
    every = [(name, target, kind) for name in names for target in list_targets() for kind in TARGETS[target].precisions]
    return every if os.environ.get("PARE_EVERY_EXPORT") else [case for case in every if usual(case)]
