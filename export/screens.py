"""What to know of a network before it is exported: values that FP16 cannot hold, operators that engines run slowly.

The network runs once in FP32 on a few photos, watched operator by operator. A layer that reads or writes a value near
the largest half (65504) is kept in FP32 by the FP16 exporters (NAFNet's LayerNorm squares activations of hundreds:
NVIDIA/TensorRT#3897, #4338). Where rounding itself spoils the answer, only layers with weights are in FP16. Operators
off the fast path are listed with the rewrite that was applied or is advised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.artifact import Artifact, load_network
from models.modes import in_eval_mode
from models.spec import SizeRequirements

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from export.screen_watch import Watch

LARGEST_HALF = 65504.0
#: Above this a layer stays in FP32: photos beyond the screened ones may reach four times the value.
LIMIT = LARGEST_HALF / 4
#: Why a layer or node stays in FP32 (``kept_fp32``), where it is not an operator that always does.
RANGE, ASKED, ROUNDING = "range", "asked", "rounding"
_PHOTOS = 4
_SIDE = 128
_TOP = 12

#: Kind of the transposed convolutions that exports rewrite (``export.transposed``).
SHUFFLED = "transposed convolution, no overlap"
#: Kind of operator -> (what happens to it, the rewrite that was applied or is advised).
OPERATORS: Mapping[str, tuple[str, str]] = {
    SHUFFLED: (
        "applied",
        "a 1x1 convolution and a pixel shuffle give the same numbers (not in Core ML, which has the layer)",
    ),
    "transposed convolution": (
        "kept",
        "its steps overlap: as a convolution and a shuffle it would take more multiply-adds, and was slower in FP32",
    ),
    "nearest resize": ("kept", "copies pixels, in every engine"),
    "bilinear resize": ("kept", "every engine has it; models.layers.upsample_bilinear is two products with constants"),
    "bicubic, exact or antialiased resize": (
        "applied",
        "two products with constants, at a fixed size: engines lack them, or compute other numbers",
    ),
    "fold": ("applied", "a transposed convolution with a constant kernel, which Core ML and TensorRT take"),
    "Fourier transform": ("applied", "products with constant matrices, real and imaginary part apart, at a fixed size"),
    "grid sample": ("kept", "not on the Neural Engine; write a look-up of a small grid as products with hat weights"),
    "attention": ("applied", "matrix products and a softmax in at most five dimensions; float in INT8"),
    "LayerNorm": ("kept", "float in INT8 and FP32 in FP16 graphs; over channels, models.norms needs no transposes"),
    "norm over channels": ("applied", "mean and mean square over dimension 1, without moving the channels last"),
    "cyclic shift": ("advised", "torch.roll becomes gathers in some engines; models.windows.roll uses two slices"),
    "gather": ("advised", "indexing with a tensor: compute the indices once, or use slices"),
    "cumulative sum": ("advised", "sequential on most engines; a product with a triangular matrix is not"),
    "sort": ("advised", "runs on the processor in mobile engines"),
}
#: ATen operator -> kind.
_KINDS: Mapping[str, str] = {
    "upsample_bilinear2d": "bilinear resize",
    "_upsample_bilinear2d_aa": "bicubic, exact or antialiased resize",
    "upsample_nearest2d": "nearest resize",
    "_upsample_nearest_exact2d": "bicubic, exact or antialiased resize",
    "upsample_bicubic2d": "bicubic, exact or antialiased resize",
    "_upsample_bicubic2d_aa": "bicubic, exact or antialiased resize",
    "col2im": "fold",
    "_fft_r2c": "Fourier transform",
    "_fft_c2c": "Fourier transform",
    "_fft_c2r": "Fourier transform",
    "grid_sampler_2d": "grid sample",
    "grid_sampler_3d": "grid sample",
    "_softmax": "attention",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_attention_math": "attention",
    "native_layer_norm": "LayerNorm",
    "roll": "cyclic shift",
    "index": "gather",
    "gather": "gather",
    "index_select": "gather",
    "cumsum": "cumulative sum",
    "sort": "sort",
    "topk": "sort",
}


@dataclass(frozen=True)
class LargeLayer:
    """A layer near or beyond the range of FP16.

    Attributes:
        layer: Torch module name; ``""`` is the network's own ``forward``.
        peak: Largest absolute value that it reads or writes.
        overflows: The value is beyond the largest half; else it is within a factor of four.
    """

    layer: str
    peak: float
    overflows: bool


@dataclass(frozen=True)
class SlowOperator:
    """An operator that engines run below the speed of a convolution.

    Attributes:
        operator: What it is.
        count: How many times it runs; of one that the network's code does without, how many modules do.
        layers: Some of the modules that run it.
        rewrite: ``applied``, ``advised`` or ``kept``.
        advice: What was or can be done.
    """

    operator: str
    count: int
    layers: tuple[str, ...]
    rewrite: str
    advice: str


@dataclass(frozen=True)
class Screens:
    """What the screens found.

    Attributes:
        photos: How many photos the network ran on.
        size: Their height and width.
        peaks: Layer -> largest absolute value that it reads or writes, the largest of all layers.
        large: Layers that FP16 exports keep in FP32.
        slow: Operators off the fast path.
        half_error: Root mean square error of the network in half precision on a photo, in spans of its output.
        layers_only: Rounding to half precision spoils the answer; with layers with weights alone in half precision it
            does not, or half as much, and FP16 exports leave everything else in FP32.
    """

    photos: int
    size: tuple[int, int]
    peaks: Mapping[str, float]
    large: tuple[LargeLayer, ...]
    slow: tuple[SlowOperator, ...]
    half_error: float = 0.0
    layers_only: bool = False

    @property
    def keep(self) -> tuple[str, ...]:
        """Names of the layers that FP16 exports keep in FP32."""
        return tuple(item.layer for item in self.large)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; of ``peaks`` the largest ones."""
        ordered = sorted(self.peaks.items(), key=lambda item: -item[1])[:_TOP]
        return {
            "photos": self.photos,
            "size": list(self.size),
            "fp16_limit": LIMIT,
            "largest": {layer or "forward": float(f"{peak:.4g}") for layer, peak in ordered},
            "large": [{**asdict(item), "layer": item.layer or "forward"} for item in self.large],
            "slow": [{**asdict(item), "layers": list(item.layers)} for item in self.slow],
            "half_error": float(f"{self.half_error:.3g}"),
            "layers_only": self.layers_only,
        }


