"""INT8 for Core ML (W8A8): a network made ready for the converter's trace path, from one calibration record.

Weights become int8, symmetric, one scale an output channel. Activations become uint8 with Core ML's convention, zero
point 0 where a tensor is never negative and 128 elsewhere. Two placements of the quantization of activations:

``per_layer`` (default): in front of every convolution and linear layer, with the record's own ranges and bias
corrections, the same tensors that the other targets quantize; what lies between them stays FP16. It is the placement of
coremltools' own ``linear_quantize_activations`` (which needs macOS to calibrate). It needs no ``torch.fx`` trace of the
network.

``linear_quantizer``: ``coremltools.optimize.torch.quantization.LinearQuantizer``, which also quantizes sums,
concatenations, pooling and the output, with min-max observers: the record's ranges are of other tensors, and its bias
corrections undo the rounding of those, so neither is used. Tensors that are concatenated share one scale there,
and a ReLU that is not its own module right after a convolution loses one bit, so its error is larger: on a
ResNet18 U-Net colorizer at 256x256 rms 0.0117 against 0.0061 (ab / 255), and LPIPS-squeeze to the float network 0.024
against 0.010; ``per_layer`` with its 1x1 ``head`` in floating point: rms 0.0013, LPIPS 0.0004.

Source: coremltools guide, "Quantization"; Jacob et al. 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from export.fuse import add_to_bias, fold_batch_norm
from export.mil.proto import EXTRA, quiet_coremltools
from export.quantization import Quantization
from models.controls import unpack
from models.errors import ConfigError, ExportError, UsageError, explain, require

METHODS = ("per_layer", "linear_quantizer")
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LEVELS = 255
_BATCH = 8


class _QuantizedInput(nn.Module):
    """A layer whose input is rounded to uint8 first."""

    def __init__(self, layer: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.layer = layer
        self.zero_point = 0 if low >= 0 else 128
        largest = high / _LEVELS if low >= 0 else max(-low / 128, high / 127)
        self.scale = max(largest, 1e-8)

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        levels = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)
        result: Tensor = self.layer(levels.dequantize(), *arguments, **named)
        return result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # the network may read what its layer is: ``self.conv.out_channels``
            return getattr(super().__getattr__("layer"), name)


def quantized_network(
    net: nn.Module, record: Quantization, *, method: str = "per_layer", controls: int = 0
) -> nn.Module:
    """Return a quantized copy of ``net``, ready for ``torch.jit.trace`` and coremltools.

    Args:
        net: Float network in eval mode, BatchNorms not folded; not changed.
        record: Calibration inputs and the layers that stay in floating point.
        method: One of METHODS.
        controls: Run-time controls of the network, packed in the calibration inputs.

    Raises:
        UsageError: Another method.
        ConfigError: A layer to keep in floating point does not exist.
        CheckpointError: The calibration inputs are missing or altered.
        ExportError: ``linear_quantizer`` on a network that ``torch.fx`` cannot trace.
    """
    if method not in METHODS:
        raise UsageError(explain("int8 method", expected=" | ".join(METHODS), got=repr(method), fix="choose one"))
    names = {name for name, _ in net.named_modules()}
    if unknown := [name for name in record.float_layers if name not in names]:
        fix = "quantize this artifact again; its layers have other names"
        expected = "layers of the network"
        raise ConfigError(explain("float layers", expected=expected, got=", ".join(unknown), fix=fix))
    with quiet_coremltools():
        if method == "per_layer":
            return _per_layer(fold_batch_norm(net), record)
        return _linear_quantizer(net, record, controls)  # it fuses convolution, BatchNorm and ReLU by itself


def input_ranges(net: nn.Module, inputs: Tensor) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest input value of each convolution and linear layer over ``inputs`` (n, C, H, W)."""
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            low, high = arguments[0].aminmax()
            old = ranges.get(name, (float("inf"), float("-inf")))
            ranges[name] = (min(old[0], float(low)), max(old[1], float(high)))

        return hook

    handles = [m.register_forward_pre_hook(watch(n)) for n, m in net.named_modules() if isinstance(m, _LAYERS)]
    try:
        with torch.no_grad():
            for single in inputs.split(1):  # some networks take no batch
                net(single)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _per_layer(net: nn.Module, record: Quantization) -> nn.Module:
    metadata = require("coremltools.optimize.torch._utils.metadata_utils", EXTRA)
    layers = {name: module for name, module in net.named_modules() if isinstance(module, _LAYERS)}
    wanted = [name for name in layers if name not in record.float_layers]
    ranges, corrections = dict(record.ranges), record.bias_corrections()
    if any(name not in ranges for name in wanted):
        ranges = input_ranges(net, torch.from_numpy(record.inputs()))
    for name in wanted:
        if name not in ranges:  # the network never calls it
            continue
        layer = layers[name]
        scale = _round_weight(layer)
        if name in corrections:
            add_to_bias(layer, torch.from_numpy(corrections[name]))
        metadata.CompressionMetadata(
            param_name="weight", quantization_n_bits=8, quantization_scale=scale, compression_type=["quantization"]
        ).register(layer)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, _QuantizedInput(layer, *ranges[name]))
    metadata.register_metadata_version(net)
    return net


def _round_weight(layer: nn.Module) -> Tensor:
    """Round the weight of ``layer`` to int8 levels in place; return the scales, in the rank of the weight."""
    weight: Any = layer.weight
    axis = 1 if isinstance(layer, _TRANSPOSED) else 0
    others = [dim for dim in range(weight.ndim) if dim != axis]
    with torch.no_grad():
        scale = (weight.abs().amax(dim=others, keepdim=True) / 127).clamp_min(1e-12)
        weight.copy_((weight / scale).round().clamp(-127, 127) * scale)
    scales: Tensor = scale.clone()
    return scales


def _linear_quantizer(net: nn.Module, record: Quantization, controls: int) -> nn.Module:
    tools = require("coremltools.optimize.torch.quantization", EXTRA)
    inputs = torch.from_numpy(record.inputs())
    module_config = tools.ModuleLinearQuantizerConfig(
        weight_observer="min_max",
        activation_observer="min_max",
        quantization_scheme="symmetric",
        milestones=[0, len(inputs) + 1, len(inputs) + 1, 0],
    )
    config = tools.LinearQuantizerConfig(
        global_config=module_config, module_name_configs=dict.fromkeys(record.float_layers)
    )
    quantizer = tools.LinearQuantizer(net, config)
    try:
        prepared = quantizer.prepare(example_inputs=unpack(inputs[:1], controls))
    except Exception as error:  # torch.fx runs the network's own code on proxies, which may raise anything
        fix = "use the int8 method per_layer, which needs no torch.fx trace"
        got = str(error).strip().splitlines()[0]
        raise ExportError(explain("LinearQuantizer", expected="a network for torch.fx", got=got, fix=fix)) from error
    quantizer.step()  # observers on, fake quantization off: min-max of the float activations
    prepared.eval()
    with torch.no_grad():
        for batch in inputs.split(_BATCH):
            prepared(*unpack(batch, controls))
    finalized: nn.Module = quantizer.finalize(prepared)
    return finalized
