"""A tiny network with a run-time control, its task, and a plain network under the same task."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.controls import pack, spread, unpack
from models.spec import Control, ModelSpec, SizeRequirements, TensorSpec
from models.tasks.base import Task

LEVEL = Control("level", "graph_input", 0.0, 2.0, 0.5)
PHOTO = TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0))
RESULT = TensorSpec("output", ("N", 3, "H", "W"), value_range=(0.0, 1.0))


class Darken(Task):
    """The photo times 1 - level / 4; the level is drawn from the content of the photo."""

    name: ClassVar[str] = "two_inputs:Darken"
    inputs: ClassVar[tuple[TensorSpec, ...]] = (PHOTO,)
    outputs: ClassVar[tuple[TensorSpec, ...]] = (RESULT,)
    controls: ClassVar[tuple[Control, ...]] = (LEVEL,)
    draws: ClassVar[bool] = True

    def prepare(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        level = (1000 * rgb.mean(dim=(1, 2, 3))) % 2
        return pack(rgb, level[:, None]), rgb * (1 - spread(level) / 4)

    def render(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs.clamp(0, 1)

    def baseline(self, inputs: Tensor) -> Tensor:
        return unpack(inputs, 1)[0]


class Controlled(nn.Module):
    """Convolution, norm, a gain that depends on the level, convolution."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.gain = nn.Parameter(torch.linspace(-0.5, 2.0, width))
        self.head = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, input: Tensor, level: Tensor | None = None) -> Tensor:
        if level is None:
            input, level = unpack(input, 1)
        x = torch.relu(self.norm(self.first(input)))
        x = x * (1 + spread(level) * self.gain.reshape(1, -1, 1, 1))
        output: Tensor = input + self.head(x)
        return output


def controlled(width: int = 8) -> Controlled:
    """Build it."""
    return Controlled(width)


controlled.spec = ModelSpec(  # type: ignore[attr-defined]
    name="two_inputs:controlled",
    task="two_inputs:Darken",
    factory="two_inputs:controlled",
    inputs=(PHOTO,),
    outputs=(RESULT,),
    size=SizeRequirements(minimum=8, multiple_of=8),
    controls=(LEVEL,),
    student="chroma_unet",
)
