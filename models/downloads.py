"""Published checkpoints: from the torch hub cache, else downloaded there and checked against the hash in their name.

Only tensors are ever read (``weights_only``). Names follow torchvision: ``resnet18-f37072fd.pth`` begins its SHA-256
with ``f37072fd``.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING

from models.artifact import read_tensors, sha256_of
from models.errors import CheckpointError, explain

if TYPE_CHECKING:
    from torch import Tensor

_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


class MissingWeightsError(CheckpointError):
    """Published weights that are neither on this machine nor can be downloaded."""


def hub_path(file_name: str) -> Path:
    """Return where torch hub keeps ``file_name`` (``TORCH_HOME`` moves it)."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / file_name


def published_tensors(
    url: str, *, what: str, fix: str, file_name: str | None = None, instead: str = ""
) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint; it is downloaded once and kept in the torch hub cache.

    Args:
        url: Where it is published.
        what: What it is, for error texts, for example ``"ImageNet weights of ResNet18"``.
        fix: What to do without a network.
        file_name: Name in the cache, ``<name>-<first digits of its SHA-256>.pth``; None: that of the URL.
        instead: What else would have done, for error texts.

    Raises:
        MissingWeightsError: Not in the cache, and no network, no such file, or no room for it.
        CheckpointError: Another hash than that in the name, damaged, or a pickle with code.
    """
    import torch

    path = hub_path(file_name or url.rpartition("/")[2])
    match = _HASH.search(path.name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), match and match.group(1), progress=False)
        except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
            expected = f"{instead and instead + ', '}{path}, or a network to fetch {url}"
            raise MissingWeightsError(explain(what, expected=expected, got=error, fix=fix)) from error
        except RuntimeError as error:  # how torch.hub reports another hash
            again = "download again; the file was cut off or changed on its way"
            raise CheckpointError(explain(url, expected="the published file", got=error, fix=again)) from error
    elif match and not (actual := sha256_of(path)).startswith(match.group(1)):
        again = "remove the file and run again"
        expected = f"a SHA-256 that begins with {match.group(1)}"
        raise CheckpointError(explain(f"{path}", expected=expected, got=actual[: len(match.group(1))], fix=again))
    return read_tensors(path)
