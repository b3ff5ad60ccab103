"""The contract of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from models.errors import UnsupportedError, explain
from models.spec import Control, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from models.photos import PhotoSet

    Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a training photo (to both pictures of a pair alike) without making its target wrong.

    Attributes:
        horizontal_flip: Mirror left and right.
        vertical_flip: Mirror top and bottom: shading that is painted for light from above would be taught upside down.
        tone_jitter: Shift the gamma of the photo. Never done to a pair, whose target is another picture.
    """

    horizontal_flip: bool = True
    vertical_flip: bool = False
    tone_jitter: bool = True


class Task(ABC):
    """Photo -> (input, target), and (input, output) -> displayable RGB.

    Attributes:
        name: Registry name.
        inputs: Tensors that the network takes.
        outputs: Tensors that it gives.
        metrics: The metrics that matter, the most important one first: names of ``benchmarks.metrics``, and functions
            of your own (preds, target) -> (N,) of RGB (N, 3, H, W) in [0, 1], which scores and reports show by name.
        output_scale: Output units of one step that a person can see; losses divide by it.
        do_nothing: What the do-nothing baseline is, in words.
        paired: ``prepare`` also takes what ``open_pairs`` finds; unless that is overridden, pairs (N, 6, H, W): the
            photo, and behind it what a person made of it.
        augmentation: What may be done to training photos.
        controls: Run-time controls that ``prepare`` packs behind the image channels of its input.
        draws: ``prepare`` draws noise or control values from the content of a photo: a mirrored crop gives others.
        skips_grey: Photos without chroma are left out, unless the recipe keeps them.
        photo_scale: Height and width of a photo over those of the network input made of it.
        student: Registry name of the student of a teacher that names none.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[TensorSpec, ...]]
    outputs: ClassVar[tuple[TensorSpec, ...]]
    metrics: ClassVar[tuple[str | Metric, ...]] = ("lpips", "psnr", "ssim", "delta_e")
    output_scale: ClassVar[float] = 1.0
    do_nothing: ClassVar[str] = "the input, unchanged"
    paired: ClassVar[bool] = False
    augmentation: ClassVar[Augmentation] = Augmentation()
    controls: ClassVar[tuple[Control, ...]] = ()
    draws: ClassVar[bool] = False
    skips_grey: ClassVar[bool] = False
    photo_scale: ClassVar[int] = 1
    student: ClassVar[str | None] = "image_unet"

    @abstractmethod
    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Turn photos (N, 3, H, W) in [0, 1] into network input and target, both (N, C, H, W).

        Control values follow the image channels of the input (``models.controls.pack``). What is random is drawn from
        a photo's content, so that the same photo gives the same input again.
        """

    def own_metrics(self) -> dict[str, Metric]:
        """Return the functions among ``metrics`` by name: that of the function, or of the class of a module."""
        own = [metric for metric in self.metrics if not isinstance(metric, str)]
        return {getattr(metric, "__name__", type(metric).__name__): metric for metric in own}

    def open_pairs(self, folder: str | Path) -> PhotoSet:
        """Open a folder with ``input/`` and ``target/``, where the task is ``paired``.

        Raises:
            DataError: There is not one usable pair.
        """
        from models.paired_photos import open_pairs

        return open_pairs(folder)

    def has_truth(self, rgb: Tensor) -> bool:
        """Say whether the target of these photos is a ground truth.

        Where it is not, what the teacher renders is the target, and every quality number is the distance to that;
        ``prepare`` then returns the do-nothing output in place of a target.
        """
        return True

    def prepare_at(self, rgb: Tensor, values: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Do what ``prepare`` does with the controls at ``values`` in place of drawn ones.

        Raises:
            UnsupportedError: The task has no controls, or cannot fix them.
        """
        fix = "give the task controls and its own prepare_at"
        raise UnsupportedError(explain(f"task {self.name}", expected="controls that can be fixed", got="none", fix=fix))

    @abstractmethod
    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Turn network input and output into RGB (N, 3, H, W) in [0, 1]."""

    @abstractmethod
    def baseline(self, inputs: Tensor) -> Tensor:
        """Return the output (N, C, H, W) of doing nothing, to compare with."""

    def inputs_of(self, rgb: Tensor) -> Tensor:
        """Return the first part of ``prepare(rgb)`` without the target: networks are judged and calibrated on it."""
        return self.prepare(rgb)[0]

    def app_input(self, rgb: Tensor) -> Tensor:
        """Return the network input (N, C, H, W) of photos (N, 3, H, W) as an app computes it.

        Where ``prepare`` damages a photo or draws a control, an app does neither.
        """
        return self.inputs_of(rgb)

    def shown_input(self, inputs: Tensor) -> Tensor:
        """Return what the network gets as a picture (N, 3, H, W) in [0, 1], for people; what doing nothing gives."""
        return self.render(inputs, self.baseline(inputs))

    def truth(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the picture (N, 3, H, W) in [0, 1] that a perfect network would give: the target, rendered."""
        return self.render(inputs, target)

    def photo_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the photos that give network inputs of ``input_size``."""
        return input_size[0] * self.photo_scale, input_size[1] * self.photo_scale

    def loss_weight(self, target: Tensor) -> Tensor:
        """Return a per-pixel loss weight (N, 1, H, W) for ``target``; ones unless the task says otherwise."""
        return target.new_ones(target.shape[0], 1, *target.shape[2:])
