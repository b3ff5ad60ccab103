"""Train a teacher from photos: pixel loss first, then adversarial, as the colorization report did.

The recipe: generator pre-training on a pixel loss (MSE, Huber or L1) weighted by the task and, when asked, LPIPS on the
rendered RGB; then, for the last part of the training, a patch discriminator is frozen and thawed at each step.

Source: Isola et al. 2017 (pix2pix: patch discriminator, L1 beside the adversarial loss); Mao et al. 2017 (LSGAN).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.metrics import LPIPS_NETS
from models.artifact import Artifact, load_network, save_network, write_json
from models.errors import ConfigError, UnknownNameError, explain
from models.registry import create_model, get_spec, get_task
from models.two_ends import at_levels
from optimize.config import to_plain
from optimize.data import PhotoCrops, to_float
from optimize.evaluate import evaluate, load_photos
from optimize.loop import Fit, FitConfig, Phase, check_crops, run_fit
from optimize.losses import AdversarialLoss, PixelLoss, discriminator_loss, generator_loss, pixel_loss, total_variation
from optimize.steps import written_once
from optimize.taught import check_truth
from optimize.two_steps import TwoSteps, finish, has_two_steps

if TYPE_CHECKING:
    from models.spec import ModelSpec
    from models.tasks.base import Task
    from optimize.stage import StageContext


LOG = "train.log.json"


@dataclass(frozen=True)
class TrainConfig:
    """How to train a teacher.

    Attributes:
        model: Registry name or ``"package.module:factory"``.
        task: Task of your own factory; None: that of its spec, else ``colorize``.
        fit: Sizes, epochs, rates.
        native_crops: Cut crops at the photos' own resolution, for networks that run in tiles; ``fit.min_area`` does not
            count then.
        pixel: ``huber``, ``l1``, ``mse``, ``cauchy`` or ``ms_ssim_l1``.
        late_pixel: Pixel loss of the last part: ``cauchy`` makes up its mind; None: ``pixel`` throughout.
        late_from: Share of the training after which ``late_pixel`` comes in, in [0, 1].
        tv_weight: Weight of the total variation of the output; 0: none. For overlays 0.001 to 0.01.
        task_weight: Weigh pixels as the task says (``Task.loss_weight``).
        perceptual_weight: Weight of LPIPS on the rendered RGB; 0: none.
        lpips_net: Which LPIPS the training uses.
        adversarial: ``bce``, ``lsgan`` or ``hinge``.
        adversarial_weight: Weight of the adversarial term once it is on; 0: pre-training only.
        adversarial_from: Share of the training after which the discriminator comes in, in [0, 1].
        adversarial_l1: Weight of the L1 term beside the adversarial one.
        tune_from: Of a network that is tuned to levels (``optimize.two_steps``): share of the training after which its
            modification alone is trained at the end level, in (0, 1).
        score_share: The evaluation photos are scored after an epoch only while that has taken at most this share of the
            training time: with a few photos an epoch is a step, and its scores take longer than the step. The first
            epoch and the end of the training are always scored. 0 or more.
        encoder_weights: ``imagenet`` fetches torchvision's ResNet18 for the encoder; a file loads it; None: random.
    """

    model: str = "resnet18_unet"
    task: str | None = None
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(phases=(Phase(64, 5, 32), Phase(96, 2, 24), Phase(128, 2, 16)))
    )
    native_crops: bool = False
    pixel: PixelLoss = "huber"
    late_pixel: PixelLoss | None = "cauchy"
    late_from: float = 0.6
    tv_weight: float = 0.0
    task_weight: bool = True
    perceptual_weight: float = 5.0
    lpips_net: str = "lite"
    adversarial: AdversarialLoss = "lsgan"
    adversarial_weight: float = 0.0
    adversarial_from: float = 0.8
    adversarial_l1: float = 0.5
    tune_from: float = 0.6
    score_share: float = 0.1
    encoder_weights: str | None = None

    def __post_init__(self) -> None:
        if self.lpips_net not in LPIPS_NETS:
            raise UnknownNameError("LPIPS net", self.lpips_net, LPIPS_NETS)
        if not 0 < self.tune_from < 1:
            fix = "use for example 0.6"
            raise ConfigError(explain("tune_from", expected="between 0 and 1", got=self.tune_from, fix=fix))
        if self.score_share < 0:
            fix = "use for example 0.1"
            raise ConfigError(explain("score_share", expected="0 or more", got=self.score_share, fix=fix))
        weights = (self.perceptual_weight, self.tv_weight, self.adversarial_weight)
        if min(weights) < 0 or not 0 <= self.adversarial_from <= 1:
            got = f"{', '.join(map(str, weights))}, {self.adversarial_from}"
            expected = "weights of 0 or more, adversarial_from in [0, 1]"
            raise ConfigError(explain("training losses", expected=expected, got=got, fix="change the recipe"))


class PatchDiscriminator(nn.Module):
    """70x70-style patch discriminator on input and output: (N, in + out, H, W) -> logits (N, 1, H / 8, W / 8).

    Source: Isola et al. 2017.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in (1, 2):
            layers += [
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(width * level, width * level * 2, 4, 2, 1)),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(width * 4, 1, 3, 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in + out, H, W) -> (N, 1, H / 8, W / 8)."""
        logits: Tensor = self.layers(x)
        return logits


class TrainStep:
    """One training step of a teacher: the losses of ``config`` on a batch of crops."""

    def __init__(self, fit: Fit, task: Task, config: TrainConfig, lpips_weights: Path | None) -> None:
        self.fit, self.task, self.config = fit, task, config
        two = has_two_steps(fit.raw_net, task)
        self.two_steps = TwoSteps(fit, task, config.tune_from, fit.checkpoint.parent) if two else None
        self.perceptual: nn.Module | None = None
        if config.perceptual_weight:
            from benchmarks.metrics.lpips import load_lpips

            self.perceptual = load_lpips(config.lpips_net, lpips_weights).to(fit.accelerator.device)

    def __call__(self, batch: Tensor, fraction: float) -> Mapping[str, Tensor]:
        """uint8 crops (N, 3, S, S) -> ``loss`` and its parts."""
        config, task = self.config, self.task
        rgb = to_float(batch)
        inputs, target = self.two_steps.prepare(rgb, fraction) if self.two_steps else task.prepare(rgb)
        if hasattr(self.fit.raw_net, "training_losses"):  # a network that is not trained by its output
            own: Mapping[str, Tensor] = self.fit.net(inputs, target=target)
            return own
        output = self.fit.net(inputs).float()
        weight = task.loss_weight(target) if config.task_weight else None
        kind = config.late_pixel if config.late_pixel and fraction >= config.late_from else config.pixel
        pixel = pixel_loss(output, target, kind=kind, scale=task.output_scale, weight=weight)
        values = {"pixel": pixel}
        loss = pixel
        if config.tv_weight:
            values["tv"] = total_variation(output, scale=task.output_scale)
            loss = loss + config.tv_weight * values["tv"]
        if self.perceptual is not None:
            with self.fit.accelerator.autocast():
                values["lpips"] = (
                    self.perceptual(task.render(inputs, output), task.truth(inputs, target)).float().mean()
                )
            loss = loss + config.perceptual_weight * values["lpips"]
        if self.fit.adversary is not None and fraction >= config.adversarial_from:
            loss = loss + self._adversarial(inputs, output, target, fraction, values)
        return {"loss": loss, **values}

    def _adversarial(
        self, inputs: Tensor, output: Tensor, target: Tensor, fraction: float, values: dict[str, Tensor]
    ) -> Tensor:
        """Train the discriminator once, then return the generator's term; the weight grows over 5% of the training."""
        config, fit, task = self.config, self.fit, self.task
        rival, optimizer = fit.adversary, fit.adversary_optimizer
        assert rival is not None
        assert optimizer is not None
        scale = 1 / (task.output_scale * 100)
        real, fake = torch.cat([inputs, target * scale], 1), torch.cat([inputs, output * scale], 1)
        rival.requires_grad_(True)
        kind = config.adversarial
        values["rival"] = discriminator_loss(rival(real).float(), rival(fake.detach()).float(), kind=kind)
        fit.accelerator.backward(values["rival"])
        optimizer.step()
        optimizer.zero_grad()
        rival.requires_grad_(False)
        grown = min(1.0, (fraction - config.adversarial_from) / 0.05)
        fooled = generator_loss(rival(fake).float(), kind=kind)
        l1 = pixel_loss(output, target, kind="l1", scale=task.output_scale)
        return grown * config.adversarial_weight * (fooled + config.adversarial_l1 * l1)


