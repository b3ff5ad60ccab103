"""Two-step training: the start level first, then only the modification; DNI keeps both ends, blended at export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from export.blending import blended
from models.artifact import Artifact, load_network, read_tensors, save_network
from models.controls import pack
from models.dni import DNI
from models.errors import ConfigError, UnsupportedError, UsageError
from models.registry import create_model, get_task
from models.two_ends import load_at_levels
from optimize.evaluate import evaluate, load_photos
from optimize.loop import Fit, FitConfig, Phase
from optimize.stage import StageContext
from optimize.teacher_answers import fastest_predict
from optimize.train import TrainConfig, TrainStep
from optimize.train import run as train

FIT = FitConfig(phases=(Phase(32, 3, 2),), mixed_precision="no", learning_rate=1e-2, ema_decay=0.0)
SIZES: dict[str, dict[str, Any]] = {
    "adafm": {"width": 8, "depth": 1},
    "ftn": {"width": 8, "depth": 1, "groups": 2},
    "dni": {"width": 8, "depth": 1},
}


def start_of(name: str, folder: Path) -> Artifact:
    """Save a tiny network to train on."""
    folder.mkdir()
    return save_network(
        create_model(name, **SIZES[name]),
        folder / "start.safetensors",
        model=name,
        task="denoise",
        model_kwargs=SIZES[name],
    )


def config_of(name: str, **changes: Any) -> TrainConfig:
    return TrainConfig(model=name, fit=FIT, pixel="l1", perceptual_weight=0, late_pixel=None, tune_from=0.5, **changes)


@pytest.mark.parametrize("name", ["adafm", "ftn"])
def test_each_step_changes_its_own_part_at_its_own_level(name: str, tmp_path: Path) -> None:
    net = create_model(name, **SIZES[name])
    fit = Fit(net, FIT, checkpoint=tmp_path / "c.safetensors")
    step = TrainStep(fit, get_task("denoise"), config_of(name), None)
    assert step.two_steps is not None
    tuning = {id(parameter) for parameter in net.tuning_parameters()}
    batch = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    for fraction, level, moves in ((0.1, 0.0, False), (0.9, 1.0, True)):
        assert step.two_steps.prepare(batch / 255, fraction)[0][0, 3, 0, 0] == level
        before = {id(p): p.detach().clone() for p in net.parameters()}
        fit.descend(step(batch, fraction)["loss"])
        changed = {id(p) for p in net.parameters() if not torch.equal(before[id(p)], p)}
        assert changed
        assert changed <= tuning if moves else not changed & tuning


def test_the_learning_rate_starts_again_with_the_second_step(tmp_path: Path) -> None:
    fit = Fit(create_model("adafm", **SIZES["adafm"]), FIT, checkpoint=tmp_path / "c.safetensors")
    step = TrainStep(fit, get_task("denoise"), config_of("adafm"), None)
    rates = []
    for fraction in (0.1, 0.49, 0.6, 0.99):
        step(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), fraction)
        rates.append(fit.optimizer.param_groups[0]["lr"])
    assert rates[0] > rates[1] < rates[2] > rates[3]


def test_ftn_is_saved_as_it_ships(context: StageContext, tmp_path: Path) -> None:
    made = train(start_of("ftn", tmp_path / "a"), config_of("ftn"), context, tmp_path)
    assert made.model_kwargs["finished"] is True
    assert not any("transition" in key for key in load_network(made).state_dict())


def test_dni_keeps_both_ends_and_is_blended_at_export(context: StageContext, tmp_path: Path) -> None:
    made = train(start_of("dni", tmp_path / "a"), config_of("dni"), context, tmp_path)
    note = made.metadata["blend"]
    ends = [read_tensors(tmp_path / note[key]) for key in ("start", "end")]
    key = "model.7.weight"
    assert not torch.equal(ends[0][key], ends[1][key])
    for alpha in (0.0, 0.25, 1.0):
        plain = blended(made, {"alpha": alpha}, tmp_path / "out.onnx")
        assert plain.path.name == f"out.alpha-{alpha:g}.safetensors"
        assert torch.allclose(load_network(plain).state_dict()[key], ends[0][key].lerp(ends[1][key], alpha), atol=1e-6)
        assert plain.model_kwargs["alpha"] == alpha
    with pytest.raises(UsageError, match=r"--set alpha: expected 0 to 1, got 2; fix: choose a value between"):
        blended(made, {"alpha": 2.0}, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match=r"--set: expected alpha, got level; fix: name a control"):
        blended(made, {"level": 0.5}, tmp_path / "out.onnx")
    with pytest.raises(UnsupportedError, match=r"expected its two ends, got an artifact without them"):
        blended(plain, {"alpha": 0.5}, tmp_path / "out.onnx")


@pytest.mark.parametrize("name", ["adafm", "ftn", "dni"])
def test_the_scores_of_a_training_are_those_of_what_it_saved(name: str, context: StageContext, tmp_path: Path) -> None:
    made, task = train(start_of(name, tmp_path / "a"), config_of(name), context, tmp_path), get_task("denoise")
    rgb = load_photos(context.eval, context.input_size, limit=48)
    want = evaluate(load_at_levels(made), task, rgb, lpips_net="lite", lpips_weights=context.lpips_weights)
    assert made.metadata["scores"]["psnr_db"] == pytest.approx(want["psnr_db"], abs=0.02)
    if name == "dni":  # neither the blend half way nor the end alone
        plain = evaluate(load_network(made), task, rgb, lpips_net="lite", lpips_weights=context.lpips_weights)
        assert abs(plain["psnr_db"] - want["psnr_db"]) > 1e-3


def test_a_blend_teaches_each_image_at_its_own_level(context: StageContext, tmp_path: Path) -> None:
    made = train(start_of("dni", tmp_path / "a"), config_of("dni"), context, tmp_path)
    images, levels = torch.rand(3, 3, 32, 32), (0.0, 0.25, 1.0)
    packed = pack(images, torch.tensor(levels)[:, None])
    runtime, predict = fastest_predict(made, packed, feature="model.1")
    answers, feature = predict(packed)
    assert (runtime, feature) == ("torch fp32", None)
    with torch.inference_mode():
        for image, level, answer in zip(images, levels, answers, strict=True):
            plain = load_network(blended(made, {"alpha": level}, tmp_path / "out.onnx"))
            assert torch.allclose(plain(image[None])[0], answer, atol=1e-6)
    assert isinstance(load_at_levels(start_of("dni", tmp_path / "b")), DNI)


def test_tune_from_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"tune_from: expected between 0 and 1, got 1\.0"):
        TrainConfig(tune_from=1.0)