def words_of(content: Mapping[str, Any]) -> list[str]:
    """Return as sentences what ``Screens.to_json`` wrote into the metadata of an artifact."""
    lines = []
    if large := content.get("large"):
        worst = max(float(item["peak"]) for item in large)
        names = ", ".join(item["layer"] for item in large[:5])
        more = f" and {len(large) - 5} more" if len(large) > 5 else ""
        text = f"FP16 range: {names}{more} reach {worst:.3g}, and a half ends at {LARGEST_HALF:g}"
        lines.append(f"{text}: in FP16, ONNX, TensorRT and Core ML files keep them in FP32")
    if content.get("layers_only"):
        text = f"FP16 rounding: alone it moves the output by {content['half_error']:.1%} of its span (rms)"
        lines.append(f"{text}: ONNX, TensorRT and Core ML files have only layers with weights in FP16")
    for item in content.get("slow", ()):
        lines.append(f"{item['operator']} x{item['count']} ({item['rewrite']}): {item['advice']}")
    return lines


def screen(net: nn.Module, inputs: Sequence[Tensor]) -> Screens:
    """Run ``net`` in eval mode on each of ``inputs`` (N, C, H, W) and return what was found.

    What the network raises on these inputs is passed on.
    """
    with in_eval_mode(net):
        watch = _watched(net, inputs)
        large = [LargeLayer(layer, peak, peak > LARGEST_HALF) for layer, peak in watch.peaks.items() if peak > LIMIT]
        half = _half(net, inputs[0], [item.layer for item in large]) if inputs else (0.0, False)
    slow = _written_otherwise(net)
    for kind, layers in watch.met.items():
        rewrite, advice = OPERATORS[kind]
        slow.append(SlowOperator(kind, len(layers) // max(len(inputs), 1), _few(layers), rewrite, advice))
    count = sum(len(item) for item in inputs)
    size = (int(inputs[0].shape[2]), int(inputs[0].shape[3])) if inputs else (0, 0)
    return Screens(count, size, watch.peaks, tuple(large), tuple(slow), *half)


def _watched(net: nn.Module, inputs: Sequence[Tensor]) -> Watch:
    """Return what was seen of ``net`` on ``inputs``."""
    import torch

    from export.screen_watch import Watch

    watch = Watch(net, _KINDS)
    try:
        with torch.no_grad(), watch:
            for item in inputs:
                watch.start(item)
                net(item)
    finally:
        watch.close()
    return watch


def _half(net: nn.Module, image: Tensor, keep: Sequence[str]) -> tuple[float, bool]:
    """Return the error of ``net`` in half precision, and whether it takes everything but layers in FP32 to lower it."""
    from export.half_rounding import half_error
    from export.registry import get_target
    from models.spec import Precision

    allowed = get_target("onnx").tolerance[Precision.FP16]

    def passes(error: tuple[float, float]) -> bool:
        return error[0] <= allowed.largest and error[1] <= allowed.rms

    whole = half_error(net, image, keep)
    if passes(whole):
        return whole[1], False
    layers = half_error(net, image, keep, layers_only=True)
    return whole[1], passes(layers) or layers[1] < whole[1] / 2


def _written_otherwise(net: nn.Module) -> list[SlowOperator]:
    """Return the operators that modules of ``net`` say they do without: {operator: how} in ``rewrites``."""
    met: dict[tuple[str, str], list[str]] = {}
    for name, module in net.named_modules():
        for item in getattr(module, "rewrites", {}).items():
            met.setdefault(item, []).append(name)
    return [SlowOperator(kind, len(names), _few(names), "applied", how) for (kind, how), names in met.items()]


def _few(layers: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer or "forward" for layer in layers))[:4]


def screen_artifact(artifact: Artifact, input_size: tuple[int, int]) -> Screens:
    """Screen the network of a ``torch`` artifact on its calibration inputs, or else on the photos that ship with Pare.

    The result of the same artifact and size is computed once in a process. Sides are at most 128 pixels (or the least
    that the network takes): peaks depend on content, hardly on size. A network that fails there, for it takes one size
    only, is screened at ``input_size``.
    """
    return _screened(artifact.path, artifact.sha256, (int(input_size[0]), int(input_size[1])))


def probes(artifact: Artifact, input_size: tuple[int, int]) -> list[NDArray[np.float32]]:
    """Return two prepared photos (1, C, H, W) of ``input_size``, controls packed, for a graph to be probed on."""
    return _inputs(artifact, (int(input_size[0]), int(input_size[1])), 2)


def kept_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the module names of the option ``keep_fp32``: a list, or a text with commas."""
    given = options.get("keep_fp32", ())
    return tuple(name for name in (given.split(",") if isinstance(given, str) else given) if name)


@lru_cache(maxsize=8)
def _screened(path: Path, sha256: str, size: tuple[int, int]) -> Screens:
    import torch

    from models.registry import get_spec

    artifact = Artifact.load(path)
    net = load_network(artifact).float()
    small = _small(get_spec(artifact.model, task=artifact.task).size, size)
    try:
        return screen(net, [torch.from_numpy(item) for item in _inputs(artifact, small, _PHOTOS)])
    except Exception:  # a network of a user's that takes one size only may raise anything at another
        if small == size:
            raise
    return screen(net, [torch.from_numpy(item) for item in _inputs(artifact, size, _PHOTOS)])


def _small(allowed: SizeRequirements, size: tuple[int, int]) -> tuple[int, int]:
    """Return ``size`` scaled to sides of at most 128 pixels that the network can take."""
    scale = min(1.0, _SIDE / max(size))
    height, width = allowed.fit(*(max(1, round(side * scale)) for side in size))
    return (height, width) if height * width < size[0] * size[1] else size


def _inputs(artifact: Artifact, size: tuple[int, int], count: int) -> list[NDArray[np.float32]]:
    """Return calibration inputs of ``size`` where the artifact carries some, else photos through its task."""
    import torch

    from export.quantization import quantization_of
    from models.photos import embedded_photos, to_batch
    from models.registry import get_task

    record = quantization_of(artifact)
    if record is not None:
        made = torch.from_numpy(record.inputs()[:count])
    else:
        photos = embedded_photos("train").sample(count, seed=0)
        rgb = torch.cat([_resized(to_batch([photo]), size) for photo in photos])
        made = get_task(artifact.task).prepare(rgb)[0]
    return [item.numpy() for item in _resized(made, size).split(1)]


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, H, W); values stay inside of the range that they have."""
    from torch.nn import functional

    if tuple(x.shape[2:]) == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", antialias=True)