name = "train"
config_type = TrainConfig


def run(artifact: Artifact | None, config: TrainConfig, data: StageContext, out: Path) -> Artifact:
    """Train ``config.model`` on ``data.train`` and write ``out/<model>.safetensors`` (the averaged weights, fp16).

    Args:
        artifact: Weights to start from, or None.
        config: The recipe.
        data: Photos, progress, LPIPS.
        out: Folder; ``train.checkpoint.safetensors`` in it resumes.

    Raises:
        InputSizeError: The network cannot take the crops of a phase, or the input size.
        TrainingError: The loss became NaN.
    """
    spec = get_spec(config.model, task=config.task)
    task = get_task(spec.task)
    spec.size.check(*data.input_size)
    check_crops(config.fit, spec, task)
    net = load_network(artifact) if artifact else create_model(config.model, task=config.task)
    if config.encoder_weights:
        from models.pretrained import load_encoder

        load_encoder(net, config.encoder_weights)
    rival = None
    if config.adversarial_weight:
        rival = PatchDiscriminator(spec.packed_channels + int(spec.outputs[0].shape[1]))
    fit = Fit(net, config.fit, checkpoint=out / "train.checkpoint.safetensors", adversary=rival)
    log: list[dict[str, Any]] = []
    if fit.resume():
        data.progress.note(f"Resuming at step {fit.step}")
        log = _read_log(out / LOG)
    rgb = load_photos(data.eval, task.photo_size(data.input_size), limit=48)

    def score(net: nn.Module) -> dict[str, float]:
        return evaluate(net, task, rgb, lpips_net=data.lpips_net, lpips_weights=data.lpips_weights)

    if not hasattr(net, "training_losses"):
        check_truth(task, rgb)

    spent = 0.0

    def report(epoch: int) -> None:
        nonlocal spent
        if spent > config.score_share * fit.seconds:
            return
        start = time.monotonic()
        scores = score(fit.ema.net)
        log[:] = [row for row in log if row["epoch"] < epoch]
        log.append({"epoch": epoch, "minutes": fit.seconds / 60, **scores})
        if fit.accelerator.is_main_process:
            write_json(out / LOG, log)
        text = ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
        data.progress.note(f"epoch {epoch} after {fit.seconds / 60:.1f} min, LPIPS-{data.lpips_net}: {text}")
        spent += time.monotonic() - start

    crops = partial(_crops, config, data, task)
    step = TrainStep(fit, task, config, data.lpips_weights)
    run_fit(fit, crops, step, description=f"Training {spec.name}", progress=data.progress, on_epoch=report)
    metadata = {"recipe": to_plain(config), "photos": len(data.train), "log": log}
    return _save(fit, spec, artifact, metadata, out, lambda net: {"lpips_net": data.lpips_net, **score(net)})


