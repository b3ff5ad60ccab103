"""The command line of optimize: which recipe the flags make, what is printed, and the exit statuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import models
from models.artifact import save_network
from models.errors import TrainingError
from models.spec import Precision
from optimize import flags
from optimize.cli import main
from optimize.recipe import Recipe, stage_config
from optimize.registry import STAGES

SUMMARY: dict[str, Any] = {
    "output": "runs/x",
    "report": "runs/x/report/index.html",
    "bundle": "runs/x/bundle",
    "stages": [
        {"name": "distill", "accepted": True, "reason": None, "seconds": 3.0, "lpips": 0.1712, "artifact": "a"},
        {"name": "prune", "accepted": False, "reason": "no gain", "seconds": 3.0, "lpips": None, "artifact": None},
    ],
    "artifacts": [
        {"target": "onnx", "precision": "int8", "status": "built", "reason": None, "path": "runs/x/a.onnx"},
        {"target": "coreml", "precision": "int8", "status": "failed", "reason": "why", "path": None},
    ],
    "best": {
        "label": "Quantized · OpenVINO INT8",
        "artifact": "a",
        "latency_p50_ms": 1.5,
        "teacher_latency_p50_ms": 105.0,
        "speedup": 70.0,
        "lpips": 0.18,
        "is_noisy": True,
        "lpips_drop": 0.004,
        "lpips_net": "lite",
    },
}


class Calls:
    """What the command line asked for."""

    def __init__(self) -> None:
        self.recipe = Recipe()
        self.root = Path()
        self.values: dict[str, Any] = {}
        self.error: BaseException | None = None

    def pipeline(self, recipe: Recipe, root: Path, **values: Any) -> dict[str, Any]:
        """Stand in for ``run_pipeline``."""
        self.recipe, self.root, self.values = recipe, root, values
        if self.error is not None:
            raise self.error
        return SUMMARY

    def single(self, name: str, recipe: Recipe, root: Path, **values: Any) -> dict[str, Any]:
        """Stand in for ``run_single``."""
        self.pipeline(recipe, root, **values, name=name)
        return {"stage": name, "artifact": f"{root}/net.safetensors", "ran": False, "seconds": 1.0}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Nothing runs; the folder is empty."""
    it = Calls()
    monkeypatch.setattr("optimize.pipeline.run_pipeline", it.pipeline)
    monkeypatch.setattr("optimize.single.run_single", it.single)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return it


def test_run_with_nothing_else(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--teacher", "resnet18_unet"]) == 0
    assert calls.recipe == Recipe()
    assert calls.root == Path("runs/resnet18_unet")
    assert calls.values["policy"] == "same"
    out = capsys.readouterr().out
    assert "fastest   Quantized · OpenVINO INT8: 105.0 ms -> 1.50 ms, 70.0x (noisy), LPIPS-lite +0.0040" in out
    assert "not taken: no gain" in out
    assert "coreml    int8  failed: why" in out
    assert out.endswith("report    runs/x/report/index.html\n")


def test_run_flags_reach_the_recipe(calls: Calls) -> None:
    argv = (
        "run --teacher mine.net:make --weights w.safetensors --task colorize --student chroma_unet --stage distill "
        "--stage quantize --target onnx --target coreml --precision int8 --dynamic --data photos --eval-data held "
        "--eval-photos 5 --calibration-data cal --input-size 128 192 --device cpu --threads 2 --seed 7 --lpips-net "
        "squeeze --lpips-weights lp --max-lpips-drop 0.5 --allow-drop --budget-minutes 3 --warmup 1 --iterations 2 "
        "--set benchmark.pictures=1 --overwrite -o out"
    )
    assert main(argv.split()) == 0
    recipe = calls.recipe
    assert (recipe.teacher.model, recipe.teacher.weights, recipe.teacher.task) == (
        "mine.net:make",
        Path("w.safetensors"),
        "colorize",
    )
    assert recipe.stages == ("distill", "quantize")
    assert recipe.export.targets == ("onnx", "coreml")
    assert recipe.export.precisions == (Precision.INT8,)
    assert recipe.export.dynamic
    assert (recipe.data.source, recipe.data.eval, recipe.data.calibration) == ("photos", "held", "cal")
    assert (recipe.data.eval_photos, recipe.input_size, recipe.device) == (5, (128, 192), "cpu")
    assert (recipe.threads, recipe.seed, recipe.lpips_net, recipe.lpips_weights) == (2, 7, "squeeze", Path("lp"))
    assert (recipe.gate.max_lpips_drop, recipe.gate.allow_drop, recipe.budget_minutes) == (0.5, True, 3.0)
    assert (recipe.benchmark.warmup, recipe.benchmark.iterations, recipe.benchmark.pictures) == (1, 2, 1)
    assert recipe.options["distill"] == {"student": "chroma_unet"}
    assert recipe.options["quantize"] == {"allow_drop": True}  # the drop is the run's gate, no limit of the stage
    assert (calls.root, calls.values["policy"]) == (Path("out"), "overwrite")


def test_recipe_file_and_flags_over_it(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"seed": 3, "stages": ["prune"], "prune": {"pruning_ratio": 0.1}}))
    assert main(["run", "--config", "r.yaml", "--pruning-ratio", "0.4", "--resume"]) == 0
    assert (calls.recipe.seed, calls.recipe.stages, calls.values["policy"]) == (3, ("prune",), "resume")
    assert calls.recipe.options["prune"] == {"pruning_ratio": 0.4}


