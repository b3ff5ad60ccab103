"""Train ``lite``, our own small network, to reproduce the distances of LPIPS-squeeze.

A first fit of every layer by least squares (``lite_fitting``), then gradient descent on the losses of ``lite_fields``.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.metrics.backbones import lite_features
from benchmarks.metrics.lite_data import Groups, join_photos
from benchmarks.metrics.lite_fields import Fields, field_losses, fit_scales, official_targets
from benchmarks.metrics.lite_fitting import fit_layers, plan_taps
from benchmarks.metrics.lpips import LPIPS, load_lpips
from models.artifact import installed_versions, save_tensors, sha256_of, sidecar_of, write_json
from models.errors import CheckpointError, ConfigError, RunFolderError, TrainingError, explain
from models.photos import open_photos
from models.progress import NULL_PROGRESS, Progress

_CALIBRATION_STEP = 2**31 - 1


@dataclass(frozen=True)
class LiteConfig:
    """What ``train_lite`` does.

    Attributes:
        data: Folders of colour photos, searched recursively.
        output: The safetensors file to write; its ``.json`` card lies beside it.
        lpips_weights: Folder with the official weights of ``squeeze``; None: see ``load_lpips``.
        eval_data: Folder of photos for the figures of the card; None: no figures.
        steps: Optimizer steps after the first fit.
        fit_groups: Groups of four versions, of 128 x 128 pixels, for the first fit.
        pixels: Pixels in a batch, about.
        sizes: ``(side, probability)`` of the training squares.
        learning_rate: Peak of the cosine schedule.
        warmup: Steps of linear warm-up.
        ema: Decay of the averaged weights, which are the ones that are kept.
        checkpoint_every: Steps between two checkpoints.
        seed: Fixes the first fit and every batch.
    """

    data: tuple[Path, ...]
    output: Path
    lpips_weights: Path | None = None
    eval_data: Path | None = None
    steps: int = 4000
    fit_groups: int = 200
    pixels: int = 16 * 128 * 128
    sizes: tuple[tuple[int, float], ...] = ((64, 0.1), (96, 0.15), (128, 0.4), (192, 0.2), (256, 0.15))
    learning_rate: float = 3e-4
    warmup: int = 100
    ema: float = 0.997
    checkpoint_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("data", len(self.data) > 0, "one folder or more", "none", "give --data DIR"),
            ("output", self.output.suffix == ".safetensors", "a .safetensors file", self.output, "give -o FILE"),
            ("steps", self.steps >= 0, "0 or more", self.steps, "give a number of steps"),
            ("fit_groups", self.fit_groups >= 1, "1 or more", self.fit_groups, "try 200"),
            ("pixels", self.pixels >= 4 * 64 * 64, "16384 or more", self.pixels, "use a larger batch"),
            ("learning_rate", self.learning_rate > 0, "more than 0", self.learning_rate, "try 3e-4"),
            ("ema", 0 <= self.ema < 1, "0 to below 1", self.ema, "try 0.997"),
            ("sizes", all(side >= 64 for side, _ in self.sizes), "sides of 64 or more", self.sizes, "drop small sides"),
            ("checkpoint_every", self.checkpoint_every >= 1, "1 or more", self.checkpoint_every, "try 250"),
        )
        for name, passed, expected, got, fix in checks:
            if not passed:
                raise ConfigError(explain(f"LiteConfig.{name}", expected=expected, got=got, fix=fix))

    def recipe(self) -> dict[str, Any]:
        """Return what shapes the result, without paths: JSON values."""
        content = asdict(self)
        for name in ("data", "output", "lpips_weights", "eval_data", "checkpoint_every"):
            del content[name]
        content["sizes"] = [list(entry) for entry in self.sizes]
        return content


def _weights(progress: float) -> dict[str, float]:
    """Weigh the losses: in the end the distances alone decide."""
    support = 0.02 + 0.28 * (1 - progress)
    return {"field": support, "difference": support, "distance": 1.0}


def _rate(step: int, config: LiteConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0))) + 1e-3


class LiteTrainer:
    """One training: the networks, the optimizer, the averaged weights, the step. Saves and resumes.

    Args:
        config: What to do.
        teacher: The official ``squeeze``.
        groups: Where batches come from.
        fit: Whether to do the first fit; not needed before ``load_state``.
        progress: Where to report the first fit.
    """

    def __init__(
        self,
        config: LiteConfig,
        teacher: LPIPS,
        groups: Groups,
        *,
        fit: bool = True,
        progress: Progress = NULL_PROGRESS,
    ) -> None:
        from accelerate.accelerator import Accelerator

        self.config, self.groups = config, groups
        self.accelerator = Accelerator()
        device = self.accelerator.device
        self.teacher = teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        lite = LPIPS(lite_features(), "lite").to(device)
        sample = Groups(groups.photos, ((128, 1.0),), config.fit_groups * 4 * 128 * 128, config.seed)
        images = sample.batch(_CALIBRATION_STEP).flatten(0, 1).to(device)
        self.plans = plan_taps(self.teacher, lite, images[:256])
        student = Fields(lite, [(plan.first, plan.heads) for plan in self.plans])
        if fit:
            fit_layers(self.teacher, lite, images, self.plans, seed=config.seed, progress=progress)
            fit_scales(student.to(device), self.teacher, self.plans, images[:256])
        student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            student.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.average = {name: value.detach().clone() for name, value in self._module().state_dict().items()}
        self.step = 0

    def _module(self) -> Fields:
        module: Fields = self.accelerator.unwrap_model(self.student)
        return module

    def train_step(self) -> dict[str, float]:
        """Take one optimizer step; return the losses.

        Raises:
            TrainingError: A loss is not finite.
        """
        config = self.config
        batch = self.groups.batch(self.step, self.accelerator.process_index).to(self.accelerator.device)
        images = batch.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        targets = official_targets(self.teacher, images, self.plans, len(batch))
        with self.accelerator.autocast():
            fields = self.student(images)
        losses = field_losses([field.float() for field in fields], targets, self.plans, len(batch))
        weights = _weights(self.step / max(1, config.steps))
        loss = sum((weights[name] * losses[name] for name in weights), images.new_zeros(()))
        if not torch.isfinite(loss):
            fix = "lower learning_rate and start again"
            raise TrainingError(explain("loss", expected="a finite number", got=float(loss), fix=fix))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(self.step, config)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self._module().state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def result(self) -> LPIPS:
        """Return the metric with the averaged weights rounded to fp16, on the CPU, in eval mode."""
        fields = Fields(LPIPS(lite_features(), "lite"), self._module().slices)
        fields.load_state_dict({name: value.cpu() for name, value in self.average.items()})
        metric = fields.write_heads().requires_grad_(False).eval()
        return metric.half().float()

    def state(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        model, optimizer = self._module().state_dict(), self.optimizer.state_dict()
        return {"step": self.step, "model": model, "optimizer": optimizer, "average": self.average}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.step = state["step"]
        self._module().load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = {name: value.to(self.accelerator.device) for name, value in state["average"].items()}


def checkpoint_of(output: Path) -> Path:
    """Return where the checkpoint of an unfinished training lies."""
    return output.with_name(output.name + ".checkpoint")


def _read_checkpoint(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state to resume from, or None.

    Raises:
        CheckpointError: The file is damaged.
        RunFolderError: It is of another recipe.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        stored, state = content["recipe"], content["state"]
    except Exception as error:
        fix = "delete it to start again"
        got = f"a file that does not load ({type(error).__name__})"
        raise CheckpointError(explain(f"{path}", expected="a checkpoint of train-lite", got=got, fix=fix)) from error
    if stored != recipe:
        different = sorted(name for name in recipe if stored.get(name) != recipe[name])
        fix = "repeat the first command to resume, delete the file to start again, or choose another --output"
        got = f"another recipe ({', '.join(different)} differ)"
        raise RunFolderError(explain(f"{path}", expected="a checkpoint of the same recipe", got=got, fix=fix))
    return dict(state)


def _save_checkpoint(trainer: LiteTrainer, recipe: dict[str, Any]) -> None:
    if not trainer.accelerator.is_main_process:
        return
    path = checkpoint_of(trainer.config.output)
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"recipe": recipe, "state": trainer.state()}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        fix = "free disk space, or choose another --output; the last whole checkpoint is kept"
        raise RunFolderError(explain(f"writing {path}", expected="a writable folder", got=error, fix=fix)) from error


def train_lite(config: LiteConfig, progress: Progress = NULL_PROGRESS) -> Path:
    """Train ``lite`` and write it: fp16 safetensors, and a JSON card with recipe, data and figures. Resumes.

    Returns:
        ``config.output``.

    Raises:
        DataError: No photos, to train on or for the figures.
        MissingWeightsError: No official weights of ``squeeze``.
        TrainingError: The loss became NaN or infinite.
        RunFolderError: The output cannot be written, or an unfinished training of another recipe lies there.
        CheckpointError: The checkpoint is damaged.
    """
    photos = join_photos(config.data)
    if config.eval_data is not None:
        open_photos(config.eval_data).sample(
            1, seed=config.seed, verify=True
        )  # read in the end: said now if none can be
    progress.note(f"{len(photos)} photos {photos.describe_skipped()}".strip())
    recipe = {**config.recipe(), "photos": photos.fingerprint}
    state = _read_checkpoint(checkpoint_of(config.output), recipe)
    teacher = load_lpips("squeeze", config.lpips_weights)
    groups = Groups(photos, config.sizes, config.pixels, config.seed)
    trainer = LiteTrainer(config, teacher, groups, fit=state is None, progress=progress)
    if state is not None:
        trainer.load_state(state)
        progress.note(f"resumed at step {trainer.step}")
    try:
        with progress.track("Training lite", total=config.steps) as bar:
            bar.advance(trainer.step)
            while trainer.step < config.steps:
                bar.advance(1, **trainer.train_step())
                if trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps:
                    _save_checkpoint(trainer, recipe)
    except KeyboardInterrupt:
        _save_checkpoint(trainer, recipe)
        raise
    if trainer.accelerator.is_main_process:
        write_lite(trainer.result(), config, recipe, photos=len(photos), progress=progress)
        checkpoint_of(config.output).unlink(missing_ok=True)
    return config.output


def write_lite(
    metric: LPIPS, config: LiteConfig, recipe: dict[str, Any], *, photos: int, progress: Progress = NULL_PROGRESS
) -> None:
    """Write the weights as fp16 safetensors and the card beside them, with figures where there is ``eval_data``."""
    from benchmarks.metrics.lite_judging import judge_lite

    half = {name: value.half() for name, value in metric.state_dict().items()}
    save_tensors(half, config.output, metadata={"model": "lpips_lite"})
    card: dict[str, Any] = {
        "model": "lpips_lite",
        "reproduces": "LPIPS-squeeze, version 0.1",
        "parameters": sum(value.numel() for value in metric.state_dict().values()),
        "sha256": sha256_of(config.output),
        "recipe": recipe,
        "photos": photos,
        "versions": installed_versions(),
    }
    if config.eval_data is not None:
        card["figures"] = judge_lite(metric, config.eval_data, config.lpips_weights, progress=progress)
    write_json(sidecar_of(config.output), card)
