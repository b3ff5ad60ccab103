"""Latency under pytest-benchmark: ``pytest benchmarks --benchmark-only [--run runs/mine]``.

One test an artifact: the engine's call on one photo, after warm-up, threads pinned. What cannot run on this machine is
skipped with the reason. Unlike ``python -m benchmarks run`` the contestants are not interleaved: use this to follow one
artifact over time (``--benchmark-autosave --benchmark-compare``), the report to compare artifacts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.contest import Contestant, open_contestants
from benchmarks.quality import Photos
from benchmarks.run import feed
from models.photos import embedded_photos
from models.registry import get_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.artifact import Artifact


@pytest.fixture
def contestant(artifact: Artifact, threads: int, input_size: tuple[int, int]) -> Iterator[Contestant]:
    """The artifact with its runner open; skips what cannot be timed here."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        (one,) = open_contestants([artifact], stack, threads=threads, input_size=input_size, probes=False)
        if not one.can_be_timed:
            pytest.skip("; ".join(f"{what}: {why}" for what, why in one.reasons.items()))
        yield one


def test_latency(contestant: Contestant, input_size: tuple[int, int], benchmark: Any) -> None:
    """One call of the engine, ms; machine-readable facts ride in ``extra_info``."""
    artifact, runner = contestant.artifact, contestant.runner
    photo = Photos.of(embedded_photos("eval"), input_size, limit=1).load(0)
    inputs = feed(contestant.subject, get_task(artifact.task), photo)
    benchmark.group = artifact.task
    benchmark.extra_info.update(
        model=artifact.model,
        target=artifact.format,
        precision=artifact.precision.value,
        stages=list(artifact.stages),
        runtime=runner.runtime if runner else "",
        threads=runner.threads if runner else None,
        height=input_size[0],
        width=input_size[1],
    )
    for _ in range(5):
        contestant.infer(inputs)
    output = benchmark(contestant.infer, inputs)
    assert output.shape[-2:] == inputs.shape[-2:] or artifact.task != "colorize"
