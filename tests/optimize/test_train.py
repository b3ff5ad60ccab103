"""Training a teacher: pixel loss first, then a discriminator that is frozen and thawed at each step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import models
from models.artifact import Artifact, load_network
from models.errors import CheckpointError, ConfigError, InputSizeError, TrainingError
from models.registry import create_model, get_task
from models.resnet18_unet import ResNet18Encoder
from optimize.loop import Fit, FitConfig, Phase
from optimize.stage import StageContext
from optimize.train import PatchDiscriminator, TrainConfig, TrainStep, run

OWN = """
from models.resnet18_unet import resnet18_unet


def narrow():
    return resnet18_unet(width=8)
"""
MODEL = "own_teacher:narrow"


@pytest.fixture(autouse=True)
def _own_model(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("module")
    (folder / "own_teacher.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_teacher", raising=False)


def fit(**changes: Any) -> FitConfig:
    defaults = {"phases": (Phase(32, 2, 3),), "mixed_precision": "no", "learning_rate": 3e-3, "ema_decay": 0.9}
    return FitConfig(**{**defaults, **changes})


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"model": MODEL, "fit": fit(), "perceptual_weight": 0.0, **changes})


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Keep the values of every step."""
    seen: list[dict[str, float]] = []
    original = TrainStep.__call__

    def keep(self: TrainStep, batch: Tensor, fraction: float) -> Mapping[str, Tensor]:
        values = original(self, batch, fraction)
        seen.append({key: float(value.detach()) for key, value in values.items()})
        return values

    monkeypatch.setattr(TrainStep, "__call__", keep)
    return seen


