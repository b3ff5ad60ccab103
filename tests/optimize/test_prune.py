"""The stage: config, run with fake latency and fine-tuning, what is written, and going on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import models
from models.artifact import Artifact, load_network, save_network
from models.errors import ConfigError, UnsupportedError
from models.photos import embedded_photos
from models.registry import get_spec
from optimize.config import build
from optimize.latency_search import Point
from optimize.prune import PruneConfig, config_type, name, run
from optimize.pruner import prepare
from optimize.stage import StageContext

FAST = {"importance": "magnitude", "fine_tune": False, "engines": ("torch",), "warmup": 0, "iterations": 1, "photos": 2}


@pytest.fixture(scope="module")
def context() -> StageContext:
    train, judged = embedded_photos("train"), embedded_photos("eval")
    return StageContext(train=train[:3], eval=judged[:1], calibration=train[:1], input_size=(64, 64), threads=1)


def by_parameters(net: nn.Module, ratio: float, whole: int) -> Point:
    """A fake latency of 20 ms a whole network's parameters."""
    ms = 20 * sum(p.numel() for p in net.parameters()) / whole
    return Point(ratio, {"fake": ms}, {"fake": 20.0}, {"fake": 20.0 / ms})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pruning_ratio": 1.0}, r"pruning_ratio: expected between 0 and 1, got 1\.0; fix: use for example"),
        ({"target_speedup": 0.9}, r"target_speedup: expected above 1, got 0\.9"),
        ({"target_latency_ms": 0.0}, r"target_latency_ms: expected above 0, got 0\.0"),
        ({"pruning_ratio": 0.3, "target_speedup": 2.0}, "expected one flag, got --pruning-ratio and --target-speedup"),
        ({"engines": ()}, "engines: expected one or more, got none"),
        ({"importance": "luck"}, "importance: expected taylor, magnitude or bn_scale, got 'luck'"),
        ({"scope": "local"}, "scope: expected global or uniform, got 'local'"),
        ({"round_to": 0}, "round_to: expected 1 or more, got 0"),
        ({"max_ratio": 1.0}, r"expected max_ratio in \(0, 1\), latency_weight in \[0, 4\], got max_ratio 1\.0"),
        ({"iterations": 0}, "expected 1 or more of each, got .*iterations 0"),
    ],
)
def test_config_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneConfig(**values)


def test_goal_defaults_to_a_speedup() -> None:
    assert PruneConfig().goal.speedup == 1.8
    assert PruneConfig(target_latency_ms=12.0).goal.latency_ms == 12.0
    assert PruneConfig(pruning_ratio=0.3).goal is None


def test_a_student_is_pruned_to_less_than_a_teacher(
    tiny_teacher: Artifact, context: StageContext, tmp_path: Path
) -> None:
    whole = sum(p.numel() for p in load_network(tiny_teacher).parameters())
    student = replace(tiny_teacher, stages=("teacher", "distill"))
    goals = []
    for parent in (tiny_teacher, student):
        config = PruneConfig(**FAST)
        made = run(parent, config, context, tmp_path, measure=partial(by_parameters, whole=whole))
        goals.append(made.metadata["recipe"]["target_speedup"])
        assert made.metadata["speedup"] >= goals[-1]
    assert goals == [1.8, 1.25]
    set_by_hand = (PruneConfig(target_speedup=2.0), PruneConfig(pruning_ratio=0.3), PruneConfig(target_latency_ms=9.0))
    assert [config.settled(student) for config in set_by_hand] == list(set_by_hand)


def test_config_from_a_recipe() -> None:
    phases = [{"size": 64, "epochs": 1}]
    values = {"engines": ["onnx", "openvino"], "precision": "fp16", "ignore": ["stem"], "fit": {"phases": phases}}
    config = build(config_type, values, where=name)
    assert config.engines == ("onnx", "openvino")
    assert config.precision.value == "fp16"
    assert config.fit.phases[0].size == 64


