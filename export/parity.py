"""The one parity test: an artifact against PyTorch FP32, on the same inputs, with its target's own tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import export
from export.contract import contract_in, is_picture
from export.golden import expected_of, feeds_of, photo_size, random_photo, sample_photo
from export.quantization import METADATA_KEY
from export.registry import get_target
from export.target import Tolerance
from models.artifact import Artifact
from models.errors import ParityError, UnsupportedError, explain
from models.registry import get_task
from models.spec import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from export.contract import Contract
    from export.target import Runner

    Feeds = dict[str, NDArray[np.float32]]

#: An INT8 artifact may be so many times as far from FP32 as INT8 itself took the network when it was quantized, and has
#: the tolerance of FP16 at least.
NOISE_MARGIN = 3.0
#: An FP32 artifact may be so many times as far from PyTorch's FP32 as that is from FP64: a runtime that adds a thousand
#: products one after the other was found five times as far on one processor, 18 times on another.
OWN_MARGIN = 30.0
#: Largest error of rounding a value, as a share of it.
_ROUNDING = {Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}


@dataclass(frozen=True)
class ParityResult:
    """How far an artifact is from PyTorch.

    Attributes:
        target: Name of the target.
        precision: Precision of the artifact.
        runtime: What computed it; None when nothing could.
        emulated: Another runtime than the target's own computed the same graph.
        span: Largest minus smallest value of the reference outputs.
        limit: Largest error allowed, output units.
        rms_limit: Largest root mean square error allowed, output units.
        max_abs: Largest absolute error, output units; None when nothing could compute it.
        rms: Root mean square error, output units; None likewise.
        psnr_db: ``20 log10(span / rms)``; None when the error is zero or unknown.
        passed: ``max_abs <= limit`` and ``rms <= rms_limit``; None when unknown.
        reason: Why it is emulated or unknown, else None.
        own_max_abs: Largest error of PyTorch's FP32 against its FP64; measured where an FP32 artifact is beyond the
            tolerance of its target, which then is ``OWN_MARGIN`` times what FP32 itself rounds; else None.
        own_rms: Root mean square of the same.
    """

    target: str
    precision: str
    runtime: str | None
    emulated: bool
    span: float = 0.0
    limit: float = 0.0
    rms_limit: float = 0.0
    max_abs: float | None = None
    rms: float | None = None
    psnr_db: float | None = None
    passed: bool | None = None
    reason: str | None = None
    own_max_abs: float | None = None
    own_rms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @property
    def misses_fp32(self) -> bool:
        """Whether this is an FP32 artifact beyond the tolerance of its target, its own rounding not yet looked at."""
        return self.passed is False and self.precision == Precision.FP32.value and self.own_rms is None

    def allowed(self) -> str:
        """Say what is allowed, output units."""
        is_wider = self.own_rms is not None and self.rms_limit == OWN_MARGIN * self.own_rms
        own = f" ({self.own_rms:.3g} rms is what FP32 itself rounds in PyTorch)" if is_wider else ""
        return f"an error of at most {self.limit:.3g} and {self.rms_limit:.3g} rms{own}"

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
        photos: (1, 3, H, W) in [0, 1] each; None takes two smooth random ones of the artifact's size, one of them black
            in a corner and white in another, where divisions and roots show themselves; of INT8, whose ranges are
            those of photos, an embedded photo.
        device: Where ``artifact`` runs; None takes its target's first device, or its emulation where that is absent.
        threads: Threads of both runtimes.

    Raises:
        UnsupportedError: ``device`` was named and is not there.
    """
    target = get_target(artifact.format)
    runner, reason = open_any(artifact.path, device=device, threads=threads)
    if runner is None:
        return ParityResult(target.name, artifact.precision.value, None, False, reason=reason)
    contract = contract_in(artifact)
    chosen = photos if photos is not None else _photos(photo_size(contract), artifact.precision)
    with runner:
        answers = [runner.infer(feeds_of(rgb, contract)) for rgb in chosen]
    with export.open_runner(reference.path, threads=threads) as torch_runner:
        expected = [expected_of(rgb, contract, torch_runner) for rgb in chosen]
    result = compare(artifact, runner, expected, answers, reason)
    own = own_rounding(reference, contract, chosen, expected, threads=threads) if result.misses_fp32 else None
    return compare(artifact, runner, expected, answers, reason, own) if own else result


