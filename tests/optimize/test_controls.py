"""Run-time controls through the stages: trained, answered, distilled into a plain student, calibrated, pruned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.artifact import Artifact, load_network
from models.controls import ControlChannels, unpack
from models.registry import get_task
from optimize.calibration import gather
from optimize.distill import DistillConfig
from optimize.distill import run as distill
from optimize.loop import FitConfig, Phase
from optimize.prune import PruneConfig
from optimize.prune import run as prune
from optimize.quantize import QuantizeConfig
from optimize.quantize import run as quantize
from optimize.sources import check_size
from optimize.stage import StageContext
from optimize.teacher_answers import AnswerConfig, compute_answers
from optimize.train import TrainConfig
from optimize.train import run as train

FIT = FitConfig(phases=(Phase(32, 2, 3),), mixed_precision="no", repeat=1)


def test_training_draws_the_control(two_inputs: Artifact, context: StageContext, tmp_path: Path) -> None:
    config = TrainConfig(
        model="two_inputs:controlled", task="two_inputs:Darken", fit=FIT, perceptual_weight=0, late_pixel=None
    )
    made = train(two_inputs, config, context, tmp_path)
    net = load_network(made)
    image = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert not torch.allclose(net(image, torch.tensor([0.0])), net(image, torch.tensor([2.0])))


def test_answers_are_those_of_the_level_that_the_task_draws_again(
    two_inputs: Artifact, context: StageContext, tmp_path: Path
) -> None:
    answers = compute_answers(two_inputs, context.train, AnswerConfig(32), cache=tmp_path)
    answers.epoch = 5
    net, task = load_network(two_inputs), get_task(two_inputs.task)
    for index in range(len(answers)):
        rgb, output, _ = answers[index]
        with torch.inference_mode():
            want = net(task.prepare(rgb[None].float() / 255)[0])[0]
        assert torch.allclose(output.float(), want, atol=0.02)


def test_a_plain_student_learns_from_a_controlled_teacher(
    two_inputs: Artifact, context: StageContext, tmp_path: Path
) -> None:
    kwargs = {"reduction": 1, "widths": [8, 8], "depths": [1, 1]}
    config = DistillConfig(student_kwargs=kwargs, fit=FIT, perceptual_weight=0, feature_weight=0)
    made = distill(two_inputs, config, context, tmp_path)
    student = load_network(made)
    assert isinstance(student, ControlChannels)
    assert made.model_kwargs["in_channels"] == 4
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.equal(student(image, torch.tensor([0.0])), student(image, torch.tensor([2.0])))
    check_size(made, (32, 32))


def test_calibration_covers_the_range(two_inputs: Artifact, context: StageContext) -> None:
    task = get_task(two_inputs.task)
    found = gather(context.calibration, task, samples=12, input_size=(32, 32))
    levels = unpack(found.inputs, 1)[1]
    assert float(levels.max() - levels.min()) > 1.0  # of a range of 2


def test_int8_and_pruning_take_a_controlled_network(
    two_inputs: Artifact, context: StageContext, tmp_path: Path
) -> None:
    small = replace(context, input_size=(32, 32))
    pruned = prune(
        two_inputs, PruneConfig(pruning_ratio=0.5, round_to=8, fine_tune=False, engines=("onnx",)), small, tmp_path
    )
    net = load_network(pruned)
    assert net.first.out_channels == 8
    assert net.gain.shape == (8,)
    config = QuantizeConfig(
        calibration_samples=6, sensitivity_photos=1, sensitivity_size=32, allow_drop=True, max_float_share=0
    )
    made = quantize(pruned, config, small, tmp_path)
    assert set(made.metadata["quantization"]["ranges"]) == {"first", "head"}
    assert made.metadata["scores"]["lpips"] == pytest.approx(made.metadata["float_scores"]["lpips"], abs=0.05)
