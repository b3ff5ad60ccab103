"""The contract of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from models.spec import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class Task(ABC):
    """Photo -> (input, target), and (input, output) -> displayable RGB.

    Attributes:
        name: Registry name.
        inputs: Tensors that the network takes.
        outputs: Tensors that it gives.
        metrics: Names of the metrics that matter, in the order of the report.
        output_scale: Output units of one step that a person can see; losses divide by it.
        do_nothing: What the do-nothing baseline is, in words.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[TensorSpec, ...]]
    outputs: ClassVar[tuple[TensorSpec, ...]]
    metrics: ClassVar[tuple[str, ...]] = ("lpips", "psnr", "ssim", "delta_e")
    output_scale: ClassVar[float] = 1.0
    do_nothing: ClassVar[str] = "the input, unchanged"

    @abstractmethod
    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Turn photos (N, 3, H, W) in [0, 1] into network input and target, both (N, C, H, W)."""

    @abstractmethod
    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Turn network input and output into RGB (N, 3, H, W) in [0, 1]."""

    @abstractmethod
    def baseline(self, inputs: Tensor) -> Tensor:
        """Return the output (N, C, H, W) of doing nothing, to compare with."""

    def loss_weight(self, target: Tensor) -> Tensor:
        """Return a per-pixel loss weight (N, 1, H, W) for ``target``; ones unless the task says otherwise."""
        return target.new_ones(target.shape[0], 1, *target.shape[2:])