@pytest.mark.parametrize("stage", ["train", "distill", "prune", "quantize"])
def test_single_stages_need_no_flags(calls: Calls, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage]) == 0
    assert calls.values["name"] == stage
    assert calls.values["teacher_named"] is True
    assert calls.root == Path(f"runs/resnet18_unet-{stage}")
    assert capsys.readouterr().out == f"{stage}: runs/resnet18_unet-{stage}/net.safetensors (finished before)\n"


def test_single_stage_on_an_artifact(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "nets/student.safetensors", "--target-speedup", "1.5", "--minutes", "2", "--json"]) == 0
    assert calls.values["artifact"] == Path("nets/student.safetensors")
    assert calls.values["teacher_named"] is False
    assert calls.root == Path("runs/student-prune")
    assert calls.recipe.options["prune"] == {"target_speedup": 1.5, "fit": {"max_minutes": 2.0}}
    assert json.loads(capsys.readouterr().out)["stage"] == "prune"


def test_every_flag_is_a_key_that_its_config_knows(calls: Calls) -> None:
    for name, key in flags.KEYS.items():
        stages = [s for s in STAGES if s != "quantize"] if "{stage}" in key else [""]
        for stage in stages:
            section, _, rest = key.format(stage=stage).partition(".")
            if section in STAGES and section != "quantize":
                config = stage_config(Recipe(), section)
                for part in rest.split("."):
                    assert hasattr(config, part), f"--{name}: {section}.{rest}"
                    config = getattr(config, part)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("run --target onix", "unknown target: expected coreml | onnx | openvino | tensorrt, got 'onix'"),
        ("run --target onix", "fix: use 'onnx'"),
        ("run --precision int4", "expected fp32 | fp16 | bf16 | int8, got 'int4'"),
        ("run --stage distil", "fix: use 'distill'"),
        ("run --device gpu", "device: expected auto | cpu | cuda | mps, got 'gpu'"),
        (
            "run --lpips-net sqeeze",
            "LPIPS net: expected alex | lite | squeeze | vgg, got 'sqeeze'; fix",
        ),
        ("run --resume --overwrite", "expected --resume or --overwrite, got both; fix: leave one out"),
        ("run --config none.yaml", "recipe none.yaml: expected a readable file"),
        ("run --set seed", "--set: expected KEY=VALUE, got 'seed'"),
        ("run --set sed=1", "got 'sed'; fix: use 'seed'"),
        ("run --input-size 256", "--input-size"),
        ("run --seed many", "--seed"),
        ("run --eval-data x", "expected data beside eval-data"),
        ("distil", "No such command"),
        ("distill --no-such-flag", "No such option"),
        ("run --threads 0", "--threads"),
        ("run --threads 99999", "--threads"),
        ("run --set threads=99999", "threads: expected 1 to 512, got 99999"),
        ("prune --device cude", "got 'cude'; fix: use --device cuda"),
    ],
)
def test_wrong_calls_exit_with_2(calls: Calls, argv: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv.split()) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "; fix: " in error
    assert error.count("\n") == 1


