"""INT8 simulated in PyTorch, any subset of the layers at a time: what sensitivity is scored with.

A quantized layer rounds its input to uint8 (one asymmetric scale a tensor) and its weights to int8 (one symmetric scale
an output channel), which is what the targets have in common; TensorRT alone rounds the input to int8, symmetric, which
wastes half of the levels where nothing is negative. Biases and sums stay float.

Source: Jacob et al. 2018, integer-arithmetic-only inference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from export.fuse import add_to_bias, fold_batch_norm
from export.graph_ranges import typical_range
from models.errors import UnsupportedError, explain
from models.progress import NULL_PROGRESS, Progress

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH = 8


class SimulatedInt8(nn.Module):
    """A copy of a network, BatchNorm folded, whose layers are quantized inside of ``quantized(names)``.

    Attributes:
        ranges: Input range of each layer that uint8 resolves, by module name, in the order that the network calls
            them. At first the typical range over the calibration inputs; ``optimize.range_fitting`` narrows it.
        observed: Smallest and largest input value of each layer in each calibration input, (n, 2).
        corrections: What is added to the bias of each quantized layer, (channels,); none at first.
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
        self.observed: dict[str, Tensor] = {}
        self.corrections: dict[str, Tensor] = {}
        self.macs: dict[str, int] = {}
        self._observe(inputs, progress)
        if not self.ranges:
            fix = "hold the weights in nn.Conv2d or nn.Linear, or leave this stage out: --stage distill --stage prune"
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
    def quantized(self, names: Collection[str], *, symmetric: bool = False) -> Iterator[SimulatedInt8]:
        """Quantize the layers ``names`` until the block ends; ``symmetric``: their inputs as TensorRT does."""
        with self.hooked({name: self._rounding(name, symmetric) for name in names}):
            floats = {name: (self.layer(name).weight.data, self.layer(name).bias) for name in names}
            try:
                for name in names:
                    layer = self.layer(name)
                    layer.weight.data = quantize_weight(layer)
                    if name in self.corrections:
                        add_to_bias(layer, self.corrections[name])
                yield self
            finally:
                for name, (weight, bias) in floats.items():
                    self.layer(name).weight.data, self.layer(name).bias = weight, bias

    def layer(self, name: str) -> Any:
        """Return the module of a layer."""
        return self._layers[name]

    @contextmanager
    def hooked(self, hooks: Mapping[str, Any], *, after: bool = False) -> Iterator[None]:
        """Call ``hooks`` with the inputs of their layers, or ``after`` the call with inputs and output."""
        handles = []
        for name, hook in hooks.items():
            layer = self._layers[name]
            handles.append(layer.register_forward_hook(hook) if after else layer.register_forward_pre_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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

        with self.hooked({name: count(name) for name in self.ranges}):
            for part in inputs.split(_BATCH):
                self.net(part)
        return [(name, over / max(total, 1)) for name, (over, total) in counts.items()]

    @torch.no_grad()
    def _observe(self, inputs: Tensor, progress: Progress) -> None:
        seen: dict[str, list[Tensor]] = {}

        def watch(name: str) -> Any:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                flat = arguments[0].flatten(1)
                seen.setdefault(name, []).append(torch.stack([flat.amin(dim=1), flat.amax(dim=1)], dim=1))
                self.macs[name] = _macs(self._layers[name], arguments[0], output)

            return hook

        with (
            self.hooked({name: watch(name) for name in self._layers}, after=True),
            progress.track("Value ranges", total=len(inputs)) as bar,
        ):
            for part in inputs.split(_BATCH):
                self.net(part)
                bar.advance(len(part))
        self.observed = {name: torch.cat(rows) for name, rows in seen.items()}
        for name, rows in self.observed.items():
            self.ranges[name] = typical_range(rows[:, 0].tolist(), rows[:, 1].tolist())

    def _rounding(self, name: str, symmetric: bool) -> Any:
        low, high = self.ranges[name]
        scale, zero_point = activation_scale(low, high)
        levels = (0, 255)
        if symmetric:
            scale, zero_point, levels = max(-low, high, 1e-12) / 127, 0, (-128, 127)

        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (torch.fake_quantize_per_tensor_affine(arguments[0], scale, zero_point, *levels), *arguments[1:])

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
