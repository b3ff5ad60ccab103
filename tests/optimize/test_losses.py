"""Losses against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.errors import ConfigError
from optimize.losses import (
    discriminator_loss,
    feature_loss,
    generator_loss,
    kl_mse,
    ms_ssim_l1,
    pixel_loss,
    total_variation,
)


def pixels(*values: float) -> Tensor:
    """One sample of one pixel, a channel a value: (1, C, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1)


def test_kl_mse_worked_by_hand() -> None:
    """T / t = (log 3, 0) softens to (3/4, 1/4); S / t = (0, 0) to (1/2, 1/2); Y differs from S by (1, 1)."""
    t, alpha = 2.0, 0.25
    student, teacher, target = pixels(0.0, 0.0), pixels(t * math.log(3), 0.0), pixels(1.0, 1.0)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert divergence == pytest.approx(0.130812, abs=1e-6)
    got = kl_mse(student, teacher, target, alpha=alpha, temperature=t)
    assert got.item() == pytest.approx(alpha * t**2 * 0.130812 + (1 - alpha) * 1.0, abs=1e-5)
    assert got.item() == pytest.approx(0.880812, abs=1e-5)


def test_kl_mse_is_that_of_the_source() -> None:
    """nn.KLDivLoss(batchmean) on rows of one axis, and nn.MSELoss, as the report wrote it."""
    student, teacher, target = torch.randn(3, 6, 2, 4).unbind()[0:3]
    student, teacher, target = (x.reshape(1, 6, 2, 4) for x in (student, teacher, target))
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 6) for x in (student / 3, teacher / 3)]
    divergence = torch.nn.KLDivLoss(reduction="batchmean")(rows[0].log_softmax(1), rows[1].softmax(1))
    want = 0.7 * 9 * divergence + 0.3 * torch.nn.MSELoss()(student, target)
    torch.testing.assert_close(kl_mse(student, teacher, target, alpha=0.7, temperature=3.0), want)


def test_kl_mse_axis_and_ends() -> None:
    student, teacher, target = (torch.randn(2, 2, 3, 3) for _ in range(3))
    assert kl_mse(teacher, teacher, target, alpha=1.0, temperature=4.0).item() == pytest.approx(0, abs=1e-6)
    assert kl_mse(student, teacher, student, alpha=0.0, temperature=4.0).item() == 0
    over_width = kl_mse(student, teacher, target, alpha=1.0, temperature=1.0, axis=3)
    assert over_width.item() > 0
    assert over_width.item() != pytest.approx(kl_mse(student, teacher, target, alpha=1.0, temperature=1.0).item())


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("mse", (4**2 + 30**2) / 100 / 2),
        ("l1", (4 + 30) / 10 / 2),
        ("huber", (4**2 / 2 + 10 * (30 - 5)) / 100 / 2),
        ("cauchy", math.log1p((4**2 + 30**2) / 100) / 2),
    ],
)
def test_pixel_loss_in_visible_steps(kind: str, want: float) -> None:
    scale = 1 / 255
    preds, target = pixels(4 * scale, 0.0), pixels(0.0, 30 * scale)
    assert pixel_loss(preds, target, kind=kind, scale=scale).item() == pytest.approx(want, rel=1e-5)  # type: ignore[arg-type]


def test_pixel_loss_weighs_pixels() -> None:
    preds = torch.ones(1, 2, 1, 2)
    weight = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    got = pixel_loss(preds, torch.zeros_like(preds), kind="l1", scale=0.1, weight=weight)
    assert got.item() == pytest.approx((1 + 3) / 2)


