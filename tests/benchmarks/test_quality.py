"""Quality: photos of any source, scores, the do-nothing baseline, contestants that fail."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.quality import BASELINE, Judge, Photos, Scores, evaluate
from benchmarks.subject import Subject
from models.errors import DataError
from models.photos import open_photos
from models.registry import get_task

TASK = get_task("colorize")


def truth_of(photos: Photos) -> Subject:
    """A contestant that answers with the ground truth, whatever order it is asked in."""
    answers = {}
    for index in range(len(photos)):
        rgb = torch.from_numpy(photos.load(index)).permute(2, 0, 1)[None].float() / 255
        inputs, target = TASK.prepare(rgb)
        answers[inputs.numpy().tobytes()] = target.numpy()
    return Subject(lambda inputs: answers[inputs.tobytes()])


def test_photos_from_a_folder_an_array_and_a_tensor(photo_folder: Path, photos: np.ndarray[Any, Any]) -> None:
    folder = Photos.of(open_photos(photo_folder), (64, 64), limit=None)
    array = Photos.of(photos, (64, 64), limit=None)
    tensor = Photos.of(torch.from_numpy(photos).permute(0, 3, 1, 2) / 255, (64, 64), limit=2)
    assert folder.names == ("0.png", "1.png", "2.png")
    assert len(array) == 3
    assert len(tensor) == 2
    for index in range(2):
        assert np.array_equal(folder.load(index), photos[index])
        assert np.array_equal(tensor.load(index), photos[index])
    assert array.fingerprint != tensor.fingerprint
    assert Photos.of(photos, (32, 48), limit=None).load(0).shape == (32, 48, 3)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 3, 8, 8), (8, 8, 3)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \(N, H, W, 3\), N >= 1, got uint8"):
        Photos.of(np.zeros(shape, np.uint8), (8, 8), limit=None)


def test_the_truth_is_perfect_and_doing_nothing_is_not(photos: np.ndarray[Any, Any], lite_weights: Path) -> None:
    shown = Photos.of(photos, (64, 64), limit=None)
    idle = {"idle": Subject(lambda inputs: np.zeros((1, 2, 64, 64), np.float32)), "truth": truth_of(shown)}
    scores = evaluate(idle, TASK, shown, Judge("lite", lite_weights), teacher="truth")
    assert list(scores) == ["idle", "truth", BASELINE]
    assert scores["truth"].mean("lpips") == pytest.approx(0, abs=1e-6)
    assert scores["truth"].mean("delta_e") == pytest.approx(0, abs=0.01)
    assert scores["truth"].mean("ssim") == pytest.approx(1, abs=1e-4)
    lost = scores["idle"].mean("lpips")
    assert lost is not None
    assert lost > 1e-4
    assert scores["idle"].values["lpips"] == pytest.approx(scores[BASELINE].values["lpips"])
    assert scores["idle"].values["lpips_vs_teacher"] == pytest.approx(scores["idle"].values["lpips"], rel=1e-3)
    assert scores["idle"].mean("colourfulness") == pytest.approx(0, abs=0.01)
    assert "176x176 or larger, got 64x64" in scores["idle"].missing["ms_ssim"]
    assert scores["idle"].mean("ms_ssim") is None
    assert len(scores["idle"].infer_ms) == 3


def test_one_that_fails_does_not_stop_the_others(photos: np.ndarray[Any, Any], lite_weights: Path) -> None:
    shown = Photos.of(photos, (64, 64), limit=None)

    def crash(inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        raise OSError("engine fell over")

    def overflow(inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.full((1, 2, 64, 64), np.nan, np.float32)

    able = {"crash": Subject(crash), "overflow": Subject(overflow), "truth": truth_of(shown)}
    scores = evaluate(able, TASK, shown, Judge("lite", lite_weights), teacher=None)
    assert isinstance(scores["crash"].error, OSError)
    assert scores["crash"].mean("lpips") is None
    assert "expected finite pixels, got NaN or infinity; fix: export it in a higher precision" in str(
        scores["overflow"].error
    )
    assert scores["truth"].mean("lpips") == pytest.approx(0, abs=1e-6)
    assert "lpips_vs_teacher" not in scores["truth"].values


def test_metrics_of_a_task_of_its_own(photos: np.ndarray[Any, Any], lite_weights: Path) -> None:
    def brightness(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (preds - target).mean((1, 2, 3)).abs()

    def broken(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise KeyError("edges")

    shown = Photos.of(photos, (64, 64), limit=None)
    able = {"dark": Subject(lambda inputs: np.zeros((1, 2, 64, 64), np.float32)), "truth": truth_of(shown)}
    judge = Judge("lite", lite_weights, {"brightness": brightness, "broken": broken})
    scores = evaluate(able, TASK, shown, judge, teacher=None)
    assert scores["truth"].values["brightness"] == pytest.approx([0, 0, 0], abs=1e-5)
    assert len(scores["dark"].values["brightness"]) == 3
    assert min(scores["dark"].values["brightness"]) > 1e-4
    assert scores["dark"].missing["broken"] == "KeyError: 'edges'"


def test_a_mean_that_is_not_finite_is_unknown() -> None:
    scores = Scores()
    scores.add("psnr_db", torch.tensor([30.0, math.inf]))
    assert scores.mean("psnr_db") is None
    assert scores.mean("ssim") is None


def test_from_photo_to_photo(photos: np.ndarray[Any, Any]) -> None:
    picture = truth_of(Photos.of(photos, (64, 64), limit=None)).end_to_end(TASK, photos[0])
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - photos[0]).max() <= 1
