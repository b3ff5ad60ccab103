"""Golden vectors of tensor artifacts and of artifacts that take and give pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import export
from export.contract import Contract, contract_of
from export.golden import expected_of, feeds_of, random_photo, sample_photo
from models.artifact import Artifact
from models.registry import get_task
from models.spec import Precision


def contract(artifact: Artifact) -> Contract:
    return contract_of(artifact, precision=Precision.FP32, input_size=(32, 64), dynamic=False)


def test_tensor_artifact_gets_what_the_task_prepares(tiny_student: Artifact) -> None:
    rgb = random_photo((32, 64))
    feeds = feeds_of(rgb, contract(tiny_student))
    assert list(feeds) == ["input"]
    assert np.array_equal(feeds["input"], get_task("colorize").prepare(rgb)[0].numpy())
    with export.open_runner(tiny_student.path, threads=1) as runner:
        expected = expected_of(rgb, contract(tiny_student), runner)
        assert np.array_equal(expected["output"], runner.infer(feeds)["output"])


def test_picture_artifact_gets_and_gives_pictures(tiny_student: Artifact) -> None:
    plain = contract(tiny_student)
    pictures = replace(
        plain,
        inputs=(replace(plain.inputs[0], color_space="srgb", shape=(1, 3, 32, 64)),),
        outputs=(replace(plain.outputs[0], color_space="srgb", shape=(1, 3, 32, 64)),),
    )
    rgb = random_photo((32, 64))
    assert np.array_equal(feeds_of(rgb, pictures)["input"], rgb.numpy())
    with export.open_runner(tiny_student.path, threads=1) as runner:
        expected = expected_of(rgb, pictures, runner)["output"]
        inputs, _ = get_task("colorize").prepare(rgb)
        answer = runner.infer({"input": inputs.numpy()})["output"]
    assert expected.shape == (1, 3, 32, 64)
    assert np.array_equal(expected, get_task("colorize").render(inputs, torch.from_numpy(answer)).numpy())


def test_photos_are_in_range_and_repeatable() -> None:
    for photo in (random_photo((32, 64), seed=5), sample_photo((32, 64))):
        assert photo.shape == (1, 3, 32, 64)
        assert 0 <= float(photo.min()) < float(photo.max()) <= 1
    assert torch.equal(random_photo((32, 64), seed=5), random_photo((32, 64), seed=5))
    assert not torch.equal(random_photo((32, 64), seed=5), random_photo((32, 64), seed=6))
