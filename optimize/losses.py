"""Losses of training and distillation: each takes (N, C, H, W) tensors and returns a scalar.

``kl_mse`` is the formula of the colorization report that this project starts from, kept for comparison; a softmax over
a regression output has little meaning, so the default is a weighted pixel distance next to
feature matching and LPIPS.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.metrics.fidelity import SCALE_WEIGHTS, WINDOW, similarity
from models.errors import ConfigError, UnsupportedError, explain

PixelLoss = Literal["mse", "l1", "huber", "cauchy", "ms_ssim_l1"]
AdversarialLoss = Literal["bce", "lsgan", "hinge"]


def check_gradient(loss: Tensor) -> None:
    """Raise UnsupportedError where no gradient goes from ``loss`` to the weights."""
    if not loss.requires_grad:
        fix = "remove torch.no_grad() from its forward, and requires_grad = False from its weights"
        got = "an answer that no gradient goes through"
        raise UnsupportedError(explain("training", expected="a network with gradients", got=got, fix=fix))


def pixel_loss(preds: Tensor, target: Tensor, *, kind: PixelLoss, scale: float, weight: Tensor | None = None) -> Tensor:
    """Mean pixel distance in visible steps.

    Args:
        preds: Network output (N, C, H, W).
        target: What it should be, same shape.
        kind: ``mse``, ``l1``, ``huber`` (knee at 10 steps), or ``cauchy``: log(1 + d^2 / 100) / 2 of the distance d
            over the channels together. Where several answers are right (green or brown leaves), ``mse`` ends at their
            mean and ``huber`` near their median, both dull; ``cauchy`` chooses one. Or ``ms_ssim_l1``
            (``ms_ssim_l1``, over 10 steps like ``l1``).
        scale: Output units of one visible step (``Task.output_scale``).
        weight: Per-pixel weight (N, 1, H, W); structural similarity has none.
    """
    if kind == "ms_ssim_l1":
        return ms_ssim_l1(preds, target) / (10 * scale)
    difference = (preds - target) / scale
    if kind == "mse":
        distance = difference.square() / 100
    elif kind == "l1":
        distance = difference.abs() / 10
    elif kind == "huber":
        distance = functional.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=10.0) / 100
    elif kind == "cauchy":
        distance = torch.log1p(difference.square().sum(dim=1, keepdim=True) / 100) / 2
    else:
        expected = " | ".join(get_args(PixelLoss))
        raise ConfigError(explain("pixel loss", expected=expected, got=repr(kind), fix="choose one of these"))
    return (distance if weight is None else distance * weight).mean()


def ms_ssim_l1(preds: Tensor, target: Tensor, *, share: float = 0.84) -> Tensor:
    """0.84 (1 - MS-SSIM) + 0.16 L1 of values in a range of 1, any number of channels, sides of 11 or more.

    MS-SSIM has five scales from 176 pixels on, else as many as its window fits into, their weights made to sum to one.

    Source: Zhao et al. 2017, "Loss functions for image restoration with neural networks" (whose L1 is blurred by the
    window of the coarsest scale; here it is not).
    """
    distance = functional.l1_loss(preds, target)
    count = sum(min(preds.shape[2:]) >= WINDOW * 2**scale for scale in range(len(SCALE_WEIGHTS)))
    if not count:
        got = f"{preds.shape[2]}x{preds.shape[3]}"
        fix = "train on larger crops, or choose another pixel loss"
        raise ConfigError(explain("ms_ssim_l1", expected=f"sides of {WINDOW} or more", got=got, fix=fix))
    likeness = preds.new_ones(preds.shape[:2])
    for scale, weight in enumerate(SCALE_WEIGHTS[:count]):
        if scale:
            preds, target = functional.avg_pool2d(preds, 2), functional.avg_pool2d(target, 2)
        whole, structure = similarity(preds, target)
        part = whole if scale == count - 1 else structure
        likeness = likeness * part.clamp_min(1e-3) ** (weight / sum(SCALE_WEIGHTS[:count]))  # a slope at 0 is infinite
    return share * (1 - likeness.mean()) + (1 - share) * distance


def total_variation(preds: Tensor, *, scale: float) -> Tensor:
    """Mean absolute step to the right and downward neighbour, in the unit of ``pixel_loss``'s ``l1``: (N, C, H, W).

    Source: Rudin et al. 1992 (the anisotropic form); a weight of 0.001 to 0.01 keeps overlays smooth.
    """
    steps = preds.diff(dim=3).abs().mean() + preds.diff(dim=2).abs().mean()
    return steps / (10 * scale)


def kl_mse(
    student: Tensor, teacher: Tensor, target: Tensor, *, alpha: float, temperature: float, axis: int = 1
) -> Tensor:
    """The source's distillation loss: alpha t^2 KL(log_softmax(S / t), softmax(T / t)) + (1 - alpha) MSE(S, Y).

    Args:
        student: Student output S (N, C, H, W).
        teacher: Teacher output T, same shape.
        target: Ground truth Y, same shape.
        alpha: Share of the teacher's term, in [0, 1].
        temperature: t, above 0.
        axis: Axis of the softmax; 1 is the channels: at each pixel, how chroma is shared between a and b. The sum over
            channels is averaged over samples and pixels.
    """
    log_student = functional.log_softmax(student / temperature, dim=axis)
    soft_teacher = functional.softmax(teacher / temperature, dim=axis)
    divergence = functional.kl_div(log_student, soft_teacher, reduction="none").sum(dim=axis).mean()
    return alpha * temperature**2 * divergence + (1 - alpha) * functional.mse_loss(student, target)


def feature_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between student features (projected to the teacher's channels) and the teacher's.

    Both (N, C, h, w); the student's are resized to the teacher's grid. Each is scaled by the teacher's variance.

    Source: Romero et al. 2015, "FitNets: hints for thin deep nets".
    """
    if projected.shape[2:] != teacher.shape[2:]:
        projected = functional.adaptive_avg_pool2d(projected, (teacher.shape[2], teacher.shape[3]))
    return functional.mse_loss(projected, teacher) / teacher.var().clamp_min(1e-6)


def generator_loss(fake_logits: Tensor, *, kind: AdversarialLoss) -> Tensor:
    """What the generator pays for patches (N, 1, h, w) that the discriminator calls fake."""
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))
    if kind == "lsgan":
        return (fake_logits - 1).square().mean()
    if kind == "hinge":
        return -fake_logits.mean()
    raise ConfigError(explain("adversarial loss", expected="bce, lsgan or hinge", got=repr(kind), fix="choose one"))


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, *, kind: AdversarialLoss) -> Tensor:
    """What the discriminator pays for calling real patches fake and fake patches real; both (N, 1, h, w)."""
    if kind == "bce":
        real = functional.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
        fake = functional.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
        return (real + fake) / 2
    if kind == "lsgan":
        return ((real_logits - 1).square().mean() + fake_logits.square().mean()) / 2
    if kind == "hinge":
        return (functional.relu(1 - real_logits).mean() + functional.relu(1 + fake_logits).mean()) / 2
    raise ConfigError(explain("adversarial loss", expected="bce, lsgan or hinge", got=repr(kind), fix="choose one"))