def test_failures_exit_with_1_and_ctrl_c_with_130(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.error = TrainingError("loss: expected a finite number, got nan; fix: lower --learning-rate")
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "error: loss: expected a finite number, got nan; fix: lower --learning-rate\n"
    calls.error = KeyboardInterrupt()
    assert main(["run"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_list_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert list(tables) == ["models", "tasks", "stages", "targets", "metrics"]
    networks = (
        "unet resnet18_unet nafnet_w32 unet_convnext unet_efficientnet_b4 restormer_lite hdrnet scunet swinir pix2pix "
        "sid_unet adafm ftn dni adain latent_balancer"
    )
    assert {*networks.split(), "chroma_unet"} <= set(tables["models"])
    tasks = "colorize overlay low_light denoise style balance image"
    assert {*tasks.split()} <= set(tables["tasks"])
    assert tables["stages"] == ["train", "distill", "prune", "quantize"]
    assert tables["targets"] == ["onnx", "openvino", "tensorrt", "coreml"]
    assert {"lpips", "psnr", "ssim"} <= set(tables["metrics"])
    assert main(["list"]) == 0
    assert "div2k-valid" in capsys.readouterr().out


def photos(folder: Path, count: int = 4) -> Path:
    """A folder of small photos."""
    folder.mkdir()
    for index in range(count):
        rgb = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, no LPIPS weights needed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("benchmarks.metrics.load_lpips", lambda net, weights=None: None)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (
            "run --teacher resnet18_unett",
            2,
            "got 'resnet18_unett'; fix: use 'resnet18_unet'",
        ),
        ("distill --teacher resnet18_unett", 2, "fix: use 'resnet18_unet'"),
        ("distill --data nowhere", 1, "photos: expected a folder, a named set, or URL#sha256=..., got 'nowhere'"),
        ("distill --data empty", 1, "photos in empty: expected at least one usable photo, got an empty folder"),
        ("distill --data one", 1, "split: expected two different photos, got 1; fix: add photos, or pass a folder"),
        (
            "distill --data photos --eval-data photos",
            1,
            "--eval-data: expected different photos, got 4 photos",
        ),
        ("distill --data https://example.org/a.zip", 2, "photo URL: expected a checksum behind it"),
        ("prune none.safetensors", 1, "artifact: expected file none.safetensors, got no such file"),
        ("distill --weights none.safetensors", 1, "weights: expected file none.safetensors, got no such file"),
        ("distill --teacher no.module:make", 2, "import path: expected a module"),
        ("distill --set distill.fit.sizes=1", 2, "config distill.fit: expected phases"),
        ("distill --data photos -o out.safetensors", 2, "--output: expected a folder, got out.safetensors; fix: pass"),
        ("distill --data photos -o photos", 1, "photos: expected an empty folder or a run, got '0.png' and 3 more"),
    ],
)
def test_bad_input_is_named(quick: Path, argv: str, status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    photos(quick / "photos")
    photos(quick / "one", 1)
    (quick / "empty").mkdir()
    assert main([*argv.split(), "--quiet"]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert len(list((quick / "photos").iterdir())) == 4


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        ("run --lpips-net squeeze --lpips-weights nowhere", 1, "LPIPS weights: expected nowhere, got no such file"),
        ("distill --lpips-net squeeze --lpips-weights nowhere", 1, "LPIPS weights: expected nowhere"),
        ("distill --set distill.lpips_net=vgg --lpips-weights nowhere", 1, "LPIPS weights: expected nowhere"),
        ("train --set train.lpips_net=sqeeze", 2, "fix: use 'squeeze'"),
    ],
)
def test_lpips_weights_are_looked_for_before_anything_is_trained(
    tmp_path: Path,
    argv: str,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for stage in ("train", "distill"):
        monkeypatch.setattr(f"optimize.{stage}.run", lambda *_: pytest.fail("it was trained"))
    assert main([*argv.split(), "--data", "photos", "-o", "out", "--quiet"]) == status
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_own_teacher_is_imported_from_the_working_folder(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--teacher package.module:factory --weights file`` ends up as an artifact that later stages can load."""
    (quick / "own_net_of_test.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 3, padding=1))\n"
    )
    photos(quick / "photos")
    seen = {}

    def stage(artifact: Any, config: Any, data: Any, out: Path) -> Any:
        seen["teacher"], seen["context"] = artifact, data
        kwargs = {"reduction": 2, "widths": [8, 16], "depths": [1, 1]}
        net = models.create_model("chroma_unet", **kwargs)
        place = out / "student.safetensors"
        return save_network(net, place, model="chroma_unet", task="colorize", parent=artifact, model_kwargs=kwargs)

    monkeypatch.setattr("optimize.distill.run", stage)
    sys.path.insert(0, str(quick))
    net = models.create_model("own_net_of_test:make")
    from safetensors.torch import save_file

    save_file(net.state_dict(), quick / "w.safetensors")
    argv = "distill --teacher own_net_of_test:make --weights w.safetensors --data photos --input-size 32 32 -q"
    assert main(argv.split()) == 0
    assert seen["teacher"].model == "own_net_of_test:make"
    assert seen["teacher"].stages == ("teacher",)
    assert len(seen["context"].train) + len(seen["context"].eval) == 4
    assert (quick / "runs/make-distill/student.safetensors").exists()
    resolved = yaml.safe_load((quick / "runs/make-distill/recipe.yaml").read_text())
    assert resolved["teacher"]["weights"] == "w.safetensors"


def test_threads_limit_a_stage_and_what_it_raises_is_one_line(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def stage(artifact: Any, config: Any, data: Any, out: Path) -> Any:
        seen.append(torch.get_num_threads())
        raise IndexError("too few\nlevels")

    monkeypatch.setattr("optimize.train.run", stage)
    before = torch.get_num_threads()
    argv = ["train", "--data", str(photos(quick / "photos")), "--threads", "2", "-q", "-o", "out"]
    assert main(argv) == 1
    text = "error: stage train: expected a network that it can work on, got IndexError: too few levels; fix: set"
    assert capsys.readouterr().err.startswith(text)
    assert (seen, torch.get_num_threads()) == ([2], before)
    assert json.loads((quick / "out" / "stage.json").read_text())["status"] == "failed"
    monkeypatch.setenv("PARE_DEBUG", "1")
    with pytest.raises(IndexError):
        main(argv)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("torch.nn.Conv2d(3, 2, 3, padding=1)", "expected output (1, 2, 32, 32), got Given groups=1"),
        (
            "torch.nn.Conv2d(1, 3, 3, padding=1)",
            "output (1, 2, 32, 32), got (1, 3, 32, 32); fix: pass another",
        ),
    ],
)
def test_own_teacher_of_other_tensors_is_refused(
    quick: Path, body: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"odd_net_{abs(hash(body)) % 10**6}"
    (quick / f"{name}.py").write_text(f"import torch\ndef make():\n    return {body}\n")
    photos(quick / "photos")
    argv = f"distill --teacher {name}:make --data photos --input-size 32 32 -q"
    assert main(argv.split()) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "views", "minutes"),
    [
        ({}, 48, (1.0, 1.0)),
        ({"budget_minutes": 10.0}, 48, (4.5, 3.5)),
        ({"stages": ["prune"]}, 48, (None, 2.0)),
        ({"prune.pruning_ratio": 0.2, "prune.fit.max_minutes": 3}, 48, (1.0, 3.0)),
    ],
)
def test_stages_share_time_and_crops(flags: dict[str, Any], views: int, minutes: tuple[float | None, float]) -> None:
    from models.photos import embedded_photos
    from optimize.pipeline import stage_defaults
    from optimize.recipe import combine
    from optimize.sources import Photos

    recipe = combine(None, flags)
    photos = Photos(embedded_photos("train"), embedded_photos("eval"), embedded_photos("train"))
    prune = stage_config(recipe, "prune", stage_defaults("prune", recipe, photos))
    assert (prune.fit.repeat, prune.fit.max_minutes) == (views, minutes[1])
    assert prune.target_speedup is None  # what it is pruned to is known when its turn comes: a student, or the teacher
    assert prune.fine_tune is False  # six photos are too few to learn from
    wanted = replace(recipe, options={"prune": {"fine_tune": True}})
    assert stage_config(wanted, "prune", stage_defaults("prune", wanted, photos)).fine_tune is True
    tight = replace(recipe, gate=replace(recipe.gate, max_lpips_drop=0.001))
    aims = [stage_config(r, "quantize", stage_defaults("quantize", r, photos)).aim for r in (recipe, tight)]
    assert aims == [0.002, 0.001]
    if "distill" in recipe.stages:
        distill = stage_config(recipe, "distill", stage_defaults("distill", recipe, photos))
        assert (distill.fit.repeat, distill.fit.max_minutes) == (views, minutes[0])


@pytest.mark.parametrize(
    ("photos", "flags", "views"),
    [
        (6, {}, 48),
        (100, {}, 15),
        (5000, {}, 1),
        (100, {"distill.fit.max_minutes": 10}, 48),
        (1000, {"distill.fit.max_minutes": 10}, 7),
        (1000, {"prune.fit.max_minutes": None}, 16),
        (1000, {"budget_minutes": 4.0}, 3),
    ],
)
def test_crops_a_photo_follow_time_and_disk(photos: int, flags: dict[str, Any], views: int) -> None:
    from optimize.pipeline import _views
    from optimize.recipe import combine

    assert _views(combine(None, flags), photos) == views


@pytest.mark.parametrize(
    ("flags", "rate", "optimizer"),
    [
        ({}, 1e-4, "adamw"),
        ({"distill.student_kwargs": {"widths": [16, 32, 64, 128]}}, 1e-3, "muon"),
        ({"distill.from_scratch": True}, 1e-3, "muon"),
        ({"distill.student": "image_unet"}, 1e-3, "muon"),
        ({"teacher.model": "torch.nn:Identity", "teacher.task": "image"}, 1e-3, "muon"),
        ({"teacher.model": "torch.nn:Identity", "teacher.task": "image", "distill.student": "teacher"}, 3e-4, "adamw"),
        ({"distill.from_scratch": True, "distill.fit.learning_rate": 2e-4}, 2e-4, "muon"),
    ],
)
def test_a_student_from_random_weights_learns_faster(flags: dict[str, object], rate: float, optimizer: str) -> None:
    from optimize.pipeline import stage_defaults
    from optimize.recipe import combine, stage_config

    recipe = combine(None, flags)
    few = SimpleNamespace(train=range(6))
    config = stage_config(recipe, "distill", stage_defaults("distill", recipe, few))  # type: ignore[arg-type]
    assert (config.fit.learning_rate, config.fit.optimizer) == (rate, optimizer)


@pytest.mark.parametrize(
    ("flags", "stages", "start", "expected"),
    [
        ({"teacher.model": "unet"}, None, None, ("muon", 1e-3, 1.0)),
        ({"teacher.model": "unet"}, ("distill",), "scratch", ("muon", 1e-3, 1.0)),
        ({"teacher.model": "unet"}, (), None, ("adamw", 3e-4, 2.0)),  # the student was refused: this is the teacher
        ({"teacher.model": "unet", "distill.student": "teacher"}, None, None, ("adamw", 3e-4, 1.0)),
        ({"teacher.model": "unet", "distill.student": "teacher"}, ("distill",), "narrowed", ("adamw", 3e-4, 1.0)),
        ({}, None, None, ("adamw", 3e-4, 1.0)),
        ({}, ("distill",), "shipped", ("adamw", 3e-4, 1.0)),
        ({"stages": ["prune"]}, None, None, ("adamw", 3e-4, 2.0)),
        ({"stages": ["prune"]}, ("train", "distill"), "scratch", ("muon", 1e-3, 1.0)),
        ({"teacher.model": "unet", "budget_minutes": 10.0}, ("distill",), "scratch", ("muon", 1e-3, 3.5)),
        ({"teacher.model": "unet", "prune.fit.optimizer": "adamw"}, ("distill",), "scratch", ("adamw", 1e-3, 1.0)),
    ],
)
def test_a_pruned_network_is_tuned_as_its_student_learned(
    flags: dict[str, object],
    stages: tuple[str, ...] | None,
    start: str | None,
    expected: tuple[str, float, float],
) -> None:
    from optimize.pipeline import stage_defaults
    from optimize.recipe import combine, stage_config

    recipe = combine(None, flags)
    photos = SimpleNamespace(train=range(200))
    artifact = None if stages is None else SimpleNamespace(stages=stages, metadata={"start": start})
    defaults = stage_defaults("prune", recipe, photos, artifact)  # type: ignore[arg-type]
    fit = stage_config(recipe, "prune", defaults).fit
    assert (fit.optimizer, fit.learning_rate, fit.max_minutes) == expected


@pytest.mark.parametrize(
    ("flags", "optimizer", "rate"),
    [
        ({}, "adamw", 1e-3),
        ({"teacher.model": "adafm"}, "muon", 1e-3),
        ({"teacher.model": "adain"}, "muon", 3e-4),
        ({"teacher.model": "adain", "train.fit.optimizer": "adamw", "train.fit.learning_rate": 1e-4}, "adamw", 1e-4),
        ({"teacher.model": "torch.nn:Identity", "teacher.task": "image"}, "adamw", 1e-3),
    ],
)
def test_a_teacher_is_trained_as_its_row_says(flags: dict[str, object], optimizer: str, rate: float) -> None:
    from optimize.pipeline import stage_defaults
    from optimize.recipe import combine, stage_config

    recipe = combine(None, flags)
    few = SimpleNamespace(train=range(6))
    config = stage_config(recipe, "train", stage_defaults("train", recipe, few))  # type: ignore[arg-type]
    assert (config.fit.optimizer, config.fit.learning_rate) == (optimizer, rate)
