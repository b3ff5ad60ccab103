"""What a target is, what a runner is, and the one check of tensors at their boundary. No runtime is imported here."""

from __future__ import annotations

import importlib
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from models.errors import ConfigError, InputSizeError, PareError, UnsupportedError, UsageError, explain, unforeseen
from models.spec import Precision, SizeRequirements, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.quantization import Quantization
    from models.artifact import Artifact
    from models.progress import Progress

_T = TypeVar("_T")
_RANGE_SLACK = 0.05


class TargetModule(Protocol):
    """What the module of a target has."""

    def export(
        self,
        artifact: Artifact,
        output: Path,
        *,
        precision: Precision,
        input_size: tuple[int, int] = (256, 256),
        dynamic: bool = False,
        quantization: Quantization | None = None,
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Artifact:
        """Convert a ``torch`` artifact and write ``output`` with its sidecar."""

    def open_runner(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> Runner:
        """Load ``path`` for inference, or raise UnsupportedError with the reason."""

    def can_run(self, device: str) -> str | None:
        """Return None where the target runs on ``device`` of this machine, else the reason why not."""


class Tolerance(NamedTuple):
    """Errors of an output against PyTorch FP32 that are allowed.

    Attributes:
        largest: Of any value.
        rms: Root mean square over all values.
    """

    largest: float
    rms: float


@dataclass(frozen=True)
class Target:
    """One row of the table of targets.

    Attributes:
        name: Registry name and CLI verb.
        suffix: Suffix of its artifacts.
        precisions: What it can compute in.
        devices: Names that ``open_runner`` takes, the default first.
        extra: The extra of ``pare`` that brings its packages; empty when none is needed.
        tolerance: Errors against PyTorch FP32 that are allowed by precision, as fractions of the peak to peak of the
            reference outputs. Of INT8 the rms is what an artifact without a record of its own noise may have
            (``export.parity.limits``); single pixels may be far off.
        module: Module with ``export``, ``open_runner`` and ``can_run``.
        dynamic_shapes: Height and width may stay open.
        exports: False for the PyTorch reference, which only runs.
        options: Names that ``options`` takes, with a description each.
        other_suffixes: Suffixes that its runner opens too.
    """

    name: str
    suffix: str
    precisions: tuple[Precision, ...]
    devices: tuple[str, ...]
    extra: str
    tolerance: Mapping[Precision, Tolerance]
    module: str
    dynamic_shapes: bool = True
    exports: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    other_suffixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if missing := [str(p) for p in self.precisions if not min(self.tolerance.get(p, (0,))) > 0]:
            fix = "add the precision to tolerance"
            raise ConfigError(
                explain(f"target {self.name!r}", expected="a tolerance each", got=f"none for {missing}", fix=fix)
            )

    def load(self) -> TargetModule:
        """Import the module of the target."""
        return importlib.import_module(self.module)  # type: ignore[return-value]

    def check_precision(self, precision: Precision) -> None:
        """Raise UnsupportedError when the target has no ``precision``."""
        if precision not in self.precisions:
            expected = " | ".join(str(p) for p in self.precisions)
            fix = "choose one of these with --precision"
            raise UnsupportedError(
                explain(f"precision of target {self.name}", expected=expected, got=precision, fix=fix)
            )

    def check_device(self, device: str) -> None:
        """Raise UnsupportedError when the target knows no such device."""
        if device not in self.devices:
            fix = "choose one of these with --device"
            raise UnsupportedError(
                explain(f"device of target {self.name}", expected=" | ".join(self.devices), got=repr(device), fix=fix)
            )

    def check_options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the options as a dict, or raise UsageError for a name that the target does not take."""
        given = dict(options or {})
        if unknown := sorted(given.keys() - self.options.keys()):
            expected = " | ".join(self.options) or "no options"
            fix = "leave it out, or use one of these"
            raise UsageError(explain(f"options of target {self.name}", expected=expected, got=unknown, fix=fix))
        return given


class Runner(Protocol):
    """A network loaded by a runtime; a context manager.

    Attributes:
        inputs: Tensors that ``infer`` takes.
        outputs: Tensors that it returns.
        device: Where it runs.
        runtime: Runtime and version, for example ``"onnxruntime 1.31.1"``.
        threads: Threads it may use; None where that was left to the runtime.
        load_ms: Time from the file to a session that is ready.
        emulated: True when another runtime computes the same graph: right for quality, meaningless for latency.
        reason: Why it is emulated, else None.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    runtime: str
    threads: int | None
    load_ms: float | None
    emulated: bool
    reason: str | None

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def infer(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Compute the outputs of ``feeds`` (name -> float32 array N, C, H, W). The arrays returned are the caller's."""


class CheckedRunner:
    """Base of the runners: checks feeds at the boundary, once for each shape, then calls ``_run``.

    Args:
        inputs: Tensors in; a static shape must be met exactly, a named dimension is open.
        outputs: Tensors out.
        size: Heights and widths that the network can take.
        device: Where it runs.
        runtime: Runtime and version.
        threads: Threads it may use.
    """

    def __init__(
        self,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        size: SizeRequirements,
        device: str,
        runtime: str,
        threads: int | None = None,
        emulated: bool = False,
        reason: str | None = None,
    ) -> None:
        self.inputs, self.outputs, self.size = inputs, outputs, size
        self.device, self.runtime, self.threads = device, runtime, threads
        self.emulated, self.reason = emulated, reason
        self.load_ms: float | None = None
        self._known: set[tuple[Any, ...]] = set()
        self._is_open = True

    def __enter__(self) -> CheckedRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the session; ``infer`` raises afterwards."""
        self._is_open = False

    def infer(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Compute the outputs of ``feeds`` (name -> float32 array N, C, H, W).

        Names, type and shape are checked when a shape is first seen, the value range on that first call too.

        Raises:
            UsageError: A name, a type, a rank or a range is another one, or the runner is closed.
            InputSizeError: A height, width, batch or channel count that the artifact does not take.
            UnsupportedError: The runtime loads the artifact and fails at running it.
        """
        if not self._is_open:
            raise UsageError(explain("runner", expected="an open runner", got="a closed one", fix="open it again"))
        key = tuple((name, getattr(a, "shape", None), getattr(a, "dtype", None)) for name, a in feeds.items())
        if key not in self._known:
            check_feeds(feeds, self.inputs, self.size)
            self._known.add(key)
        try:
            return self._run(feeds)
        except PareError:
            raise
        except Exception as error:  # runtimes raise their own exceptions, which share no base class
            fix = "export it again without what the message names"
            got = unforeseen(error)
            raise UnsupportedError(explain(self.runtime, expected="an answer", got=got, fix=fix)) from error

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Run the session on checked feeds."""


def timed_load(build: Callable[[], _T]) -> tuple[_T, float]:
    """Call ``build`` and return its result with the time that it took, milliseconds."""
    start = time.perf_counter_ns()
    result = build()
    return result, (time.perf_counter_ns() - start) / 1e6


def check_feeds(
    feeds: Mapping[str, NDArray[np.float32]], inputs: tuple[TensorSpec, ...], size: SizeRequirements
) -> None:
    """Check names, type, shape and value range of ``feeds`` against ``inputs``; see ``CheckedRunner.infer``."""
    names = tuple(spec.name for spec in inputs)
    if set(feeds) != set(names):
        fix = f"pass {{{names[0]!r}: array}}" if len(names) == 1 else "pass one array each"
        raise UsageError(explain("input names", expected=list(names), got=sorted(feeds), fix=fix))
    for spec in inputs:
        _check_array(feeds[spec.name], spec, size)


def _check_array(array: Any, spec: TensorSpec, size: SizeRequirements) -> None:
    what = f"input {spec.name!r}"
    dtype, shape = getattr(array, "dtype", None), getattr(array, "shape", None)
    if dtype is None or shape is None or str(dtype) != spec.dtype:
        got = str(dtype) if dtype is not None else type(array).__name__
        fix = f"array.astype(np.{spec.dtype})"
        raise UsageError(explain(what, expected=f"a numpy array of {spec.dtype}", got=got, fix=fix))
    expected = "(" + ", ".join(str(side) for side in spec.shape) + ")"
    if len(shape) != len(spec.shape):
        fix = "add the batch axis: array[None]" if len(shape) + 1 == len(spec.shape) else "stack arrays as N, C, H, W"
        raise UsageError(explain(what, expected=f"shape {expected}", got=tuple(shape), fix=fix))
    if any(isinstance(want, int) and want != have for want, have in zip(spec.shape, shape, strict=True)):
        fix = "resize, crop or pad to this shape, or export with --dynamic or another --input-size"
        raise InputSizeError(explain(what, expected=f"shape {expected}", got=tuple(shape), fix=fix))
    if len(shape) == 4:
        size.check(int(shape[2]), int(shape[3]))
    if spec.value_range is None or array.size == 0:
        return
    low, high = spec.value_range
    slack = _RANGE_SLACK * (high - low)
    smallest, largest = float(array.min()), float(array.max())
    if not (low - slack <= smallest and largest <= high + slack):
        got = f"values from {smallest:.4g} to {largest:.4g}"
        fix = f"normalize as {spec.color_space}; see the colour contract of the artifact"
        raise UsageError(explain(what, expected=f"values in [{low:g}, {high:g}]", got=got, fix=fix))
