"""The two commands that take a model through the whole path: ``optimize train`` and ``optimize run``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import PareError
from models.photos import files_of
from models.registry import WEIGHTS, get_spec, get_task

if TYPE_CHECKING:
    from benchmarks.zoo import ZooConfig
    from models.spec import ModelSpec

#: Share of the minutes that trains the teacher.
_TRAIN = 0.5
#: Of the rest, the share that distillation takes (``optimize.pipeline``), and the part of it that the teacher may take
#: to answer crops; a step forward and backward costs about three times an answer.
_DISTIL, _ANSWERS, _STEP_OVER_ANSWER = 0.45, 0.5, 3.0
_CROP, _BATCH, _EPOCHS = 96, 8, 4
#: What a processor of a few cores trains at, roughly, and the steps below which a batch is made smaller.
_GMACS_A_SECOND, _LEAST_STEPS = 50.0, 60
#: More crops than any machine trains on in a minute: the minutes end a training, not the photos.
_CROPS_A_MINUTE = 60_000
_MIN_ANSWERS, _ANSWERS_A_MINUTE, _MAX_ANSWERS = 24, 1500, 16_000
_SAMPLE_PHOTOS, _UNKNOWN_PHOTOS = 4, 1000
_EVAL_PHOTOS, _PICTURES = 16, 3
#: Where the teacher is timed too, of the targets that are asked for.
_REFERENCES = ("onnx", "openvino")


@dataclass(frozen=True)
class Budget:
    """What the minutes of a model buy.

    Attributes:
        input_size: Height and width that the network can take, pixels.
        crop: Side of a training crop in pixels of the photo, that both teacher and student can take.
        photos: How many photos there are, roughly.
        batch: Crops a step of the teacher's training: fewer where steps are slow.
        minutes: Of the teacher's training, and of the stages together.
    """

    input_size: tuple[int, int]
    crop: int
    photos: int
    minutes: tuple[float, float]
    batch: int = _BATCH

    @classmethod
    def of(cls, config: ZooConfig, spec: ModelSpec) -> Budget:
        """Work it out from the size requirements of the model and its student."""
        student = get_spec(spec.student, task=spec.task).size if spec.student else spec.size
        step = math.lcm(spec.size.multiple_of, student.multiple_of)
        least = max(spec.size.minimum, student.minimum, min(_CROP, *config.input_size))
        height, width = (-(-max(side, spec.size.minimum, student.minimum) // step) * step for side in config.input_size)
        crop = -(-least // step) * step * get_task(spec.task).photo_scale
        trains = trains_here(spec, from_scratch=config.from_scratch)
        whole = config.minutes_of(spec.name)
        first = whole * _TRAIN if trains else 0.0
        minutes = (first, whole - first)
        return cls((height, width), crop, count_photos(config.data), minutes)

    def with_cost(self, gmacs: float | None) -> Budget:
        """Return the same with a batch that leaves time for ``_LEAST_STEPS`` steps, where a crop costs ``gmacs``."""
        if not gmacs:
            return self
        room = 60 * self.minutes[0] * _GMACS_A_SECOND / (_STEP_OVER_ANSWER * gmacs * _LEAST_STEPS)
        return replace(self, batch=min(max(int(room), 1), _BATCH))

    def phases(self, epochs: int = _EPOCHS, *, batch: int = _BATCH) -> str:
        """Return the phases of a training as a value of the recipe."""
        return json.dumps([{"size": self.crop, "epochs": epochs, "batch_size": batch}])

    def training_repeat(self) -> int:
        """Return crops of each photo an epoch, so many that the minutes end the training."""
        wanted = _CROPS_A_MINUTE * self.minutes[0] / _EPOCHS
        return max(1, math.ceil(wanted / self.photos))

    def answers(self, training: Mapping[str, Any]) -> int:
        """Return how many crops the teacher answers: what it can in its part of the distillation's time.

        Its speed is that of its training where it was trained here.
        """
        wanted = _ANSWERS_A_MINUTE * self.minutes[1]
        account = dict(training.get("metadata", {})).get("account") or {}
        if account.get("steps") and account.get("seconds"):
            answers_a_second = _STEP_OVER_ANSWER * self.batch * account["steps"] / account["seconds"]
            wanted = min(wanted, answers_a_second * 60 * self.minutes[1] * _DISTIL * _ANSWERS)
        return int(min(max(wanted, _MIN_ANSWERS), _MAX_ANSWERS))


def trains_here(spec: ModelSpec, *, from_scratch: bool) -> bool:
    """Say whether a teacher is trained, or used with the weights that ship with it."""
    return from_scratch or spec.weights is None or not (WEIGHTS / spec.weights).exists()


def crop_gmacs(spec: ModelSpec, crop: int) -> float | None:
    """Return the multiply-adds of the teacher on one crop, thousand millions; None where a GPU trains, or unknown."""
    import torch

    from benchmarks.cost import cost
    from models.registry import create_model

    if torch.cuda.is_available():
        return None
    side = crop // get_task(spec.task).photo_scale
    try:
        return cost(create_model(spec.name, task=spec.task), (1, spec.packed_channels, side, side)).gmacs
    except (PareError, RuntimeError, TypeError, ValueError):  # its training will say why
        return None


def count_photos(data: str | None) -> int:
    """Return the number of files in a folder; a guess where it is no folder."""
    if data is None:
        return _SAMPLE_PHOTOS
    folder = Path(data).expanduser()
    return max(1, sum(1 for _ in files_of(folder))) if folder.is_dir() else _UNKNOWN_PHOTOS


def train_command(config: ZooConfig, spec: ModelSpec, budget: Budget, folder: Path) -> list[str]:
    """Return the command that trains the teacher of ``spec`` into ``folder/train``."""
    phases = budget.phases(batch=budget.batch)
    settings = (f"train.fit.phases={phases}", f"train.fit.repeat={budget.training_repeat()}")
    return [
        *_common("train", config, spec, budget),
        *("--minutes", f"{budget.minutes[0]:g}"),
        *_settings((*settings, *config.settings)),
        *("--output", str(folder / "train")),
    ]


def run_command(
    config: ZooConfig, spec: ModelSpec, budget: Budget, folder: Path, training: Mapping[str, Any]
) -> list[str]:
    """Return the command that takes the teacher through stages, targets and benchmark into ``folder/run``.

    Args:
        config: The zoo.
        spec: The teacher.
        budget: Its budget.
        folder: Of the model.
        training: What ``optimize train`` printed; empty: the shipped weights are used.
    """
    settings = [f"benchmark.pictures={_PICTURES}", "benchmark.probes=false"]
    settings += [f"{stage}.fit.phases={budget.phases(40)}" for stage in ("distill", "prune")]
    answers = budget.answers(training)
    settings += [f"{stage}.fit.repeat={max(1, answers // budget.photos)}" for stage in ("distill", "prune")]
    if answers < budget.photos:
        settings.append(f"data.train_photos={answers}")
    if config.targets:
        references = [name for name in _REFERENCES if name in config.targets]
        settings.append(f"export.reference_targets={json.dumps(references)}")
    weights = ["--weights", str(training["artifact"])] if training else []
    targets = [word for name in config.targets for word in ("--target", name)]
    return [
        *_common("run", config, spec, budget),
        *weights,
        *targets,
        *("--budget-minutes", f"{budget.minutes[1]:g}"),
        *("--allow-drop", "--keep-going"),
        *_settings((*settings, *config.settings)),
        *("--output", str(folder / "run")),
    ]


def _common(verb: str, config: ZooConfig, spec: ModelSpec, budget: Budget) -> list[str]:
    command = [sys.executable, "-m", "optimize", verb, "--teacher", spec.name, "--json", "--resume"]
    command += ["--input-size", *(str(side) for side in budget.input_size), "--seed", str(config.seed)]
    command += ["--eval-photos", str(_EVAL_PHOTOS)]
    if config.data is not None:
        command += ["--data", config.data]
    if config.threads is not None:
        command += ["--threads", str(config.threads)]
    return command


def _settings(settings: tuple[str, ...] | list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]
