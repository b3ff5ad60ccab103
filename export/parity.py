"""The one parity test: an artifact against PyTorch FP32, on the same inputs, with its target's own tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import export
from export.contract import contract_in
from export.golden import expected_of, feeds_of, photo_size, random_photo
from export.registry import get_target
from models.artifact import Artifact
from models.errors import ParityError, UnsupportedError, explain

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from export.target import Runner

    Feeds = dict[str, NDArray[np.float32]]

RMS_SHARE = 0.25


@dataclass(frozen=True)
class ParityResult:
    """How far an artifact is from PyTorch.

    Attributes:
        target: Name of the target.
        precision: Precision of the artifact.
        runtime: What computed it; None when nothing could.
        emulated: Another runtime than the target's own computed the same graph.
        tolerance: Largest error allowed, as a fraction of ``span``.
        span: Largest minus smallest value of the reference outputs.
        max_abs: Largest absolute error, output units; None when nothing could compute it.
        rms: Root mean square error, output units; None likewise.
        psnr_db: ``20 log10(span / rms)``; None when the error is zero or unknown.
        passed: ``max_abs <= tolerance * span`` and ``rms <= tolerance * span / 4``; None when unknown.
        reason: Why it is emulated or unknown, else None.
    """

    target: str
    precision: str
    runtime: str | None
    emulated: bool
    tolerance: float
    span: float
    max_abs: float | None = None
    rms: float | None = None
    psnr_db: float | None = None
    passed: bool | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def allowed(self) -> str:
        """Say what is allowed, output units."""
        limit = self.tolerance * self.span
        return f"an error of at most {limit:.3g} and {limit * RMS_SHARE:.3g} rms"

    def found(self) -> str:
        """Say what was found, output units."""
        return "nothing" if self.max_abs is None else f"{self.max_abs:.3g} and {self.rms:.3g} rms"


def parity(
    reference: Artifact,
    artifact: Artifact,
    photos: Sequence[Tensor] | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
) -> ParityResult:
    """Compare ``artifact`` with the network it was exported from.

    Args:
        reference: ``torch`` artifact; computed eagerly in FP32.
        artifact: What was exported from it.
        photos: (1, 3, H, W) in [0, 1] each; None takes two smooth random ones of the artifact's size.
        device: Where ``artifact`` runs; None takes its target's first device, or its emulation where that is absent.
        threads: Threads of both runtimes.

    Raises:
        UnsupportedError: ``device`` was named and is not there.
    """
    target = get_target(artifact.format)
    tolerance = target.tolerance[artifact.precision]
    runner, reason = open_any(artifact.path, device=device, threads=threads)
    if runner is None:
        return ParityResult(target.name, artifact.precision.value, None, False, tolerance, 0.0, reason=reason)
    contract = contract_in(artifact)
    chosen = photos if photos is not None else [random_photo(photo_size(contract), seed=seed) for seed in (0, 1)]
    with runner:
        answers = [runner.infer(feeds_of(rgb, contract)) for rgb in chosen]
    with export.open_runner(reference.path, threads=threads) as torch_runner:
        expected = [expected_of(rgb, contract, torch_runner) for rgb in chosen]
    return compare(artifact, runner, tolerance, expected, answers, reason)


def passes(max_abs: float, rms: float, limit: float) -> bool:
    """Return whether the largest error is within ``limit`` and the root mean square error within a quarter of it."""
    return max_abs <= limit and rms <= limit * RMS_SHARE


def check_parity(
    reference: Artifact, artifact: Artifact, photos: Sequence[Tensor] | None = None, *, threads: int | None = None
) -> ParityResult:
    """Return ``parity(...)``.

    Raises:
        ParityError: The artifact computes something else than PyTorch.
    """
    result = parity(reference, artifact, photos, threads=threads)
    if result.passed is False:
        fix = "keep the layers that differ in higher precision, or look at it with --no-check"
        what = f"{artifact.path.name} against PyTorch"
        raise ParityError(explain(what, expected=result.allowed(), got=result.found(), fix=fix))
    return result


def open_any(path: Path, *, device: str | None = None, threads: int | None = None) -> tuple[Runner | None, str | None]:
    """Open the artifact's own runner; without a named device, and where it cannot run, its emulation, or nothing.

    Returns:
        The runner or None; and why it is not the target's own, or None.

    Raises:
        UnsupportedError: ``device`` was named and is not there.
    """
    try:
        runner = export.open_runner(path, device, threads)
        return runner, runner.reason
    except UnsupportedError as error:
        if device is not None:
            raise
        reason = str(error)
    try:
        runner = export.open_emulated(path, threads)
        return runner, runner.reason or reason
    except UnsupportedError:
        return None, reason


def compare(
    artifact: Artifact,
    runner: Runner,
    tolerance: float,
    expected: Sequence[Feeds],
    answers: Sequence[Feeds],
    reason: str | None,
) -> ParityResult:
    """Return the errors of ``answers`` against ``expected`` over all photos and outputs."""
    errors, values = [], []
    for want, got in zip(expected, answers, strict=True):
        for name, array in want.items():
            errors.append(np.abs(got[name].astype(np.float64) - array).ravel())
            values.append(array.ravel())
    error, value = np.concatenate(errors), np.concatenate(values)
    span, rms = float(value.max() - value.min()), float(np.sqrt(np.mean(error**2)))
    return ParityResult(
        target=artifact.format,
        precision=artifact.precision.value,
        runtime=runner.runtime,
        emulated=runner.emulated,
        tolerance=tolerance,
        span=span,
        max_abs=float(error.max()),
        rms=rms,
        psnr_db=20 * math.log10(span / rms) if rms > 0 and span > 0 else None,
        passed=passes(float(error.max()), rms, tolerance * span),
        reason=reason,
    )