def test_training_learns_the_colours_of_its_photos(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    run(None, config(fit=fit(phases=(Phase(32, 16, 6),), learning_rate=1e-2)), context, tmp_path)
    assert seen[-1]["pixel"] < 0.7 * seen[0]["pixel"]
    assert set(seen[0]) == {"loss", "pixel"}


def test_the_artifact_says_what_was_done(context: StageContext, tmp_path: Path) -> None:
    teacher = run(None, config(score_share=1e6), context, tmp_path)
    assert teacher.path == tmp_path / "narrow.safetensors"
    assert (teacher.model, teacher.task, teacher.stages) == (MODEL, "colorize", ("teacher",))
    meta = teacher.metadata
    assert meta["photos"] == 6
    assert meta["recipe"]["fit"]["phases"] == [{"size": 32, "epochs": 2, "batch_size": 3}]
    assert meta["scores"]["lpips_net"] == "lite"
    assert [row["epoch"] for row in meta["log"]] == [0, 1]
    assert Artifact.load(teacher.path).metadata == meta
    assert {value.dtype for value in load_file(teacher.path).values()} == {torch.float16, torch.int64}
    with torch.inference_mode():
        assert load_network(teacher)(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_scores_take_their_share_of_the_time_and_no_more(context: StageContext, tmp_path: Path) -> None:
    teacher = run(None, config(score_share=0.0, fit=fit(phases=(Phase(32, 4, 6),))), context, tmp_path)
    assert [row["epoch"] for row in teacher.metadata["log"]] == [0]
    assert 0 <= teacher.metadata["scores"]["lpips"] < 2
    with pytest.raises(ConfigError, match="score_share: expected 0 or more, got -1"):
        config(score_share=-1)


def test_an_interrupted_training_goes_on(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(adversarial_weight=0.1, adversarial_from=0.2)
    whole = run(None, settings, context, tmp_path / "whole")
    original = TrainStep.__call__

    def stop(self: TrainStep, batch: Tensor, fraction: float) -> Mapping[str, Tensor]:
        if self.fit.step == 3:
            raise KeyboardInterrupt
        return original(self, batch, fraction)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(None, settings, context, tmp_path / "parts")
    assert (tmp_path / "parts" / "train.checkpoint.safetensors").is_file()
    assert not (tmp_path / "parts" / "narrow.safetensors").exists()
    resumed = run(None, settings, context, tmp_path / "parts")
    assert resumed.sha256 == whole.sha256
    assert [row["epoch"] for row in resumed.metadata["log"]] == [0, 1]


def test_a_loss_that_is_no_number_stops(context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimize.train.pixel_loss", lambda *args, **kwargs: args[0].sum() * float("nan"))
    with pytest.raises(TrainingError, match="loss: expected finite numbers, got nan at step 0; fix: lower --learning"):
        run(None, config(), context, tmp_path)


@pytest.mark.parametrize("kind", ["bce", "lsgan", "hinge"])
def test_the_discriminator_comes_in_late(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seen = watch(monkeypatch)
    settings = config(
        adversarial=kind, adversarial_weight=0.5, adversarial_from=0.5, fit=fit(phases=(Phase(32, 4, 6),))
    )
    run(None, settings, context, tmp_path)
    assert ["rival" in values for values in seen] == [False, False, True, True]
    assert seen[2]["loss"] == pytest.approx(seen[2]["pixel"])  # its weight grows from 0
    assert seen[3]["loss"] != pytest.approx(seen[3]["pixel"], rel=1e-6)


def make_step(folder: Path, settings: TrainConfig) -> TrainStep:
    torch.manual_seed(0)
    state = Fit(
        models.create_model(MODEL),
        settings.fit,
        checkpoint=folder / "train.checkpoint.safetensors",
        adversary=PatchDiscriminator(3, width=4),
    )
    return TrainStep(state, models.get_task("colorize"), settings, None)


def test_the_adversarial_step_thaws_and_freezes_the_discriminator(tmp_path: Path) -> None:
    step = make_step(tmp_path, config(adversarial_weight=1.0, adversarial_from=0.0))
    rival = step.fit.adversary
    assert rival is not None
    before = [p.detach().clone() for p in rival.parameters()]
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    values = step(batch, 1.0)
    assert not any(p.requires_grad for p in rival.parameters())  # frozen for the generator's turn
    assert any(not torch.equal(a, b) for a, b in zip(before, rival.parameters(), strict=True))
    after = [p.detach().clone() for p in rival.parameters()]
    step.fit.descend(values["loss"])
    assert all(torch.equal(a, b) for a, b in zip(after, rival.parameters(), strict=True))
    assert all(p.grad is None for p in rival.parameters())
    step(batch, 1.0)  # thawed again
    assert any(not torch.equal(a, b) for a, b in zip(after, rival.parameters(), strict=True))


def test_the_discriminator_does_not_train_the_generator(tmp_path: Path) -> None:
    step = make_step(tmp_path, config(adversarial_weight=1.0, adversarial_from=0.0))
    step(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), 1.0)
    assert all(p.grad is None for p in step.fit.net.parameters())


def test_the_adversarial_loss_worked_by_hand(tmp_path: Path) -> None:
    """LSGAN: weight x (mean (D(fake) - 1)^2 + adversarial_l1 x L1), full grown after 5% of the training."""
    step = make_step(tmp_path, config(adversarial_weight=0.3, adversarial_from=0.5, adversarial_l1=2.0))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(0.25))

        def forward(self, x: Tensor) -> Tensor:
            return self.value.expand(len(x), 1, 2, 2)

    step.fit.adversary = Constant()
    step.fit.adversary_optimizer = torch.optim.SGD(step.fit.adversary.parameters(), 0.0)
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    values = step(batch, 0.525)
    inputs, target = step.task.prepare(batch.float() / 255)
    with torch.no_grad():
        l1 = (step.fit.net(inputs) - target).abs().mean() * 255 / 10
    want = values["pixel"].item() + 0.5 * 0.3 * (0.75**2 + 2.0 * l1.item())
    assert values["loss"].item() == pytest.approx(want, rel=1e-4)
    assert values["rival"].item() == pytest.approx((0.75**2 + 0.25**2) / 2)


def test_the_discriminator_answers_per_patch() -> None:
    logits = PatchDiscriminator(3)(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 1, 8, 12)


def test_lpips_joins_the_loss(context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    run(None, config(perceptual_weight=3.0, fit=fit(phases=(Phase(32, 1, 6),))), context, tmp_path)
    assert seen[0]["lpips"] > 0
    assert seen[0]["loss"] == pytest.approx(seen[0]["pixel"] + 3.0 * seen[0]["lpips"], rel=1e-5)


def test_lpips_of_an_overlay_is_that_of_the_composite(tmp_path: Path, random_lpips: Path) -> None:
    """On a black photo no overlay shows: the maps differ, the composites do not."""
    folder = tmp_path / "film"
    folder.mkdir()
    settings = TrainConfig(model="overlay_unet", fit=fit(), perceptual_weight=1.0, task_weight=False)
    net = create_model("overlay_unet", widths=[8, 8], depths=[1, 1])
    torch.nn.init.normal_(net.head.weight)
    step = TrainStep(
        Fit(net, settings.fit, checkpoint=folder / "c.safetensors"), get_task("overlay"), settings, random_lpips
    )
    black = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    grey_map = torch.randint(100, 156, (2, 1, 32, 32), dtype=torch.uint8).expand(-1, 3, -1, -1)
    values = step(torch.cat([black, grey_map], dim=1), 0.0)
    assert values["pixel"].item() > 0.1
    assert values["lpips"].item() == pytest.approx(0, abs=1e-6)
    values = step(torch.cat([black + 90, grey_map], dim=1), 0.0)
    assert values["lpips"].item() > 1e-4


def test_training_starts_from_given_weights(context: StageContext, tmp_path: Path) -> None:
    first = run(None, config(), context, tmp_path / "one")
    still = fit(phases=(Phase(32, 1, 6),), learning_rate=1e-9, weight_decay=0.0)
    second = run(first, config(fit=still), context, tmp_path / "two")
    one, two = (load_network(artifact).head.weight for artifact in (first, second))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-3)


def test_sizes_that_the_network_cannot_take_are_refused_first(context: StageContext, tmp_path: Path) -> None:
    crops = config(model="resnet18_unet", fit=fit(phases=(Phase(64, 1), Phase(80, 1))))
    text = r"crops that resnet18_unet learns from: expected at least 32 pixels and a multiple of 32, got 80; fix: .*96"
    with pytest.raises(InputSizeError, match=text):
        run(None, crops, context, tmp_path)
    with pytest.raises(InputSizeError, match="got 100x64; fix: resize, crop or pad to 128x64"):
        run(None, config(model="resnet18_unet"), replace(context, input_size=(100, 64)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_encoder_weights_are_loaded(context: StageContext, tmp_path: Path) -> None:
    torch.manual_seed(7)
    encoder = ResNet18Encoder(8)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    still = fit(phases=(Phase(32, 1, 6),), learning_rate=1e-9, weight_decay=0.0)
    settings = config(fit=still, encoder_weights=str(tmp_path / "encoder.pth"))
    teacher = run(None, settings, context, tmp_path / "out")
    got = load_network(teacher).encoder.conv1.weight
    torch.testing.assert_close(got, encoder.conv1.weight, rtol=0, atol=1e-3)
    with pytest.raises(CheckpointError, match=r"expected file .*none\.pth, got no such file"):
        run(None, config(encoder_weights=str(tmp_path / "none.pth")), context, tmp_path / "other")


@pytest.mark.parametrize(
    "values", [{"perceptual_weight": -1.0}, {"adversarial_weight": -1.0}, {"adversarial_from": 1.5}]
)
def test_wrong_settings_are_refused(values: dict[str, float]) -> None:
    message = r"training losses: expected weights of 0 or more, adversarial_from in \[0, 1\], got .*; fix: change"
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)  # type: ignore[arg-type]


def test_the_arguments_of_given_weights_are_kept(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    settings = TrainConfig(fit=fit(phases=(Phase(32, 1, 6),)))
    teacher = run(tiny_teacher, settings, context, tmp_path)
    assert (teacher.model, teacher.model_kwargs) == ("resnet18_unet", {"width": 8})
    assert load_network(teacher).stem.out_channels == 3


def test_the_command_trains_the_teacher_that_it_names() -> None:
    from optimize.pipeline import stage_defaults
    from optimize.recipe import Recipe, TeacherRecipe, stage_config

    recipe = Recipe(teacher=TeacherRecipe(MODEL), stages=())
    settings = stage_config(recipe, "train", stage_defaults("train", recipe, None))  # type: ignore[arg-type]
    assert settings.model == MODEL


def test_the_pixel_loss_changes_late(tmp_path: Path) -> None:
    step = make_step(tmp_path, config(pixel="l1", late_pixel="mse", late_from=0.5, task_weight=False))
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    inputs, target = step.task.prepare(batch.float() / 255)
    with torch.no_grad():
        steps = (step.fit.net(inputs) - target) * 255
    assert step(batch, 0.4)["pixel"].item() == pytest.approx(steps.abs().mean().item() / 10, rel=1e-4)
    assert step(batch, 0.5)["pixel"].item() == pytest.approx(steps.square().mean().item() / 100, rel=1e-4)


def test_total_variation_is_added_with_its_weight(tmp_path: Path) -> None:
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        values = make_step(tmp_path, config(tv_weight=0.25, perceptual_weight=0))(batch, 0.0)
    assert float(values["tv"]) > 0
    assert float(values["loss"]) == pytest.approx(float(values["pixel"] + 0.25 * values["tv"]), rel=1e-5)
    with pytest.raises(ConfigError, match="training losses: expected weights of 0 or more"):
        config(tv_weight=-1.0)


class _OwnLoss(torch.nn.Module):
    """A network whose training is not by its output: it learns one number, 0.5, and no pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input: torch.Tensor, target: torch.Tensor | None = None) -> Any:
        return input if target is None else self.training_losses(input, target)

    def training_losses(self, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.value - 0.5).square().sum() + 0 * (inputs.sum() + target.sum())}


def test_a_network_brings_its_own_training_losses() -> None:
    from types import SimpleNamespace

    net = _OwnLoss()
    fit: Any = SimpleNamespace(net=net, raw_net=net)
    step = TrainStep(fit, get_task("balance"), TrainConfig(perceptual_weight=0), None)
    values = step(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 0.0)
    assert set(values) == {"loss"}
    assert float(values["loss"]) == 0.25
