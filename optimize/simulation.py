"""INT8 simulated in PyTorch, any subset of the layers at a time: what sensitivity is scored with.

A quantized layer rounds its input to uint8 (one asymmetric scale a tensor, min-max) and its weights to int8 (one
symmetric scale an output channel), which is what the targets have in common. Biases and sums stay float.

Source: Jacob et al. 2018, integer-arithmetic-only inference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from export.fuse import fold_batch_norm
from models.errors import UnsupportedError, explain
from models.progress import NULL_PROGRESS, Progress

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH = 8


class SimulatedInt8(nn.Module):
    """A copy of a network, BatchNorm folded, whose layers are quantized inside of ``quantized(names)``.

    Attributes:
        ranges: Smallest and largest input value of each layer over the calibration inputs, by module name, in the
            order that the network calls them.
        macs: Multiply-adds of each layer for one calibration input.

    Args:
        net: Network in eval mode; not changed.
        inputs: Calibration inputs (n, C, H, W).
        progress: Where to report.

    Raises:
        UnsupportedError: The network calls no layer that INT8 speeds up.
    """

    def __init__(self, net: nn.Module, inputs: Tensor, *, progress: Progress = NULL_PROGRESS) -> None:
        super().__init__()
        self.net = fold_batch_norm(net).eval()
        self._layers = {name: module for name, module in self.net.named_modules() if isinstance(module, LAYERS)}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.macs: dict[str, int] = {}
        self._observe(inputs, progress)
        if not self.ranges:
            fix = "leave the quantize stage out: --stage distill --stage prune"
            expected = "a network with convolutions or linear layers"
            raise UnsupportedError(explain("INT8", expected=expected, got="none that is called", fix=fix))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that the network calls, in order."""
        return tuple(self.ranges)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        output: Tensor = self.net(input)
        return output

    @contextmanager
    def quantized(self, names: Collection[str]) -> Iterator[SimulatedInt8]:
        """Quantize the layers ``names`` until the block ends."""
        with self._hooked({name: self._rounding(name) for name in names}):
            floats = {name: self._layers[name].weight.data for name in names}
            try:
                for name in names:
                    self._layers[name].weight.data = quantize_weight(self._layers[name])
                yield self
            finally:
                for name, weight in floats.items():
                    self._layers[name].weight.data = weight

    @torch.no_grad()
    def outside(self, inputs: Tensor) -> list[tuple[str, float]]:
        """Return (layer, share of the values of its input that leave the calibrated range) over (n, C, H, W)."""
        counts = {name: [0, 0] for name in self.ranges}

        def count(name: str) -> Any:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                low, high = self.ranges[name]
                beyond = (arguments[0] < low) | (arguments[0] > high)
                counts[name][0] += int(beyond.sum())
                counts[name][1] += beyond.numel()

            return hook

        with self._hooked({name: count(name) for name in self.ranges}):
            for part in inputs.split(_BATCH):
                self.net(part)
        return [(name, over / max(total, 1)) for name, (over, total) in counts.items()]

    @contextmanager
    def _hooked(self, hooks: dict[str, Any]) -> Iterator[None]:
        handles = [self._layers[name].register_forward_pre_hook(hook) for name, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _observe(self, inputs: Tensor, progress: Progress) -> None:
        def watch(name: str) -> Any:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                low, high = (float(value) for value in arguments[0].aminmax())
                old = self.ranges.get(name, (low, high))
                self.ranges[name] = (min(old[0], low), max(old[1], high))
                self.macs[name] = _macs(self._layers[name], arguments[0], output)

            return hook

        handles = [module.register_forward_hook(watch(name)) for name, module in self._layers.items()]
        try:
            with progress.track("Value ranges", total=len(inputs)) as bar:
                for part in inputs.split(_BATCH):
                    self.net(part)
                    bar.advance(len(part))
        finally:
            for handle in handles:
                handle.remove()

    def _rounding(self, name: str) -> Any:
        scale, zero_point = activation_scale(*self.ranges[name])

        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (torch.fake_quantize_per_tensor_affine(arguments[0], scale, zero_point, 0, 255), *arguments[1:])

        return hook


def activation_scale(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of asymmetric uint8 for values from ``low`` to ``high``; 0 is always exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-12)
    return scale, min(255, max(0, round(-low / scale)))


@torch.no_grad()
def quantize_weight(layer: Any) -> Tensor:
    """Return the weight of a layer rounded to symmetric int8, one scale an output channel."""
    weight: Tensor = layer.weight.data
    axis = 1 if isinstance(layer, _TRANSPOSED) else 0
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = weight.abs().amax(dim=others).clamp_min(1e-12) / 127
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -127, 127)


def _macs(layer: Any, given: Tensor, output: Tensor) -> int:
    """Multiply-adds of one call for one item of the batch."""
    if isinstance(layer, nn.Linear):
        return output[0].numel() * layer.in_features
    kernel = layer.weight[0, 0].numel()
    if isinstance(layer, _TRANSPOSED):
        return given[0].numel() * kernel * layer.out_channels // layer.groups
    return output[0].numel() * kernel * layer.in_channels // layer.groups