def own_rounding(
    reference: Artifact,
    contract: Contract,
    photos: Sequence[Tensor],
    expected: Sequence[Feeds],
    *,
    threads: int | None = None,
) -> Tolerance | None:
    """Return how far PyTorch's FP32 is from its FP64, output units; None where the network does not compute in FP64.

    Two ways to write one sum differ by so much: systems of equations and sorts of nearly equal values by far more than
    an exporter's rounding.

    Args:
        reference: ``torch`` artifact.
        contract: Of the artifact that is judged.
        photos: (1, 3, H, W) in [0, 1] each.
        expected: FP32's answers to them.
        threads: Of PyTorch.
    """
    import torch

    from export.torch_runner import TorchRunner

    with TorchRunner(reference.path, threads=threads, dtype=torch.float64) as exact:
        try:
            answers = [expected_of(rgb, contract, exact) for rgb in photos]
        except Exception:  # users' code, in a type that it was not written for
            return None
    largest, rms, _, _ = _errors(answers, expected)
    return Tolerance(largest, rms) if math.isfinite(rms) else None


def _photos(size: tuple[int, int], precision: Precision) -> list[Tensor]:
    if precision is Precision.INT8:
        return [sample_photo(size)]
    plain, clipped = (random_photo(size, seed=seed) for seed in (0, 1))
    height, width = size[0] // 4, size[1] // 4
    clipped[..., :height, :width], clipped[..., -height:, -width:] = 0.0, 1.0
    return [plain, clipped]


def limits(artifact: Artifact, low: float, high: float, own: Tolerance | None = None) -> Tolerance:
    """Return the errors against PyTorch FP32 that are allowed to ``artifact``, output units.

    The shares of its target and precision of the span of the outputs, ``low`` to ``high``, and no less than what
    rounding the outputs alone takes. An INT8 artifact whose record says how far rounding takes this network
    (``Quantization.noise``) may be ``NOISE_MARGIN`` times as far: networks differ by a factor of 100 in that, and a
    wrong scale, zero point or channel is seen only against the noise of its own network. An FP32 artifact may be
    ``OWN_MARGIN`` times as far as ``own``, what FP32 itself rounds, where that is known.
    """
    tolerance, span = get_target(artifact.format).tolerance, high - low
    step = max(abs(low), abs(high)) * _ROUNDING.get(artifact.precision, 0.0)
    largest, rms = (max(share * span, 2 * step) for share in tolerance[artifact.precision])
    noise = (artifact.metadata.get(METADATA_KEY) or {}).get("noise")
    contract = contract_in(artifact)
    rendered = is_picture(contract.outputs[0], get_task(contract.task).outputs[0])
    if artifact.precision is Precision.INT8 and noise is not None and not rendered:
        rms = max(NOISE_MARGIN * float(noise), tolerance[Precision.FP16].rms * span)
    if own is not None:
        largest, rms = max(largest, OWN_MARGIN * own.largest), max(rms, OWN_MARGIN * own.rms)
    return Tolerance(largest, rms)


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
    expected: Sequence[Feeds],
    answers: Sequence[Feeds],
    reason: str | None,
    own: Tolerance | None = None,
) -> ParityResult:
    """Return the errors of ``answers`` against ``expected`` over all photos and outputs.

    Args:
        artifact: What answered.
        runner: What computed it.
        expected: PyTorch's answers in FP32.
        answers: The artifact's.
        reason: Why ``runner`` is not the target's own.
        own: ``own_rounding``, where it is known.
    """
    largest, rms, low, high = _errors(expected, answers)
    span = high - low
    limit, rms_limit = limits(artifact, low, high, own)
    return ParityResult(
        target=artifact.format,
        precision=artifact.precision.value,
        runtime=runner.runtime,
        emulated=runner.emulated,
        span=span,
        limit=limit,
        rms_limit=rms_limit,
        max_abs=largest,
        rms=rms,
        psnr_db=20 * math.log10(span / rms) if rms > 0 and span > 0 else None,
        passed=largest <= limit and rms <= rms_limit,
        reason=reason,
        own_max_abs=None if own is None else own.largest,
        own_rms=None if own is None else own.rms,
    )


def _errors(expected: Sequence[Feeds], answers: Sequence[Feeds]) -> tuple[float, float, float, float]:
    """Largest and root mean square error over all photos and outputs; smallest and largest value expected."""
    errors, values = [], []
    for want, got in zip(expected, answers, strict=True):
        for name, array in want.items():
            errors.append(np.abs(got[name].astype(np.float64) - array).ravel())
            values.append(array.ravel())
    error, value = np.concatenate(errors), np.concatenate(values)
    return float(error.max()), float(np.sqrt(np.mean(error**2))), float(value.min()), float(value.max())
