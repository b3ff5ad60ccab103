"""Distillation: from scratch or from the shipped student, towards the teacher, resumed."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from models import registry
from models.artifact import Artifact, load_network
from models.errors import ConfigError, RunFolderError, TrainingError, UnsupportedError
from models.photos import PhotoSet
from optimize import distill as module
from optimize import teacher_answers
from optimize.distill import (
    DistillConfig,
    DistillStep,
    FeatureTap,
    distill_network,
    hold_out,
    is_nearer,
    run,
    start_student,
)
from optimize.evaluate import load_photos
from optimize.loop import FitConfig, Phase
from optimize.stage import StageContext
from optimize.teacher_answers import WithFeature

STUDENT = {"reduction": 2, "widths": [8, 16], "depths": [1, 1]}


def fit(**changes: Any) -> FitConfig:
    defaults = {"phases": (Phase(32, 2, 4),), "mixed_precision": "no", "learning_rate": 3e-3, "repeat": 2}
    return FitConfig(**{**defaults, **changes})


def config(**changes: Any) -> DistillConfig:
    return DistillConfig(**{"student_kwargs": STUDENT, "fit": fit(), **changes})


@pytest.fixture(autouse=True)
def _pytorch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting the teacher for another runtime takes seconds; it is tested elsewhere."""

    def eager(artifact: Artifact, sample: Tensor, *, feature: str | None) -> Any:
        net = WithFeature(load_network(artifact), feature).eval()

        def predict(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
            with torch.inference_mode():
                answer = net(inputs)
            return answer if isinstance(answer, tuple) else (answer, None)

        return "torch", predict

    monkeypatch.setattr(teacher_answers, "fastest_predict", eager)


@pytest.fixture
def shipped(tiny_teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A folder of shipped weights with a tiny teacher and a tiny student; returns the teacher."""
    folder = tmp_path / "weights"
    options = {"task": "colorize", "half": True}
    teacher = models.save_network(
        load_network(tiny_teacher),
        folder / "resnet18_unet.safetensors",
        model="resnet18_unet",
        model_kwargs={"width": 8},
        stages=("teacher",),
        **options,
    )
    torch.manual_seed(8)
    student = models.create_model("chroma_unet", **STUDENT)
    path = folder / "chroma_unet.safetensors"
    models.save_network(student, path, model="chroma_unet", model_kwargs=STUDENT, **options)
    monkeypatch.setattr(registry, "WEIGHTS", folder)
    monkeypatch.setattr(module, "WEIGHTS", folder)
    return teacher


def distance(net: nn.Module, teacher: Artifact, context: StageContext) -> float:
    """Mean absolute difference of the outputs on the evaluation photos, in visible steps."""
    task = models.get_task("colorize")
    inputs, _ = task.prepare(load_photos(context.eval, (64, 64)))
    with torch.inference_mode():
        return float((net.eval()(inputs) - load_network(teacher)(inputs)).abs().mean()) * 255


def test_distillation_brings_the_student_to_the_teacher(
    tiny_teacher: Artifact, context: StageContext, tmp_path: Path
) -> None:
    settings = config(fit=fit(phases=(Phase(32, 12, 4),), ema_decay=0.9), perceptual_weight=0.0)
    start, name, kind = start_student(settings, tiny_teacher)
    before = distance(start, tiny_teacher, context)
    student = run(tiny_teacher, settings, context, tmp_path)
    after = distance(load_network(student), tiny_teacher, context)
    assert (name, kind) == ("chroma_unet", "scratch")
    assert after < 0.6 * before


def test_the_artifact_says_what_was_done(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    student = run(tiny_teacher, config(), context, tmp_path)
    assert student.path == tmp_path / "student.safetensors"
    assert (student.model, student.task) == ("chroma_unet", "colorize")
    assert student.stages == (*tiny_teacher.stages, "distill")
    assert student.parent_sha256 == tiny_teacher.sha256
    meta = student.metadata
    assert (meta["start"], meta["kept"]) == ("scratch", "result")
    assert meta["photos"] == 5  # one of six is held out
    assert meta["account"]["teacher_runtime"] == "torch"
    assert meta["account"]["feature_matched"] == "bottleneck"
    assert meta["account"]["steps"] == 4
    assert meta["recipe"]["fit"]["phases"] == [{"size": 32, "epochs": 2, "batch_size": 4}]
    assert {"teacher", "student", "lpips_net"} <= set(meta["scores"])
    assert Artifact.load(student.path).metadata == meta
    assert (tmp_path / "cache").is_dir()


def test_the_shipped_student_is_the_start_of_the_shipped_teacher(
    shipped: Artifact, context: StageContext, tmp_path: Path
) -> None:
    settings = DistillConfig(fit=fit(phases=(Phase(32, 1, 4),), learning_rate=1e-5))
    notes: list[str] = []

    class Notes:
        track = context.progress.track
        note = staticmethod(notes.append)

    student = run(shipped, settings, replace(context, progress=Notes()), tmp_path / "out")  # type: ignore[arg-type]
    assert student.metadata["start"] == "shipped"
    assert set(student.metadata["account"]["lpips_to_teacher_held_out"]) == {"before", "after"}
    assert any("starts from the shipped weights" in note for note in notes)
    assert load_network(student).stem[0].out_channels == 8


def test_the_photos_that_judge_are_drawn_at_random_and_not_learned_from(context: StageContext) -> None:
    train = context.train
    many = PhotoSet([train.root / f"{index:03}.png" for index in range(100)], root=train.root)
    learned, judging = hold_out(replace(context, train=many))
    assert (len(learned), len(judging)) == (90, 10)
    assert set(learned.paths) | set(judging.paths) == set(many.paths)
    assert judging.paths not in (many.paths[:10], many.paths[-10:])  # a folder is often sorted by subject
    assert hold_out(replace(context, train=many[:3]))[0].paths == many.paths[:3]


@pytest.mark.parametrize("why", ["from_scratch", "student_kwargs", "another teacher"])
def test_anything_else_starts_from_scratch(shipped: Artifact, why: str) -> None:
    settings = {"from_scratch": config(student_kwargs={}, from_scratch=True), "student_kwargs": config()}
    teacher = replace(shipped, sha256="0" * 64) if why == "another teacher" else shipped
    assert start_student(settings.get(why, config(student_kwargs={})), teacher)[2] == "scratch"
    assert start_student(config(student_kwargs={}), shipped)[2] == "shipped"


def test_scratch_is_seeded(tiny_teacher: Artifact) -> None:
    one, other = (start_student(config(), tiny_teacher)[0] for _ in range(2))
    assert torch.equal(one.head.weight, other.head.weight)
    different = start_student(config(fit=fit(seed=1)), tiny_teacher)[0]
    assert not torch.equal(one.head.weight, different.head.weight)


def test_a_result_must_be_nearer_by_more_than_chance() -> None:
    before = torch.tensor([0.03, 0.02, 0.04, 0.03])
    assert is_nearer(before - 0.005, before)
    assert not is_nearer(before + 0.005, before)
    assert not is_nearer(before - torch.tensor([0.01, -0.008, 0.01, -0.009]), before), "nearer on average, by chance"
    assert not is_nearer(before[:1] - 0.005, before[:1]), "one photo tells nothing"


def test_a_worse_result_gives_the_start_back(
    shipped: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = iter((torch.tensor([0.1, 0.1]), torch.tensor([0.2, 0.2])))
    monkeypatch.setattr(module, "lpips_all", lambda *args, **options: next(gaps))
    settings = DistillConfig(fit=fit(phases=(Phase(32, 1, 4),)))
    student = run(shipped, settings, context, tmp_path / "out")
    assert student.metadata["kept"] == "start"
    start = models.create_model("chroma_unet", pretrained=True)
    assert torch.equal(load_network(student).head.weight, start.head.weight)


def test_an_interrupted_distillation_goes_on(
    tiny_teacher: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_teacher, config(), context, tmp_path / "whole")
    original = DistillStep.__call__

    def stop(self: DistillStep, batch: Any, fraction: float) -> Any:
        if self.fit.step == 2:
            raise KeyboardInterrupt
        return original(self, batch, fraction)

    with monkeypatch.context() as patch:
        patch.setattr(DistillStep, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_teacher, config(), context, tmp_path / "parts")
    resumed = run(tiny_teacher, config(), context, tmp_path / "parts")
    assert resumed.metadata["account"]["steps"] == whole.metadata["account"]["steps"] == 4
    assert resumed.sha256 == whole.sha256


def test_a_loss_that_is_no_number_stops(
    tiny_teacher: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pixel_loss", lambda *args, **kwargs: args[0].sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"loss: expected finite numbers, got nan at step 0; fix: lower"):
        run(tiny_teacher, config(), context, tmp_path)
    assert not (tmp_path / "student.safetensors").exists()


def test_a_full_disk_is_said(
    tiny_teacher: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_answers, "_write", full)
    with pytest.raises(RunFolderError, match="No space left on device; fix: free disk space"):
        run(tiny_teacher, config(), context, tmp_path)


def test_kl_mse_needs_no_features(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    settings = config(loss="kl_mse", fit=fit(phases=(Phase(32, 1, 8),)))
    net, account = distill_network(
        models.create_model("chroma_unet", **STUDENT), tiny_teacher, settings, context, tmp_path, feature="bottleneck"
    )
    assert account["feature_matched"] is None
    assert not net.training
    assert account["steps"] == 1


@pytest.mark.parametrize("wanted", ["truth", "teacher"])
def test_every_weighted_part_is_in_the_loss(
    tiny_teacher: Artifact, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    seen: list[dict[str, float]] = []
    original = DistillStep.__call__

    def keep(self: DistillStep, batch: Any, fraction: float) -> Any:
        values = original(self, batch, fraction)
        seen.append({key: float(value.detach()) for key, value in values.items()})
        return values

    monkeypatch.setattr(DistillStep, "__call__", keep)
    settings = config(
        fit=fit(phases=(Phase(32, 1, 12),)), perceptual_target=wanted, perceptual_weight=2.0, truth_weight=0.3
    )
    distill_network(
        models.create_model("chroma_unet", **STUDENT), tiny_teacher, settings, context, tmp_path, feature="bottleneck"
    )
    parts = seen[0]
    assert set(parts) == {"loss", "output", "truth", "feature", "lpips"}
    total = parts["output"] + 0.3 * parts["truth"] + 0.1 * parts["feature"] + 2.0 * parts["lpips"]
    assert parts["loss"] == pytest.approx(total, rel=1e-4)
    assert all(math.isfinite(value) and value > 0 for value in parts.values())


OWN = """
from torch import nn

from models.spec import TensorSpec
from models.tasks.base import Task


class Invert(Task):
    name = "own_task:Invert"
    inputs = (TensorSpec("input", ("N", 3, "H", "W")),)
    outputs = (TensorSpec("output", ("N", 3, "H", "W")),)

    def prepare(self, rgb):
        return rgb, 1 - rgb

    def render(self, inputs, outputs):
        return outputs.clamp(0, 1)

    def baseline(self, inputs):
        return inputs


def teacher():
    return nn.Conv2d(3, 3, 3, padding=1)
"""


def test_a_teacher_of_another_task_gets_a_student_of_its_channels(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_task.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_task", raising=False)
    names = {"model": "own_task:teacher", "task": "own_task:Invert"}
    teacher = models.save_network(models.create_model("own_task:teacher"), tmp_path / "own.safetensors", **names)
    settings = config(fit=fit(phases=(Phase(32, 1, 8),)))
    student = run(teacher, settings, context, tmp_path / "out")
    assert student.task == "own_task:Invert"
    assert student.model_kwargs == {"in_channels": 3, "out_channels": 3, **STUDENT}
    with torch.inference_mode():
        assert load_network(student)(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert models.get_spec("chroma_unet", task="own_task:Invert").inputs[0].shape[1] == 3


def test_a_feature_that_is_never_computed_is_said() -> None:
    tap = FeatureTap(nn.ModuleDict({"unused": nn.Identity()}), "unused")
    with pytest.raises(UnsupportedError, match=r"student feature: expected a tensor, got none; fix: set ModelSpec"):
        tap.value()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output_weight": -1.0}, "distillation losses: expected weights of 0 or more, one above 0, got"),
        ({"alpha": 1.5}, r"kl_mse: expected alpha in \[0, 1\], temperature above 0, axis 1, 2 or 3, got alpha 1\.5"),
        ({"temperature": 0.0}, "got alpha 0.5, temperature 0.0, axis 1; fix: change the recipe"),
        ({"axis": 0}, "got alpha 0.5, temperature 4.0, axis 0; fix: change the recipe"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**values)  # type: ignore[arg-type]


def test_distillation_needs_a_teacher(context: StageContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distill: expected a teacher artifact, got none; fix: pass --teacher"):
        run(None, config(), context, tmp_path)
