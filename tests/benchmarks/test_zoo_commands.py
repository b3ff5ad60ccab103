"""The commands that the zoo runs: sizes and budgets that every registered teacher can take, and their processes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import zoo_process
from benchmarks.zoo import ZooConfig, read_minutes, teachers
from benchmarks.zoo_commands import Budget, count_photos, crop_gmacs, run_command, train_command, trains_here
from benchmarks.zoo_process import ChildFailed, call
from models.errors import ConfigError, UnknownNameError
from models.registry import get_spec, get_task
from optimize.config import build
from optimize.flags import KEYS
from optimize.loop import Phase
from optimize.recipe import Recipe, combine


def recipe_of(command: list[str]) -> Recipe:
    """Read the ``--set`` settings of a command as the command line does."""
    settings = [command[place + 1] for place, word in enumerate(command) if word == "--set"]
    return combine(None, {"teacher.model": command[command.index("--teacher") + 1]}, tuple(settings))


@pytest.mark.parametrize("size", [(64, 96), (256, 256)])
@pytest.mark.parametrize("name", teachers())
def test_sizes_fit_the_teacher_and_its_student(name: str, size: tuple[int, int]) -> None:
    spec = get_spec(name)
    scale = get_task(spec.task).photo_scale
    budget = Budget.of(ZooConfig(input_size=size), spec)
    for row in (spec, get_spec(spec.student, task=spec.task)) if spec.student else (spec,):
        row.size.check(*budget.input_size)
        row.size.check(budget.crop // scale, budget.crop // scale)
    assert budget.crop % scale == 0
    assert all(side >= wanted for side, wanted in zip(budget.input_size, size, strict=True))


@pytest.mark.parametrize("name", teachers())
def test_the_recipes_are_understood(name: str, tmp_path: Path) -> None:
    spec = get_spec(name)
    config = ZooConfig(minutes=1, threads=1, from_scratch=True, settings=("seed=7",))
    budget = Budget.of(config, spec)
    training = train_command(config, spec, budget, tmp_path)
    assert training[:4] == [sys.executable, "-m", "optimize", "train"]
    values = recipe_of(training).options["train"]["fit"]
    (phase,) = (build(Phase, value) for value in values["phases"])
    assert phase.size == budget.crop
    assert values["repeat"] * budget.photos * phase.epochs >= 60_000 * 0.5
    run = run_command(config, spec, budget, tmp_path, {"artifact": "t.safetensors"})
    recipe = recipe_of(run)
    assert recipe.seed == 7
    assert recipe.options["distill"]["fit"] == recipe.options["prune"]["fit"]
    assert run[run.index("--weights") + 1] == "t.safetensors"
    flags = {word[2:].replace("-", "_") for word in (*training, *run) if word.startswith("--")}
    assert flags - KEYS.keys() == {"json", "resume", "output", "set", "keep_going", "allow_drop"}


def test_only_the_targets_that_are_asked_for(tmp_path: Path) -> None:
    config, spec = ZooConfig(targets=("onnx", "coreml")), get_spec("unet")
    command = run_command(config, spec, Budget.of(config, spec), tmp_path, {})
    assert [command[place + 1] for place, word in enumerate(command) if word == "--target"] == ["onnx", "coreml"]
    assert recipe_of(command).export.reference_targets == ("onnx",)
    every = run_command(ZooConfig(), spec, Budget.of(ZooConfig(), spec), tmp_path, {})
    assert "--target" not in every
    assert recipe_of(every).export.reference_targets == ("onnx", "openvino")


def test_shipped_teachers_are_not_trained_unless_asked() -> None:
    shipped, plain = get_spec("resnet18_unet"), get_spec("unet")
    assert not trains_here(shipped, from_scratch=False)
    assert trains_here(shipped, from_scratch=True)
    assert trains_here(plain, from_scratch=False)
    assert Budget.of(ZooConfig(minutes=4), shipped).minutes == (0.0, 4.0)
    assert Budget.of(ZooConfig(minutes=4), plain).minutes == (2.0, 2.0)


def test_a_slow_teacher_trains_on_smaller_batches() -> None:
    budget = Budget.of(ZooConfig(minutes=2), get_spec("unet"))
    # a minute at 50 GMACs/s is 3000 GMACs; 60 steps, forward and backward thrice a forward: 16.7 GMACs a step
    assert [budget.with_cost(gmacs).batch for gmacs in (None, 0.1, 4.0, 100.0)] == [8, 8, 4, 1]
    command = train_command(ZooConfig(), get_spec("unet"), budget.with_cost(4.0), Path("x"))
    assert recipe_of(command).options["train"]["fit"]["phases"][0]["batch_size"] == 4
    spec = get_spec("hdrnet")
    counted = crop_gmacs(spec, 96)
    assert counted is None or 0 < counted < 0.2


def test_a_slow_teacher_answers_fewer_crops() -> None:
    budget = Budget.of(ZooConfig(minutes=2), get_spec("unet"))
    assert budget.photos == 4

    def training(steps: int) -> dict[str, object]:
        return {"artifact": "t", "metadata": {"account": {"steps": steps, "seconds": 60.0}}}

    # 12 steps of 8 crops a minute are 4.8 answers a second; 13.5 s for them are 64, 16 of each of four photos
    assert budget.answers(training(12)) == 64
    assert budget.answers(training(1)) == 24
    assert budget.answers(training(100_000)) == budget.answers({}) == 1500
    config, spec = ZooConfig(minutes=2), get_spec("unet")
    recipe = recipe_of(run_command(config, spec, budget, Path("x"), training(12)))
    assert recipe.options["distill"]["fit"]["repeat"] == recipe.options["prune"]["fit"]["repeat"] == 16
    assert recipe.data.train_photos is None
    many = replace(budget, photos=100)  # of which it has no time to answer one crop each
    recipe = recipe_of(run_command(config, spec, many, Path("x"), training(12)))
    assert (recipe.options["distill"]["fit"]["repeat"], recipe.data.train_photos) == (1, 64)


def test_a_model_may_have_minutes_of_its_own() -> None:
    assert read_minutes("3") == (3.0, {})
    usual, own = read_minutes("3, unet=8,a/b.py:f=0.5")
    assert (usual, own) == (3.0, {"unet": 8.0, "a/b.py:f": 0.5})
    config = ZooConfig(minutes=usual, own_minutes={"unet": 8.0})
    assert Budget.of(config, get_spec("unet")).minutes == (4.0, 4.0)
    assert Budget.of(config, get_spec("hdrnet")).minutes == (1.5, 1.5)
    with pytest.raises(ConfigError, match="--minutes: expected MINUTES"):
        read_minutes("3,unet=long")
    with pytest.raises(ConfigError, match="--minutes: expected above 0, got -1"):
        ZooConfig(own_minutes={"unet": -1.0})
    with pytest.raises(UnknownNameError, match="unett"):
        ZooConfig(own_minutes={"unett": 1.0})


def test_photos_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    assert count_photos(str(tmp_path)) == 2
    assert count_photos(None) == 4
    assert count_photos("imagenette-160") == 1000


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_answers_json_and_is_followed(tmp_path: Path) -> None:
    said: list[str] = []
    code = "import sys, time; print('step 3', file=sys.stderr, flush=True); time.sleep(0.7); print('{\"a\": 1}')"
    assert call(python(code), tmp_path / "x" / "run.log", tick=said.append) == {"a": 1}
    assert "step 3" in said
    assert json.loads((tmp_path / "x" / "run.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import sys; sys.stderr.write('hm\\nerror: no photos; fix: add some\\nmore\\n'); sys.exit(1)", "^no photos;"),
        ("raise ValueError('boom')", "^exit status 1: ValueError: boom"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("print('not json')", "expected JSON on stdout"),
    ],
)
def test_a_failed_process_says_why(code: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=text):
        call(python(code), tmp_path / "run.log")


def test_an_interrupted_process_may_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_process, "_OWN_ACCORD_S", 0.1)
    saved = tmp_path / "saved"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background of a shell ignores it
        "try:\n    sys.stderr.write('ready\\n'); sys.stderr.flush(); time.sleep(20)\n"
        f"except KeyboardInterrupt:\n    pathlib.Path({str(saved)!r}).write_text('all')\n"
    )

    def stop_when_ready(said: str) -> None:
        if said == "ready":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(python(code), tmp_path / "run.log", tick=stop_when_ready)
    assert saved.read_text() == "all"


def test_a_process_can_import_pare_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import optimize, benchmarks, json; print(json.dumps({'here': optimize.__name__}))"
    assert call(python(code), tmp_path / "run.log") == {"here": "optimize"}