def _crops(config: TrainConfig, data: StageContext, task: Task, phase: Phase) -> PhotoCrops:
    """Return the training crops of a phase."""
    return PhotoCrops(
        data.train,
        phase.size,
        seed=config.fit.seed,
        min_area=config.fit.min_area,
        tone_jitter=config.fit.tone_jitter,
        repeat=config.fit.repeat,
        augmentation=task.augmentation,
        native=config.native_crops,
    )


def _save(
    fit: Fit,
    spec: ModelSpec,
    parent: Artifact | None,
    metadata: Mapping[str, Any],
    out: Path,
    score: Callable[[nn.Module], Mapping[str, Any]],
) -> Artifact:
    """Write the averaged weights in FP16, with what the training took, and the scores of what is written."""
    path = out / f"{spec.name.rpartition(':')[2]}.safetensors"
    net, kwargs, notes = finish(fit.ema.net, parent.model_kwargs if parent else {}, path)
    found = {**metadata, "scores": score(at_levels(net, notes, path)), "account": fit.account, **notes}
    save = partial(
        save_network,
        net,
        path,
        model=spec.name,
        task=spec.task,
        half=True,
        stages=("teacher",),
        model_kwargs=kwargs,
        metadata={**found, "trained": time.strftime("%Y-%m-%d")},
    )
    return written_once(save, path)


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Return the scores of the epochs before an interruption."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return rows