def test_feature_loss_is_relative_to_the_variance_of_the_teacher() -> None:
    teacher = torch.randn(2, 4, 3, 3) * 7
    assert feature_loss(teacher, teacher).item() == 0
    noisy = teacher + teacher.std() * torch.randn_like(teacher)
    assert feature_loss(noisy, teacher).item() == pytest.approx(1.0, rel=0.3)
    large = torch.nn.functional.interpolate(teacher, scale_factor=2.0)
    assert feature_loss(large, teacher).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [
        ("bce", math.log(2), math.log(2)),
        ("lsgan", 1.0, 0.5),
        ("hinge", 0.0, 1.0),
    ],
)
def test_an_undecided_discriminator(kind: str, generator: float, discriminator: float) -> None:
    zeros = torch.zeros(2, 1, 3, 3)
    assert generator_loss(zeros, kind=kind).item() == pytest.approx(generator)  # type: ignore[arg-type]
    assert discriminator_loss(zeros, zeros, kind=kind).item() == pytest.approx(discriminator)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bce", "lsgan", "hinge"])
def test_each_side_pays_for_what_the_other_wants(kind: str) -> None:
    low, high = torch.full((1, 1, 2, 2), -0.9), torch.full((1, 1, 2, 2), 0.9)
    assert generator_loss(high, kind=kind) < generator_loss(low, kind=kind)  # type: ignore[arg-type]
    right, wrong = (discriminator_loss(*pair, kind=kind) for pair in ((high, low), (low, high)))  # type: ignore[arg-type]
    assert right < wrong


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda x: pixel_loss(x, x, kind="l3", scale=1.0),
            "pixel loss: expected mse . l1 .*, got 'l3'; fix: choose one",
        ),  # type: ignore[arg-type]
        (lambda x: generator_loss(x, kind="wgan"), "adversarial loss: expected bce, lsgan or hinge, got 'wgan'"),  # type: ignore[arg-type]
        (lambda x: discriminator_loss(x, x, kind="wgan"), "expected bce, lsgan or hinge, got 'wgan'; fix: choose one"),  # type: ignore[arg-type]
    ],
)
def test_unknown_losses_are_refused(loss: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(torch.zeros(1, 1, 2, 2))  # type: ignore[operator]


def test_ms_ssim_l1_is_the_published_mix() -> None:
    """Against the metric (float64, five scales) and L1, mixed 0.84 to 0.16."""
    from benchmarks.metrics import ms_ssim

    target = torch.rand(1, 3, 22, 22).repeat_interleave(8, 2).repeat_interleave(8, 3)
    preds = (target + 0.1 * torch.randn(1, 3, 176, 176)).clamp(0, 1)
    want = 0.84 * (1 - float(ms_ssim(preds, target))) + 0.16 * float((preds - target).abs().mean())
    assert ms_ssim_l1(preds, target).item() == pytest.approx(want, abs=1e-4)
    in_steps = pixel_loss(preds, target, kind="ms_ssim_l1", scale=1 / 255)
    assert in_steps.item() == pytest.approx(25.5 * want, abs=1e-2)


def test_ms_ssim_l1_of_small_crops_and_one_channel() -> None:
    target = torch.rand(2, 1, 32, 24)
    assert ms_ssim_l1(target, target).item() == pytest.approx(0, abs=1e-5)
    preds = (1 - target).requires_grad_()
    ms_ssim_l1(preds, target).backward()
    assert preds.grad is not None
    assert bool(torch.isfinite(preds.grad).all())
    assert float(preds.grad.abs().max()) > 0
    with pytest.raises(ConfigError, match="ms_ssim_l1: expected sides of 11 or more, got 8x32; fix: train on larger"):
        ms_ssim_l1(torch.rand(1, 1, 8, 32), torch.rand(1, 1, 8, 32))


def test_total_variation_worked_by_hand() -> None:
    """Rows 0, 1, 0 and 0, 3, 0: steps to the right 1, 1, 3, 3 (mean 2), down 0, 2, 0 (mean 2/3)."""
    preds = torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]).view(1, 1, 2, 3)
    assert total_variation(preds, scale=0.1).item() == pytest.approx(2 + 2 / 3)