def test_by_ratio(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    config = PruneConfig(pruning_ratio=0.4, scope="uniform", round_to=1, **FAST)
    result = run(tiny_teacher, config, context, tmp_path)
    again = Artifact.load(result.path)
    small, whole = load_network(again), load_network(tiny_teacher)
    meta = again.metadata
    assert again.stages[-1] == "prune"
    assert again.parent_sha256 == tiny_teacher.sha256
    assert meta["pruning_ratio"] == pytest.approx(0.4, abs=0.05)
    assert meta["params_m"][1] < 0.5 * meta["params_m"][0]
    assert meta["gmacs"][1] < meta["gmacs"][0]
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(meta["params_m"][1] * 1e6, abs=100)
    assert small(torch.rand(1, 1, 64, 64)).shape == whole(torch.rand(1, 1, 64, 64)).shape
    assert set(meta["scores"]) == {"lpips_net", "before", "pruned"}
    assert meta["speedup"] == meta["points"][0]["speedups"]["torch"]
    assert {"layers": ["refine.1.0"], "before": 4, "after": 2, "mixed": []} in meta["groups"]
    assert list(meta["kept"]) == ["head"]
    assert json.loads(json.dumps(dict(meta))) == meta


def test_to_a_speedup_with_fine_tuning(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    whole = sum(p.numel() for p in load_network(tiny_teacher).parameters())
    tuned = []

    def fine_tune(net: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        tuned.append(sum(p.numel() for p in net.parameters()))
        with torch.no_grad():
            net.head.weight.zero_()
            net.head.bias.zero_()  # no chroma: better than random chroma
        return net, {"steps": 1}

    config = PruneConfig(target_speedup=1.8, importance="taylor", photos=2, round_to=1)
    result = run(
        tiny_teacher,
        config,
        context,
        tmp_path,
        fine_tune=fine_tune,
        measure=lambda net, ratio: by_parameters(net, ratio, whole),
    )
    assert 1.8 <= result.metadata["speedup"] <= 2.6
    assert whole / tuned[0] == pytest.approx(result.metadata["speedup"], rel=1e-3)
    assert not load_network(result).head.bias.any()
    assert result.metadata["fine_tuning"] == {"steps": 1}
    assert result.metadata["fine_tuning_used"] is True
    assert set(result.metadata["scores"]) == {"lpips_net", "before", "pruned", "fine_tuned"}
    assert len(result.metadata["points"]) >= 1


def test_fine_tuning_that_harms_is_not_kept(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    def fine_tune(net: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        with torch.no_grad():
            net.head.bias.add_(0.4)
        return net, {}

    neutral = load_network(tiny_teacher)
    nn.init.zeros_(neutral.head.weight)
    nn.init.zeros_(neutral.head.bias)
    path = tmp_path / "neutral.safetensors"
    same = {"model": tiny_teacher.model, "task": tiny_teacher.task, "model_kwargs": tiny_teacher.model_kwargs}
    artifact = save_network(neutral, path, **same)
    config = PruneConfig(pruning_ratio=0.3, **{**FAST, "fine_tune": True})
    result = run(artifact, config, context, tmp_path, fine_tune=fine_tune)
    assert result.metadata["fine_tuning_used"] is False
    assert not load_network(result).head.bias.any()
    assert result.metadata["scores"]["fine_tuned"]["lpips"] > result.metadata["scores"]["pruned"]["lpips"]


def test_an_interrupted_run_goes_on_with_the_network_it_found(
    tiny_teacher: Artifact, context: StageContext, tmp_path: Path
) -> None:
    whole = sum(p.numel() for p in load_network(tiny_teacher).parameters())
    searched = []

    def measure(net: nn.Module, ratio: float) -> Point:
        searched.append(ratio)
        return by_parameters(net, ratio, whole)

    def interrupted(net: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        raise KeyboardInterrupt

    config = PruneConfig(target_speedup=1.5, importance="magnitude", round_to=1)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_teacher, config, context, tmp_path, fine_tune=interrupted, measure=measure)
    count = len(searched)
    result = run(tiny_teacher, config, context, tmp_path, fine_tune=lambda net: (net, {}), measure=measure)
    assert len(searched) == count
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [result.path.name] == ["pruned.safetensors"]
    other = PruneConfig(target_speedup=1.6, importance="magnitude", round_to=1)
    run(tiny_teacher, other, context, tmp_path, fine_tune=lambda net: (net, {}), measure=measure)
    assert len(searched) > count


def test_a_ratio_needs_no_engine(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    config = PruneConfig(pruning_ratio=0.3, **{**FAST, "engines": ("coreml",)})
    meta = run(tiny_teacher, config, context, tmp_path).metadata
    assert meta["speedup"] is None
    assert meta["speedup_reason"].startswith("engine coreml: expected to run here")
    assert meta["points"] == []
    with pytest.raises(UnsupportedError, match="engine coreml: expected to run here"):
        run(tiny_teacher, PruneConfig(target_speedup=1.2, **{**FAST, "engines": ("coreml",)}), context, tmp_path)


@pytest.mark.parametrize("importance", ["magnitude", "bn_scale", "taylor"])
def test_every_importance_prunes(
    tiny_student: Artifact, context: StageContext, tmp_path: Path, importance: str
) -> None:
    config = PruneConfig(pruning_ratio=0.3, **{**FAST, "importance": importance})
    whole = sum(p.numel() for p in load_network(tiny_student).parameters())
    result = run(tiny_student, config, context, tmp_path, measure=lambda net, ratio: by_parameters(net, ratio, whole))
    assert result.metadata["importance"] == importance
    assert sum(p.numel() for p in load_network(result).parameters()) < whole


def test_rounding_that_leaves_nothing_to_remove_is_said(
    tiny_student: Artifact, context: StageContext, tmp_path: Path
) -> None:
    config = PruneConfig(pruning_ratio=0.1, round_to=16, **FAST)
    message = (
        r"pruning: expected channels to remove, got none at ratio 0\.1 with round_to 16; fix: raise --pruning-ratio"
    )
    with pytest.raises(UnsupportedError, match=message):
        run(tiny_student, config, context, tmp_path)


def test_nothing_that_can_be_pruned_is_said_with_names() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1)).eval()
    message = "pruning: expected a layer that can be pruned, got 0: is the network's output; fix: leave this stage out"
    with pytest.raises(UnsupportedError, match=message):
        prepare(net, get_spec("resnet18_unet"), PruneConfig(importance="magnitude"), input_size=(32, 32))


def test_no_artifact_is_an_error(context: StageContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prune: expected an artifact, got none; fix: pass --teacher"):
        run(None, PruneConfig(), context, tmp_path)


def test_pruning_a_pruned_network_again(tiny_teacher: Artifact, context: StageContext, tmp_path: Path) -> None:
    config = PruneConfig(pruning_ratio=0.3, round_to=1, **FAST)
    first = run(tiny_teacher, config, context, tmp_path / "a")
    second = run(first, config, context, tmp_path / "b")
    assert second.stages[-2:] == ("prune", "prune")
    assert second.metadata["params_m"][0] == first.metadata["params_m"][1]
    assert second.metadata["params_m"][1] < 0.9 * first.metadata["params_m"][1]


def test_your_own_network(context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(),"
        " nn.Conv2d(16, 32, 1), nn.PixelShuffle(2), nn.Conv2d(8, 2, 1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "own_network:build"
    artifact = save_network(models.create_model(own), tmp_path / "own.safetensors", model=own, task="colorize")
    config = PruneConfig(pruning_ratio=0.5, scope="uniform", **FAST)
    result = run(artifact, config, context, tmp_path)
    net = load_network(result)
    assert [net[0].out_channels, net[2].out_channels, net[4].in_channels] == [8, 16, 4]
    assert net(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_command_line_names_engines_importance_and_rounding() -> None:
    from optimize.flags import recipe_flags

    given = {"engine": ["onnx", "openvino"], "importance": "magnitude", "round_to": 8, "target_speedup": 1.5}
    assert recipe_flags("prune", given) == {
        "prune.engines": ["onnx", "openvino"],
        "prune.importance": "magnitude",
        "prune.round_to": 8,
        "prune.target_speedup": 1.5,
    }
