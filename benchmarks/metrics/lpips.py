"""LPIPS, the learned perceptual image distance: official nets ``squeeze alex vgg``, and ``lite``, our own small one.

Source: Zhang, Isola, Efros, Shechtman, Wang 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", arXiv 1801.03924, version 0.1 of the linear heads. Numbers of different nets do not compare.

What is checked: ``squeeze`` gives the published reference values. ``alex`` and ``vgg`` are checked by the names and
shapes of torchvision's checkpoints and, with random weights, against a calculation written apart; their real weights
have not been run in this project's tests. ``lite`` ships with Pare; ``docs/lpips-lite.md`` is its card.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.metrics import LPIPS_NETS
from benchmarks.metrics.backbones import OFFICIAL_NETS, FeatureStack, lite_features
from benchmarks.metrics.checks import check_pair
from benchmarks.metrics.lpips_weights import LITE_FILE, default_folder, official_state
from models.artifact import read_tensors
from models.errors import CheckpointError, UnknownNameError, explain

SMALLEST_SIDE = 32
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-8
_PIXELS_A_CALL = 2 * 256 * 256


class LPIPS(nn.Module):
    """Distance between two images, from the features of a network.

    Features at each tap are normalized to unit length over channels, squared differences are weighted by a non-negative
    head (a 1x1 convolution to one channel), averaged over the image and summed over taps.

    Args:
        features: The stack that is read.
        name: The name of the net: ``lite``, ``squeeze``, ``alex`` or ``vgg``.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: FeatureStack, name: str) -> None:
        super().__init__()
        self.name = name
        self.features = features
        self.heads = nn.ParameterList([nn.Parameter(torch.full((width,), 1 / width)) for width in features.channels])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return the features (N, C, h, w) of each tap, float32, for sRGB ``images`` (N, 3, H, W) in [0, 1]."""
        images = images.contiguous(memory_format=torch.channels_last)
        return [tap.float() for tap in self.features((images * 2 - 1 - self.shift) / self.scale)]

    def forward(self, preds: Tensor, target: Tensor) -> Tensor:
        """Return the distances (N,) between ``preds`` and ``target``, both sRGB (N, 3, H, W) in [0, 1].

        Differentiable in both, and used as a training loss, so values are not checked here: ``lpips()`` checks them.
        """
        total = preds.new_zeros(len(preds))
        for tap, head in zip(self.taps(torch.cat((preds, target))), self.heads, strict=True):
            first, second = (tap * inverse_length(tap)).chunk(2)
            total = total + torch.einsum("nchw,c->n", (first - second).square(), head) / first[0, 0].numel()
        return total


def inverse_length(tap: Tensor) -> Tensor:
    """Return one over the length over channels, (N, 1, h, w), of ``tap`` (N, C, h, w)."""
    return torch.rsqrt(torch.linalg.vector_norm(tap, dim=1, keepdim=True).square() + _EPSILON)


def load_lpips(net: str = "lite", weights: str | Path | None = None) -> LPIPS:
    """Load LPIPS as a module in eval mode with frozen weights; gradients flow to the images.

    Files are read once a process; every call returns a module of its own, which may be moved to a device.

    Args:
        net: ``lite``, ``squeeze``, ``alex`` or ``vgg``.
        weights: Official nets: a folder with ``lin_{net}.pth`` and the backbone (``squeezenet1_1_features.pth``,
            ``alexnet_features.pth``, ``vgg16_features.pth`` or torchvision's checkpoint), or a backbone file. None: the
            folder in ``PARE_LPIPS_WEIGHTS``, else the torch hub cache, else a download. ``lite``: None or a folder
            gives the shipped weights, a ``.safetensors`` file replaces them.

    Raises:
        UnknownNameError: No such net.
        MissingWeightsError: The official weights are nowhere.
        CheckpointError: A file is damaged, of another architecture, or a pickle with code.
    """
    if net not in LPIPS_NETS:
        raise UnknownNameError("LPIPS net", net, LPIPS_NETS)
    with torch.inference_mode(False):  # a first call in inference mode would spoil the cached weights for training
        return copy.deepcopy(_read(net, _resolve(net, weights)))


def _resolve(net: str, weights: str | Path | None) -> Path | None:
    path = Path(weights) if weights is not None else default_folder()
    if net == "lite":
        return path if path is not None and path.suffix == ".safetensors" else LITE_FILE
    return path


@lru_cache(maxsize=8)
def _read(net: str, path: Path | None) -> LPIPS:
    if net == "lite":
        metric = LPIPS(lite_features(), net)
        state = read_tensors(path or LITE_FILE)
    else:
        metric = LPIPS(OFFICIAL_NETS[net].build(), net)
        features, heads = official_state(net, path)
        state = {f"features.{key}": value for key, value in features.items()}
        state |= {f"heads.{index}": head for index, head in enumerate(heads)}
    try:
        metric.load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        fix = "pass the weights of this net"
        got = " ".join(str(error).split())[:300]
        raise CheckpointError(explain(f"LPIPS net {net!r}", expected="its own tensors", got=got, fix=fix)) from error
    metric.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 2 to 3 times faster on a CPU
    return metric.requires_grad_(False).eval()


@lru_cache(maxsize=8)
def _ready(net: str, path: Path | None, device: torch.device) -> LPIPS:
    return load_lpips(net, path).to(device)


def lpips(preds: Tensor, target: Tensor, *, net: str = "lite", weights: str | Path | None = None) -> Tensor:
    """LPIPS distance of each pair of images.

    Args:
        preds: (N, 3, H, W) sRGB in [0, 1], sides of 32 or more (``lite`` is made for 64 or more).
        target: The same shape.
        net: ``lite``, ``squeeze``, ``alex`` or ``vgg``; name it beside every number.
        weights: Where the weights are, as for ``load_lpips``.

    Returns:
        (N,) float32, 0 for equal images, lower is better.

    Raises:
        ConfigError: Shape, type or range is another one.
        InputSizeError: A side below 32.
        UnknownNameError: No such net.
        MissingWeightsError: The official weights are nowhere.
    """
    check_pair(preds, target, smallest=SMALLEST_SIDE, metric="lpips")
    if net not in LPIPS_NETS:
        raise UnknownNameError("LPIPS net", net, LPIPS_NETS)
    metric = _ready(net, _resolve(net, weights), preds.device)
    with torch.autocast(preds.device.type, enabled=False):
        return in_parts(metric, preds.float(), target.float())


def in_parts(metric: LPIPS, preds: Tensor, target: Tensor) -> Tensor:
    """Compute ``metric(preds, target)``, (N,), a few images at a time: faster on a CPU, and little memory."""
    batch = max(1, _PIXELS_A_CALL // (preds.shape[2] * preds.shape[3]))
    pairs = zip(preds.split(batch), target.split(batch), strict=True)
    return torch.cat([metric(first, second) for first, second in pairs])
