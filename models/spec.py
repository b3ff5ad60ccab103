"""What a network takes and gives: plain frozen dataclasses, no torch import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from models.errors import ConfigError, InputSizeError, explain


class Precision(str, Enum):
    """Arithmetic that an artifact computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at the boundary of a network.

    Attributes:
        name: Graph name, for example ``"input"``.
        shape: N, C, H, W; a string names a dynamic dimension, for example ``(1, 3, "H", "W")``.
        dtype: Element type, numpy spelling.
        value_range: Smallest and largest value that has a meaning, or None when unbounded.
        color_space: What the channels are, for example ``"srgb"`` or ``"lab-l/100"``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    value_range: tuple[float, float] | None = None
    color_space: str = "srgb"


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
    weights: str | None = None
    source: str = ""
    licence: str = "Apache-2.0"
