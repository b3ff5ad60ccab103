"""Run-time controls (a level, a strength, an amplification): packed behind the image in training, inputs in a graph.

Photos, batches and calibration files hold one tensor each, so there a control travels as one more channel of one
value, behind the channels of the image: ``pack``. A network with controls is called either with such a tensor or,
as an exported graph is, with the image and one tensor a control: ``forward(input, level=None)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.errors import ConfigError, explain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.spec import ModelSpec, TensorSpec

_MOST = 3


def pack(image: Tensor, values: Tensor) -> Tensor:
    """Put control values (N, k), or (1, k) for all, behind the channels of images: (N, C, H, W) -> (N, C + k, H, W).

    Raises:
        ConfigError: Another number of values than images.
    """
    if values.ndim != 2 or values.shape[0] not in (1, image.shape[0]):
        expected = f"shape ({image.shape[0]}, controls)"
        fix = "give one row of values an image"
        raise ConfigError(explain("control values", expected=expected, got=tuple(values.shape), fix=fix))
    planes = values.to(image)[:, :, None, None].expand(image.shape[0], values.shape[1], *image.shape[2:])
    return torch.cat([image, planes], dim=1)


def unpack(packed: Tensor, count: int) -> tuple[Tensor, ...]:
    """Undo ``pack`` of ``count`` controls: (N, C + k, H, W) -> images (N, C, H, W), then (N,) values a control."""
    channels = packed.shape[1] - count
    values = tuple(packed[:, channels + index, 0, 0] for index in range(count))
    return (packed[:, :channels], *values)


def spread(value: Tensor) -> Tensor:
    """Shape control values (N,), or (1,) for all, so that they multiply images: (N, 1, 1, 1)."""
    return value.reshape(-1, 1, 1, 1)


def graph_feeds(
    packed: NDArray[np.float32], inputs: Sequence[TensorSpec], defaults: Mapping[str, float] | None = None
) -> dict[str, NDArray[np.float32]]:
    """Split one packed array (1, C + k, H, W) into what a graph takes.

    Args:
        packed: Image, then one channel a control; channels that the graph has no control for are left out.
        inputs: Of the graph: the image, then its controls.
        defaults: Values of the controls that are not packed; 0 where not given.

    Returns:
        {input name: array}; a control as the (1,) that its spec says.

    Raises:
        ConfigError: A batch, whose controls may differ.
    """
    import numpy as np

    image, *controls = inputs
    width = image.shape[1] if isinstance(image.shape[1], int) else packed.shape[1] - len(controls)
    if controls and packed.shape[0] != 1:
        fix = "feed one photo at a time"
        raise ConfigError(explain("packed controls", expected="batch 1", got=f"batch {packed.shape[0]}", fix=fix))
    feeds = {image.name: np.ascontiguousarray(packed[:, :width], dtype=np.float32)}
    for index, spec in enumerate(controls):
        shape = [side if isinstance(side, int) else 1 for side in spec.shape]
        known = width + index < packed.shape[1]
        value = float(packed[0, width + index, 0, 0]) if known else (defaults or {}).get(spec.name, 0.0)
        feeds[spec.name] = np.full(shape, value, np.float32)
    return feeds


class ControlChannels(nn.Module):
    """A plain network under a task with controls: it sees each control as one more channel of one value.

    Args:
        net: Takes (N, C + k, H, W).
        count: Controls k, at most 3.
    """

    def __init__(self, net: nn.Module, count: int) -> None:
        super().__init__()
        self.net, self.count = net, count

    def forward(
        self, input: Tensor, first: Tensor | None = None, second: Tensor | None = None, third: Tensor | None = None
    ) -> Tensor:
        """(N, C + k, H, W), or (N, C, H, W) and ``count`` tensors (N,) or (1,) -> what the network gives."""
        values = [value for value in (first, second, third)[: self.count] if value is not None]
        if values:
            planes = [spread(value) * torch.ones_like(input[:, :1]) for value in values]
            input = torch.cat([input, *planes], dim=1)
        output: Tensor = self.net(input)
        return output

    def get_submodule(self, target: str) -> nn.Module:
        """Return a submodule by its name here, or in the plain network."""
        try:
            return super().get_submodule(target)
        except AttributeError:
            return self.net.get_submodule(target)


def with_controls(net: nn.Module, spec: ModelSpec) -> nn.Module:
    """Return ``net``, wrapped in ``ControlChannels`` where its row has controls and its ``forward`` takes none."""
    count = len(spec.graph_controls)
    if not count or len(inspect.signature(net.forward).parameters) > 1:
        return net
    if count > _MOST:
        fix = "give the network's forward one more argument a control"
        raise ConfigError(explain("controls of a plain network", expected=f"at most {_MOST}", got=count, fix=fix))
    return ControlChannels(net, count)
