"""The teacher's answers: right, kept, resumed, and computed by the fastest runtime that agrees."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from models.artifact import Artifact
from models.errors import RunFolderError, UnsupportedError
from models.photos import PhotoSet
from models.progress import SilentProgress
from optimize import teacher_answers as module
from optimize.data import PhotoCrops, to_float
from optimize.teacher_answers import AnswerConfig, Answers, WithFeature, compute_answers, fastest_predict

CONFIG = AnswerConfig(32, views=3, seed=2)


class Counted:
    """Stands for ``fastest_predict``: PyTorch, counting the crops that it answers."""

    def __init__(self) -> None:
        self.crops = 0
        self.fail_after: int | None = None

    def __call__(self, artifact: Artifact, sample: Tensor, *, feature: str | None) -> tuple[str, Callable[..., Any]]:
        net = WithFeature(models.load_network(artifact), feature).eval()

        def predict(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
            if self.fail_after is not None and self.crops >= self.fail_after:
                raise KeyboardInterrupt
            self.crops += len(inputs)
            with torch.inference_mode():
                answer = net(inputs)
            return answer if isinstance(answer, tuple) else (answer, None)

        return "counted", predict


class Noted(SilentProgress):
    """Keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Small batches, so that a few photos make several."""
    counted = Counted()
    monkeypatch.setattr(module, "fastest_predict", counted)
    monkeypatch.setattr(module, "_BATCH", 4)
    return counted


def test_answers_are_those_of_the_teacher(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted
) -> None:
    answers = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    assert len(answers) == 18
    assert answers.runtime == "counted"
    assert answers.feature_channels == 64
    crops = PhotoCrops(train_photos, 32, seed=2, min_area=CONFIG.min_area, tone_jitter=CONFIG.tone_jitter, repeat=3)
    net, task = models.load_network(tiny_teacher), models.get_task("colorize")
    for index in (0, 7, 17):
        rgb, output, feature = answers[index]
        flipped = not torch.equal(rgb, crops[index])
        if flipped:
            rgb, output, feature = rgb.flip(2), output.flip(2), feature.flip(2)
        assert torch.equal(rgb, crops[index])
        with torch.inference_mode():
            inputs = task.prepare(to_float(rgb[None]))[0]
            want = WithFeature(net, "encoder.layer4")(inputs)
        torch.testing.assert_close(output.float(), want[0][0], rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(feature.float(), want[1][0], rtol=1e-2, atol=1e-3)


def test_flips_change_with_the_epoch_and_keep_pairs_together(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted
) -> None:
    answers = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    seen: dict[bool, tuple[Tensor, ...]] = {}
    first = answers[0]
    for epoch in range(10):
        answers.epoch = epoch
        item = answers[0]
        assert all(torch.equal(a, b) for a, b in zip(item, answers[0], strict=True))
        seen[torch.equal(item[0], first[0])] = item
    assert set(seen) == {False, True}
    assert all(torch.equal(a.flip(-1), b) for a, b in zip(seen[False], seen[True], strict=True))


def test_answers_are_computed_once(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted
) -> None:
    one = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    crops = counted.crops
    other = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    assert counted.crops == crops
    assert one.folder == other.folder
    assert torch.equal(one[3][1], other[3][1])


def test_another_teacher_or_crop_has_another_cache(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted
) -> None:
    folders = {
        compute_answers(teacher, photos, config, cache=tmp_path).folder
        for teacher, photos, config in (
            (tiny_teacher, train_photos, CONFIG),
            (replace(tiny_teacher, sha256="0" * 64), train_photos, CONFIG),
            (tiny_teacher, train_photos[:3], CONFIG),
            (tiny_teacher, train_photos, replace(CONFIG, seed=3)),
            (tiny_teacher, train_photos, replace(CONFIG, features=False)),
        )
    }
    assert len(folders) == 5


def test_an_interrupted_computation_goes_on(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted
) -> None:
    counted.fail_after = 14  # 6 to lay out the files and to time them, then two batches
    with pytest.raises(KeyboardInterrupt):
        compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    counted.fail_after, counted.crops = None, 0
    resumed = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    assert counted.crops == 6 + 18 - 8
    whole = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path / "other")
    for name in ("rgb", "output", "feature"):
        np.testing.assert_array_equal(resumed._arrays[name], whole._arrays[name])


def test_a_slow_teacher_answers_as_many_crops_as_it_can(
    tiny_teacher: Artifact,
    train_photos: PhotoSet,
    tmp_path: Path,
    counted: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first of them, at least ``_LEAST``, and more when there is more time."""
    monkeypatch.setattr(module, "_LEAST", 7)
    progress = Noted()
    some = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path, progress=progress, max_seconds=1e-9)
    assert len(some) == 7
    assert progress.notes == ["a slow teacher: it answered 7 of 18 crops; more where the training is longer"]
    known = np.array(some._arrays["rgb"])
    counted.crops = 0
    assert len(compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path, max_seconds=1e-9)) == 7
    assert counted.crops == 0
    whole = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    assert len(whole) == 18
    assert counted.crops == 6 + 18 - 7
    np.testing.assert_array_equal(whole._arrays["rgb"][:7], known)


