"""Golden vectors: what an artifact must answer to a photo, computed by PyTorch FP32 on the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.contract import is_picture
from models.controls import graph_feeds
from models.registry import get_spec, get_task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from export.contract import Contract
    from export.target import Runner

    Feeds = dict[str, NDArray[np.float32]]


def feeds_of(rgb: Tensor, contract: Contract) -> Feeds:
    """Return what an artifact of ``contract`` takes for a photo.

    Args:
        rgb: (1, 3, H, W) in [0, 1].
        contract: Of the artifact; one that takes pictures gets ``rgb`` itself.

    Returns:
        {input name: float32 array of batch 1}; controls as the task draws them for this photo, else their defaults.
    """
    task = get_task(contract.task)
    first = contract.inputs[0]
    takes_picture = is_picture(first, task.inputs[0])
    knobs = {knob.name: knob.default for knob in get_spec(contract.model, task=contract.task).controls}
    feeds = graph_feeds(task.prepare(rgb)[0].numpy(), contract.inputs, knobs)
    return {**feeds, first.name: np.ascontiguousarray(rgb.numpy())} if takes_picture else feeds


def expected_of(rgb: Tensor, contract: Contract, reference: Runner) -> Feeds:
    """Return what an artifact of ``contract`` should answer to a photo.

    Args:
        rgb: (1, 3, H, W) in [0, 1].
        contract: Of the artifact; one that gives pictures is compared with the rendered answer.
        reference: Open ``torch`` runner of the network that it was exported from.

    Returns:
        {output name: float32 array of batch 1}.
    """
    import torch

    from export.portable import StableSorts

    task = get_task(contract.task)
    inputs, _ = task.prepare(rgb)
    knobs = {knob.name: knob.default for knob in get_spec(contract.model, task=contract.task).controls}
    with StableSorts():
        answer = reference.infer(graph_feeds(inputs.numpy(), reference.inputs, knobs))
    name = contract.outputs[0].name
    if is_picture(contract.outputs[0], task.outputs[0]):
        rendered = task.render(inputs, torch.from_numpy(answer[reference.outputs[0].name]))
        return {name: rendered.numpy()}
    return answer


def photo_size(contract: Contract) -> tuple[int, int]:
    """Return the height and width of the photos that an artifact's inputs are made of."""
    return get_task(contract.task).photo_size(contract.input_size)


def random_photo(size: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Return a smooth random picture (1, 3, H, W) in [0, 1]: noise of an eighth of the size, enlarged bilinearly."""
    import torch
    from torch.nn import functional

    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, max(1, size[0] // 8), max(1, size[1] // 8), generator=rng)
    return functional.interpolate(noise, size=size, mode="bilinear", align_corners=False)


def sample_photo(size: tuple[int, int]) -> Tensor:
    """Return the first embedded photo that nothing is trained on, cropped and resized to (1, 3, H, W) in [0, 1]."""
    from models.photos import centre_crop, embedded_photos, to_batch

    return to_batch([centre_crop(embedded_photos("eval").load(0), *size)])
