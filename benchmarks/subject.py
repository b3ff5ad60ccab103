"""What is judged: an engine from photo to photo, with or without the colour conversion inside of its graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.photos import to_batch

if TYPE_CHECKING:
    from models.tasks.base import Task

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Subject:
    """One engine.

    Attributes:
        infer: Computes the output (1, C', H, W) of what it is fed (1, C, H, W).
        takes_picture: It is fed the photo, RGB in [0, 1], in place of the task's input.
        gives_picture: Its output is the rendered RGB in [0, 1], in place of the task's output.
    """

    infer: Infer
    takes_picture: bool = False
    gives_picture: bool = False

    def feed(self, photo: Tensor, inputs: Tensor) -> NDArray[np.float32]:
        """Return what it is fed of a photo (1, 3, H, W) in [0, 1] and the task's input (1, C, H, W) made of it."""
        return np.ascontiguousarray((photo if self.takes_picture else inputs).numpy(), dtype=np.float32)

    @torch.no_grad()
    def render(self, task: Task, photo: Tensor, inputs: Tensor) -> tuple[Tensor, float]:
        """Return the picture (1, 3, H, W) in [0, 1] that it makes of a photo, and the time of the call, ms."""
        array = self.feed(photo, inputs)
        start = time.perf_counter_ns()
        output = self.infer(array)
        spent = (time.perf_counter_ns() - start) / _NS_PER_MS
        answer = torch.from_numpy(np.asarray(output, np.float32))
        return answer if self.gives_picture else task.render(inputs, answer), spent

    def end_to_end(self, task: Task, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What an app does: RGB (H, W, 3) uint8 -> tensors, colour conversion, engine, rendering -> RGB uint8."""
        with torch.no_grad():
            photo = to_batch([pixels])
            inputs = photo if self.takes_picture and self.gives_picture else task.app_input(photo)
            return to_uint8(self.render(task, photo, inputs)[0])


def to_uint8(picture: Tensor) -> NDArray[np.uint8]:
    """RGB (1, 3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    pixels: NDArray[np.uint8] = (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return pixels
