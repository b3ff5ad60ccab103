"""ImageNet weights for the ResNet18 encoder: torchvision's published checkpoint, or a file of the same names.

They do not ship with Pare; ``--encoder-weights imagenet`` downloads them for those who have a network.

Source: torchvision, ``ResNet18_Weights.IMAGENET1K_V1`` (code BSD-3; the photos of ImageNet have terms of
their own).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from models.artifact import read_tensors
from models.downloads import published_tensors
from models.errors import CheckpointError, UnsupportedError, explain

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET = "imagenet"
CHECKPOINT = "resnet18-f37072fd.pth"
URL = "https://download.pytorch.org/models"
URL_VARIABLE = "PARE_TORCHVISION_URL"
_HEAD = "fc."
_COUNTER = "num_batches_tracked"


def load_encoder(net: nn.Module, source: str | Path) -> None:
    """Load ResNet18 weights into ``net.encoder``, in place; the classifier ``fc.*`` is left out.

    Args:
        net: Network whose ``encoder`` has the state_dict names of torchvision's ResNet18, such as ``resnet18_unet``.
        source: ``imagenet`` (the torch hub cache, else a download from ``PARE_TORCHVISION_URL`` or torchvision's
            server), or a file: ``.safetensors``, or a ``torch.save`` of tensors only.

    Raises:
        UnsupportedError: The network has no encoder.
        MissingWeightsError: No network, and not in the cache.
        CheckpointError: Missing, damaged, another hash, a pickle with code, or of another architecture.
    """
    from torch import nn

    encoder = getattr(net, "encoder", None)
    if not isinstance(encoder, nn.Module):
        fix = "leave --encoder-weights out, or train resnet18_unet"
        got = f"none in {type(net).__name__}"
        raise UnsupportedError(explain("--encoder-weights", expected="a network with `encoder`", got=got, fix=fix))
    if str(source) == IMAGENET:
        url = f"{(os.environ.get(URL_VARIABLE) or URL).rstrip('/')}/{CHECKPOINT}"
        fix = f"connect, or put the file there, or pass --encoder-weights FILE, or set {URL_VARIABLE} to a mirror"
        state = published_tensors(url, what="ImageNet weights of ResNet18", fix=fix)
    else:
        state = read_tensors(Path(source))
    _fill(encoder, state, source)


def _fill(encoder: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    state = {key.removeprefix("module."): value for key, value in state.items()}
    heads = getattr(encoder, "classifier", None)
    state = {key: value for key, value in state.items() if not key.startswith(heads or _HEAD)}
    own = encoder.state_dict()
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    unknown = [key for key in state if key not in own]
    other = [key for key in own if key in state and own[key].shape != state[key].shape]
    fix = "pass a ResNet18 checkpoint with torchvision's names"
    if heads:
        fix = "pass a checkpoint with the published names of this encoder"
    if missing or unknown:
        got = f"{len(missing)} missing (first: {missing[:3]}), {len(unknown)} unknown (first: {unknown[:3]})"
        raise CheckpointError(explain(f"{source}", expected="the tensors of the encoder", got=got, fix=fix))
    if other:
        key = other[0]
        expected = f"{key} of shape {tuple(own[key].shape)}"
        fix += " and the width of this encoder (64 is torchvision's)"
        raise CheckpointError(explain(f"{source}", expected=expected, got=tuple(state[key].shape), fix=fix))
    encoder.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=False)
