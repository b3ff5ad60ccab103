"""Quality of a network on held-out photos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.metrics import lpips, psnr
from models.modes import in_eval_mode
from models.photos import centre_crop, to_batch

if TYPE_CHECKING:
    from pathlib import Path

    from models.photos import PhotoSet
    from models.tasks.base import Metric, Task


#: PSNR of pictures that are the same, dB.
_SAME_DB = 100.0


def load_photos(photos: PhotoSet, size: tuple[int, int], *, limit: int | None = None) -> Tensor:
    """Decode up to ``limit`` photos and cut out their centres: (N, 3, *size) in [0, 1]; (N, 6, *size) of pairs."""
    count = len(photos) if limit is None else min(limit, len(photos))
    return to_batch([centre_crop(photos.load(index), *size) for index in range(count)])


@torch.no_grad()
def render_all(net: nn.Module, task: Task, rgb: Tensor, *, batch_size: int = 8) -> Tensor:
    """Run ``net`` over photos (N, 3, H, W) or pairs (N, 6, H, W) and render: RGB (N, 3, H, W) in [0, 1].

    In eval mode; each module gets its own mode back.
    """
    rendered = []
    with in_eval_mode(net):
        for part in rgb.split(batch_size):
            inputs = task.inputs_of(part)
            rendered.append(task.render(inputs, net(inputs)))
    return torch.cat(rendered)


@torch.no_grad()
def truth_all(task: Task, rgb: Tensor, *, batch_size: int = 8) -> Tensor:
    """Return what a perfect network would render of photos (N, 3, H, W), or of pairs (N, 6, H, W): (N, 3, H, W)."""
    return torch.cat([task.truth(*task.prepare(part)) for part in rgb.split(batch_size)])


@torch.no_grad()
def idle_all(task: Task, rgb: Tensor, *, batch_size: int = 8) -> Tensor:
    """Return what the task's do-nothing baseline renders of photos (N, 3, H, W) or pairs (N, 6, H, W)."""
    inputs = [task.inputs_of(part) for part in rgb.split(batch_size)]
    return torch.cat([task.render(part, task.baseline(part)) for part in inputs])


@torch.no_grad()
def lpips_all(preds: Tensor, target: Tensor, *, net: str, weights: Path | None, batch_size: int = 8) -> Tensor:
    """LPIPS of photos (N, 3, H, W) in batches: (N,)."""
    pairs = zip(preds.split(batch_size), target.split(batch_size), strict=True)
    return torch.cat([lpips(a, b, net=net, weights=weights) for a, b in pairs])


@torch.no_grad()
def evaluate(
    net: nn.Module,
    task: Task,
    rgb: Tensor,
    *,
    lpips_net: str = "lite",
    lpips_weights: Path | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """Measure a network against the ground truth.

    Args:
        net: Network of ``task``.
        task: How photos become input and output becomes RGB.
        rgb: Photos (N, 3, H, W) or pairs (N, 6, H, W) in [0, 1] that were not trained on; judged against
            ``task.truth``.
        lpips_net: Which LPIPS; named in the answer's keys' meaning, never mixed.
        lpips_weights: Where the official weights are, for the official nets.
        batch_size: Photos a forward pass.

    Returns:
        ``lpips``, ``lpips_do_nothing`` (the task's baseline), ``lpips_ratio`` of both, ``psnr_db`` and
        ``psnr_db_do_nothing`` (100: the same pictures), ``colourfulness_ratio`` (mean max - min of RGB over
        the truth's), and the task's own metrics by their names, each a mean over photos.
    """
    rendered = render_all(net, task, rgb, batch_size=batch_size)
    truth, idle = (of(task, rgb, batch_size=batch_size) for of in (truth_all, idle_all))
    score = float(lpips_all(rendered, truth, net=lpips_net, weights=lpips_weights).mean())
    floor = float(lpips_all(idle, truth, net=lpips_net, weights=lpips_weights).mean())
    return {
        "lpips": score,
        "lpips_do_nothing": floor,
        "lpips_ratio": score / max(floor, 1e-9),
        "psnr_db": float(psnr(rendered, truth).clamp_max(_SAME_DB).mean()),
        "psnr_db_do_nothing": float(psnr(idle, truth).clamp_max(_SAME_DB).mean()),
        "colourfulness_ratio": float(_spread(rendered) / _spread(truth).clamp_min(1e-6)),
        **{name: _mean(metric, rendered, truth, batch_size) for name, metric in task.own_metrics().items()},
    }


def _mean(metric: Metric, rendered: Tensor, truth: Tensor, batch_size: int) -> float:
    pairs = zip(rendered.split(batch_size), truth.split(batch_size), strict=True)
    return float(torch.cat([metric(*pair) for pair in pairs]).float().mean())


def _spread(rgb: Tensor) -> Tensor:
    return (rgb.amax(dim=1) - rgb.amin(dim=1)).mean()
