"""What a network takes and gives: plain frozen dataclasses, no torch import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal

from models.errors import ConfigError, InputSizeError, explain

MAX_THREADS = 512


class Precision(str, Enum):
    """Arithmetic that an artifact computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    def __str__(self) -> str:
        return self.value


def check_threads(threads: int | None) -> None:
    """Raise ConfigError for a number of threads that no runtime can start; None leaves the number to the runtime.

    Far more threads than this end a process without a word: OpenMP finds no memory for their stacks.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        fix = "use the number of physical cores, or leave it out"
        raise ConfigError(explain("threads", expected=f"1 to {MAX_THREADS}", got=threads, fix=fix))


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at the boundary of a network.

    Attributes:
        name: Graph name, for example ``"input"``.
        shape: N, C, H, W; a string names a dynamic dimension, for example ``(1, 3, "H", "W")``; of an output ``"2H"``
            says that it is twice the height of the input.
        dtype: Element type, numpy spelling.
        value_range: Smallest and largest value that has a meaning, or None when unbounded.
        color_space: What the channels are, for example ``"srgb"`` or ``"lab-l/100"``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    value_range: tuple[float, float] | None = None
    color_space: str = "srgb"

    def at(self, **sides: int) -> TensorSpec:
        """Return the spec with the dimensions named in ``sides`` fixed: ``spec.at(N=1, H=256, W=256)``."""
        return replace(self, shape=tuple(_side(side, sides) for side in self.shape))

    @property
    def upscale(self) -> int:
        """Height of this output over that of the input: 2 for ``"2H"``; 1 where the height is a fixed number."""
        return int(self.at(H=1).shape[2]) if isinstance(self.shape[2], str) else 1


def _side(side: int | str, known: Mapping[str, int]) -> int | str:
    """Return the length of ``"H"`` or ``"2H"`` where H is known, else what was given."""
    if isinstance(side, int):
        return side
    name = side.lstrip("0123456789")
    return known[name] * int(side[: -len(name)] or 1) if name in known else side


@dataclass(frozen=True)
class SizeRequirements:
    """Heights and widths that a network can take.

    Attributes:
        minimum: Smallest height and width, pixels.
        multiple_of: Height and width must be a multiple of this, pixels.
    """

    minimum: int = 1
    multiple_of: int = 1

    def check(self, height: int, width: int) -> None:
        """Raise InputSizeError when the network cannot take ``height`` x ``width``."""
        bad = [side for side in (height, width) if side < self.minimum or side % self.multiple_of]
        if bad:
            expected = f"height and width of at least {self.minimum} and a multiple of {self.multiple_of}"
            fit = self.fit(height, width)
            fix = f"resize, crop or pad to {fit[0]}x{fit[1]}"
            raise InputSizeError(explain("input size", expected=expected, got=f"{height}x{width}", fix=fix))

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest allowed (height, width) that holds the given one."""
        step = self.multiple_of

        def up(side: int) -> int:
            return -(-max(side, self.minimum, 1) // step) * step

        return up(height), up(width)


@dataclass(frozen=True)
class Control:
    """A strength knob that stays adjustable after export.

    Attributes:
        name: Graph input or blend parameter.
        kind: ``graph_input`` (a run-time input) or ``weight_blend`` (fixed when the weights are blended).
        minimum: Smallest value.
        maximum: Largest value.
        default: Value used where none is given.
    """

    name: str
    kind: Literal["graph_input", "weight_blend"]
    minimum: float
    maximum: float
    default: float

    @property
    def tensor(self) -> TensorSpec:
        """The graph input of a run-time control: one value, shape (1,)."""
        return TensorSpec(self.name, (1,), value_range=(self.minimum, self.maximum), color_space="control")

    def __post_init__(self) -> None:
        if not self.minimum <= self.default <= self.maximum:
            expected = f"minimum <= default <= maximum for control {self.name!r}"
            got = f"{self.minimum}, {self.default}, {self.maximum}"
            raise ConfigError(explain("control range", expected=expected, got=got, fix="put the default inside"))


@dataclass(frozen=True)
class ModelSpec:
    """One row of the model table.

    Attributes:
        name: Registry name.
        task: Name of the task that prepares its input and renders its output.
        factory: ``"module:function"`` that builds the ``nn.Module``; imported on use.
        defaults: Keyword arguments of the factory.
        inputs: Tensors in, in call order.
        outputs: Tensors out.
        size: Heights and widths it can take.
        controls: Strength knobs.
        role: ``teacher`` or ``student``.
        student: Registry name of the default student of a teacher.
        feature: Name of the submodule whose output (N, C, h, w) distillation matches, or None.
        fit: Settings of its training (``optimize.loop.FitConfig``) that take it further than the usual ones.
        weights: File name in ``models/weights`` of the shipped checkpoint, or None.
        source: Paper or repository of the architecture.
        licence: Licence of the shipped weights.
    """

    name: str
    task: str
    factory: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    size: SizeRequirements = SizeRequirements()
    controls: tuple[Control, ...] = ()
    role: Literal["teacher", "student"] = "teacher"
    student: str | None = None
    feature: str | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    source: str = ""
    licence: str = "Apache-2.0"

    @property
    def graph_controls(self) -> tuple[Control, ...]:
        """The controls that are inputs of an exported graph."""
        return tuple(control for control in self.controls if control.kind == "graph_input")

    @property
    def graph_inputs(self) -> tuple[TensorSpec, ...]:
        """What an exported graph takes: ``inputs``, then one (1,) tensor a run-time control."""
        return (*self.inputs, *(control.tensor for control in self.graph_controls))

    @property
    def packed_channels(self) -> int:
        """Channels of the one tensor that holds the image and its controls (``models.controls``)."""
        return int(self.inputs[0].shape[1]) + len(self.graph_controls)
