"""Finding the weights of LPIPS: the shipped ``lite``, and the official nets from a folder, the hub cache or a download.

Backbones are torchvision's published checkpoints (BSD-3), linear heads those of the LPIPS authors (BSD-2), version 0.1.
Nothing but tensors is ever read (``weights_only``); downloads are checked against the hash in the file name.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from benchmarks.metrics.backbones import OFFICIAL_NETS
from models.artifact import read_tensors
from models.downloads import MissingWeightsError, published_tensors
from models.errors import CheckpointError, explain

LITE_FILE = Path(__file__).parent / "weights" / "lpips_lite.safetensors"
WEIGHTS_VARIABLE = "PARE_LPIPS_WEIGHTS"
URL_VARIABLE = "PARE_LPIPS_URL"
_BACKBONE_URL = "https://download.pytorch.org/models"
_HEADS_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
_HEADS_HASH = {"squeeze": "4a5350f2", "alex": "df73285e", "vgg": "a78928a0"}
_HEAD_KEY = "lin{}.model.1.weight"

State = dict[str, Tensor]


def default_folder() -> Path | None:
    """Return the folder that the environment variable ``PARE_LPIPS_WEIGHTS`` names, if any."""
    value = os.environ.get(WEIGHTS_VARIABLE)
    return Path(value) if value else None


def official_state(net: str, weights: Path | None) -> tuple[State, list[Tensor]]:
    """Return the backbone (torchvision's names, without ``features.``) and the heads, a vector a tap.

    Args:
        net: ``squeeze``, ``alex`` or ``vgg``.
        weights: Folder with ``lin_{net}.pth`` and the backbone as ``*_features.pth`` or torchvision's checkpoint, or
            the backbone file itself, the heads in it or beside it. What is not there comes from the torch hub cache or
            is downloaded.

    Raises:
        MissingWeightsError: A part is nowhere.
        CheckpointError: A file is damaged, of another architecture, or a pickle with code.
    """
    if weights is not None and not weights.exists():
        fix = "check --lpips-weights, or use --lpips-net lite"
        raise MissingWeightsError(explain("LPIPS weights", expected=f"{weights}", got="no such file", fix=fix))
    if weights is not None and weights.is_file():
        state = read_tensors(weights)
        heads = state if _HEAD_KEY.format(0) in state else _heads(net, weights.parent)
    else:
        state, heads = _backbone(net, weights), _heads(net, weights)
    features = {key.removeprefix("features."): value for key, value in state.items() if _is_feature(key)}
    return features, _head_vectors(net, heads)


def _is_feature(key: str) -> bool:
    return not key.startswith(("classifier.", "lin"))


def _backbone(net: str, folder: Path | None) -> State:
    checkpoint = OFFICIAL_NETS[net].checkpoint
    stem = checkpoint.split("-")[0]
    names = (checkpoint, f"{stem}_features.pth", f"{stem}_features.safetensors", f"{stem}.pth")
    found = _in_folder(folder, names)
    return found if found is not None else _from_hub(net, _BACKBONE_URL, checkpoint, checkpoint, names)


def _heads(net: str, folder: Path | None) -> State:
    names = (f"lin_{net}.pth", f"{net}.pth")
    found = _in_folder(folder, names)
    cached = f"lpips_{net}-{_HEADS_HASH[net]}.pth"
    return found if found is not None else _from_hub(net, _HEADS_URL, f"{net}.pth", cached, names)


def _in_folder(folder: Path | None, names: tuple[str, ...]) -> State | None:
    if folder is None:
        return None
    return next((read_tensors(folder / name) for name in names if (folder / name).is_file()), None)


def _from_hub(net: str, base: str, remote: str, cached: str, names: tuple[str, ...]) -> State:
    """Load ``cached`` from the torch hub cache, or download it there first."""
    return published_tensors(
        f"{os.environ.get(URL_VARIABLE) or base}/{remote}",
        what=f"weights of LPIPS net {net!r}",
        instead=f"{' or '.join(names)} in --lpips-weights",
        fix=f"pass --lpips-weights DIR (or set {WEIGHTS_VARIABLE}), or use --lpips-net lite, which ships with Pare",
        file_name=cached,
    )


def _head_vectors(net: str, state: State) -> list[Tensor]:
    heads = [state[key].flatten() for index in range(len(state)) if (key := _HEAD_KEY.format(index)) in state]
    widths = OFFICIAL_NETS[net].build().channels
    if tuple(map(len, heads)) != widths:
        fix = f"pass the LPIPS v0.1 file of {net!r}"
        raise CheckpointError(explain(f"linear heads of {net!r}", expected=widths, got=tuple(map(len, heads)), fix=fix))
    return heads