@pytest.mark.parametrize(
    ("each", "limit", "crops"), [(1.0, 300.0, 300), (1.0, None, 1500), (0.01, 300.0, 1500), (9.0, 300.0, 128)]
)
def test_how_many_crops_are_affordable(each: float, limit: float | None, crops: int) -> None:
    assert module._affordable(1500, each, limit) == crops


def test_a_slow_teacher_answers_one_crop_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = torch.rand(3, 1, 8, 8)
    for seconds, crops in ((0.0, 1), (1e6, 3)):
        monkeypatch.setattr(module, "_BATCH_SECONDS", seconds)
        assert len(module._batch(lambda x: (x, None), sample)) == crops


def test_a_cut_cache_is_computed_again(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted
) -> None:
    answers = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    want = np.array(answers._arrays["output"])
    (answers.folder / "output.bin").write_bytes(b"cut")
    again = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)
    np.testing.assert_array_equal(again._arrays["output"], want)


def test_without_features(tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted) -> None:
    answers = compute_answers(tiny_teacher, train_photos, replace(CONFIG, features=False), cache=tmp_path)
    assert answers.feature_channels == 0
    assert answers[0][2].shape == (0,)
    assert json.loads((answers.folder / "index.json").read_text())["done"] == 18


def test_a_full_disk_is_said(
    tiny_teacher: Artifact,
    train_photos: PhotoSet,
    tmp_path: Path,
    counted: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(RunFolderError, match=r"answers-.*No space left on device; fix: free disk space, or choose an"):
        compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)


def test_an_output_of_another_size_is_refused(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fastest_predict", lambda *a, **k: ("half", lambda x: (x[:, :, ::2, ::2], None)))
    with pytest.raises(UnsupportedError, match=r"teacher output: expected 32x32, got \(16, 16\) for crops of 32; fix"):
        compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path)


def test_the_fastest_runtime_answers_as_pytorch_does(tiny_student: Artifact) -> None:
    sample = torch.rand(2, 1, 32, 32)
    name, predict = fastest_predict(tiny_student, sample, feature="bottleneck")
    assert name == "torch fp32" or name.startswith(("openvino", "torch cuda"))
    output, feature = predict(sample)
    with torch.inference_mode():
        want = WithFeature(models.load_network(tiny_student), "bottleneck")(sample)
    assert float((output - want[0]).abs().mean()) * 255 <= 0.5
    assert feature is not None
    assert feature.shape == want[1].shape


def test_a_network_whose_trace_holds_the_batch_is_answered(tiny_artifact: Callable[[str], Artifact]) -> None:
    artifact = tiny_artifact("hdrnet")
    net, sample = models.load_network(artifact), torch.rand(3, 3, 40, 56)
    _, predict = fastest_predict(artifact, sample, feature=None)
    with torch.inference_mode():
        for inputs in (sample, sample[:2]):
            output, feature = predict(inputs)
            assert feature is None
            assert float((output - net(inputs)).abs().mean()) * 255 <= 0.5


def test_a_runtime_that_fails_is_not_taken(tiny_teacher: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(net: nn.Module, sample: Tensor, precision: str) -> Callable[..., Any]:
        def predict(inputs: Tensor) -> Any:
            raise RuntimeError("shapes")

        return predict

    monkeypatch.setattr(module, "_openvino_predict", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fastest_predict(tiny_teacher, torch.rand(2, 1, 32, 32), feature=None)[0] == "torch fp32"


def test_a_runtime_that_drifts_is_not_taken(tiny_teacher: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(net: nn.Module, sample: Tensor, precision: str) -> Callable[..., Any]:
        return lambda inputs: (torch.ones(len(inputs), 2, 32, 32), None)

    monkeypatch.setattr(module, "_openvino_predict", wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fastest_predict(tiny_teacher, torch.rand(2, 1, 32, 32), feature=None)[0] == "torch fp32"


def test_a_network_that_decides_by_values_is_answered_by_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\nclass Branch(nn.Module):\n"
        "    def forward(self, x):\n        return x * 2 if x.mean() > 0.3 else x\n"
    )
    model = f"{tmp_path / 'own.py'}:Branch"
    net = models.create_model(model, task="image")
    artifact = models.save_network(net, tmp_path / "b.safetensors", model=model, task="image")
    name, predict = fastest_predict(artifact, torch.full((1, 3, 16, 16), 0.5), feature=None)
    assert name == "torch fp32"
    assert float(predict(torch.full((1, 3, 16, 16), 0.1))[0].max()) == pytest.approx(0.1)


def test_without_openvino_pytorch_answers(tiny_teacher: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(net: nn.Module, sample: Tensor, precision: str) -> Callable[..., Any]:
        raise ImportError("openvino")

    monkeypatch.setattr(module, "_openvino_predict", missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fastest_predict(tiny_teacher, torch.rand(2, 1, 32, 32), feature=None)[0] == "torch fp32"


def test_a_folder_of_answers_opens_by_itself(
    tiny_teacher: Artifact, train_photos: PhotoSet, tmp_path: Path, counted: Counted
) -> None:
    folder = compute_answers(tiny_teacher, train_photos, CONFIG, cache=tmp_path).folder
    assert len(Answers(folder)) == 18
