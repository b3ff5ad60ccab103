"""Recipes: plain values to configs and back, files, flags, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from models.errors import ConfigError, RunFolderError, UnknownNameError, UsageError
from models.spec import Precision
from optimize.config import assign, build, flatten, merge, to_plain
from optimize.recipe import Recipe, combine, read_recipe, recipe_from, resolve, stage_config, write_yaml


@dataclass(frozen=True)
class Inner:
    """A nested config."""

    size: int = 3
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    """A config with every kind of field."""

    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    pair: tuple[int, int] = (1, 2)
    mode: Literal["fast", "slow"] = "fast"
    precision: Precision = Precision.FP32
    path: Path | None = None
    flag: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        if self.pair[0] > self.pair[1]:
            raise ConfigError("pair: expected a rising pair, got a falling one; fix: swap")


def test_build_converts_plain_values_and_back() -> None:
    plain = {
        "name": "x",
        "inner": {"size": 4, "rate": "1e-4"},
        "many": [{"size": 1}, {}],
        "pair": [3, 4],
        "mode": "slow",
        "precision": "int8",
        "path": "a/b",
        "flag": True,
        "options": {"k": 2},
        "anything": [1, {"a": None}],
    }
    config = build(Outer, plain)
    assert config.inner == Inner(4, 1e-4)
    assert config.many == (Inner(1), Inner())
    assert config.pair == (3, 4)
    assert config.precision is Precision.INT8
    assert config.path == Path("a/b")
    assert config.options == {"k": 2.0}
    assert build(Outer, yaml.safe_load(yaml.safe_dump(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "config: expected name, got nothing; fix: add it"),
        ({"name": "x", "iner": {}}, "got 'iner'; fix: use 'inner'"),
        ({"name": "x", "inner": {"siz": 1}}, r"config inner: expected size \| rate, got 'siz'; fix: use 'size'"),
        ({"name": "x", "inner": 3}, "config inner: expected a mapping, got 3"),
        ({"name": 3}, "config name: expected text, got 3"),
        ({"name": "x", "inner": {"size": 1.5}}, "config inner.size: expected a whole number, got 1.5"),
        ({"name": "x", "inner": {"size": True}}, "expected a whole number, got True"),
        ({"name": "x", "inner": {"rate": "fast"}}, "config inner.rate: expected a number, got 'fast'"),
        ({"name": "x", "many": [{}, {"rate": []}]}, r"config many\[1\].rate: expected a number"),
        ({"name": "x", "many": "ab"}, "config many: expected a list, got 'ab'"),
        ({"name": "x", "pair": [1]}, r"config pair: expected 2 values, got \[1\]"),
        ({"name": "x", "pair": [2, 1]}, "expected a rising pair, got a falling one"),
        ({"name": "x", "mode": "medium"}, r"config mode: expected fast \| slow, got 'medium'"),
        ({"name": "x", "precision": "int4"}, r"expected fp32 \| fp16 \| bf16 \| int8, got 'int4'"),
        ({"name": "x", "flag": "yes"}, "config flag: expected true or false, got 'yes'"),
        ({"name": "x", "path": 3}, "config path: expected a path, got 3"),
        ({"name": "x", "options": [1]}, "config options: expected keys and values"),
    ],
)
def test_build_refuses_with_the_place(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(Outer, values)


def test_merge_assign_and_flatten() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    merged = merge(base, {"a": {"b": 9}, "e": {"f": 1}})
    assert merged == {"a": {"b": 9, "c": 2}, "d": 3, "e": {"f": 1}}
    assign(merged, "a.x.y", 5)
    assert flatten(merged) == {"a.b": 9, "a.c": 2, "a.x.y": 5, "d": 3, "e.f": 1}
    with pytest.raises(ConfigError, match="config d: expected a mapping, got 3; fix: write keys and values"):
        assign(merged, "d.z", 6)
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_flags_go_over_the_file_and_settings_over_flags(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 1\ninput_size: [64, 96]\ndistill: {fit: {repeat: 2}}\ngate: {max_lpips_drop: 0.5}\n")
    recipe = combine(path, {"seed": 2, "export.targets": ["onnx"]}, ("seed=3", "distill.fit.learning_rate=1e-4"))
    assert recipe.seed == 3
    assert recipe.input_size == (64, 96)
    assert recipe.export.targets == ("onnx",)
    assert recipe.gate.max_lpips_drop == 0.5
    assert recipe.options == {"distill": {"fit": {"repeat": 2, "learning_rate": "1e-4"}}}
    config = stage_config(recipe, "distill")
    assert (config.fit.repeat, config.fit.learning_rate, config.fit.seed) == (2, 1e-4, 3)


def test_resolved_recipe_is_complete_and_gives_the_same_run(tmp_path: Path) -> None:
    recipe = combine(None, {"data.source": "photos"}, ("distill.loss=kl_mse",))
    configs = {"distill": stage_config(recipe, "distill", {"fit": {"repeat": 7}})}
    resolved = resolve(recipe, configs)
    write_yaml(tmp_path / "run" / "recipe.yaml", resolved)
    again = recipe_from(read_recipe(tmp_path / "run" / "recipe.yaml"))
    assert resolve(again, {"distill": stage_config(again, "distill")}) == resolved
    assert resolved["distill"]["fit"]["repeat"] == 7
    assert resolved["gate"]["allow_drop"] is False


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        ({"sead": 1}, ConfigError, "got 'sead'; fix: use 'seed'"),
        ({"schema": 9}, ConfigError, "recipe schema: expected 1, got 9; fix: use the version of Pare that wrote it"),
        ({"stages": ["distil"]}, UnknownNameError, "got 'distil'; fix: use 'distill'"),
        ({"stages": ["train"]}, UnknownNameError, "unknown stage"),
        ({"stages": ["prune", "prune"]}, ConfigError, "expected each once"),
        ({"export": {"targets": ["onix"]}}, UnknownNameError, "unknown target: .* got 'onix'; fix: use 'onnx'"),
        ({"export": {"options": {"tensort": {}}}}, UnknownNameError, "use 'tensorrt'"),
        ({"lpips_net": "squeez"}, UnknownNameError, "unknown LPIPS net: .*use 'squeeze'"),
        ({"budget_minutes": 0}, ConfigError, "expected above 0 minutes, got 0"),
        ({"input_size": [0, 5]}, ConfigError, r"expected positive pixels, got \(0, 5\)"),
        ({"device": "gpu"}, ConfigError, "device"),
        ({"data": {"eval": "x"}}, ConfigError, "got eval-data alone; fix: pass --data too"),
        ({"data": {"eval_fraction": 1}}, ConfigError, "eval_fraction between 0 and 1"),
        ({"data": {"train_photos": 0}}, ConfigError, "data.train_photos: expected 1 or more, got 0; fix: leave it out"),
        ({"benchmark": {"iterations": 0}}, ConfigError, "iterations of 1 or more"),
        ({"gate": {"max_lpips_drop": -1}}, ConfigError, "fix: change --max-lpips-drop"),
        (
            {"gate": {"max_lpips_drop": float("nan")}},
            ConfigError,
            "gate.max_lpips_drop: expected a finite number, got nan",
        ),
        ({"budget_minutes": ".inf"}, ConfigError, "config budget_minutes: expected a number, got '.inf'"),
        ({"budget_minutes": float("inf")}, ConfigError, "config budget_minutes: expected a finite number, got inf"),
        ({"budget_minutes": "1e999"}, ConfigError, "config budget_minutes: expected a finite number, got inf"),
        ({"distil": {}}, ConfigError, "recipe: expected .*got 'distil'; fix: use 'distill'"),
        ({"distill": 5}, ConfigError, "config distill: expected a mapping, got 5; fix: write keys and values"),
        ({"distill": [1]}, ConfigError, r"config distill: expected a mapping, got \[1\]"),
        ({"export": {"precisions": ["int4"]}}, ConfigError, "got 'int4'; fix: use 'int8'"),
        ({"export": {"options": {"onnx": {"opsett": 18}}}}, UsageError, r"options of target onnx: .*got \['opsett'\]"),
        ({"lpips_weights": 5}, ConfigError, "config lpips_weights: expected a path, got 5"),
        ({"seed": -1}, ConfigError, r"seed: expected 0 to 2\*\*32 - 1, got -1"),
        ({"seed": 2**32}, ConfigError, "seed: expected 0 to"),
        ({"threads": 0}, ConfigError, "threads: expected 1 to 512, got 0; fix: use the number of physical cores"),
        ({"threads": 99_999}, ConfigError, "threads: expected 1 to 512, got 99999"),
    ],
)
def test_wrong_recipes_are_refused(content: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        recipe_from(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "expected a readable file"),
        ("- 1\n- 2\n", "expected a mapping, got list"),
        ("seed: x\n", "config seed: expected a whole number, got 'x'"),
    ],
)
def test_wrong_recipe_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        combine(tmp_path / "r.yaml", {})
    with pytest.raises(ConfigError, match="No such file"):
        combine(tmp_path / "none.yaml", {})


def test_settings_need_a_key_and_a_value() -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE, got 'seed'"):
        combine(None, {}, ("seed",))
    with pytest.raises(ConfigError, match="expected a YAML value"):
        combine(None, {}, ("seed=[",))
    with pytest.raises(ConfigError, match=r"config distill\.fit: expected .*got 'rate'"):
        stage_config(combine(None, {}, ("distill.fit.rate=1",)), "distill")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("distill.student=chroma_unt", "unknown student: .*fix: use 'chroma_unet'"),
        ("distill.student=teachr", "unknown student: .*fix: use 'teacher'"),
        ("distill.lpips_net=sqeeze", "unknown LPIPS net: .*fix: use 'squeeze'"),
        ("train.lpips_net=sqeeze", "unknown LPIPS net: .*fix: use 'squeeze'"),
        ("distill.loss=kl_mes", r"config distill\.loss: .*fix: use 'kl_mse'"),
        ("prune.importance=tailor", r"config prune\.importance: .*fix: use 'taylor'"),
        ("prune.engines=[openvno]", "unknown target: .*fix: use 'openvino'"),
        ("distill.fit.learning_rate=.nan", "learning_rate: expected a finite number, got nan"),
        ("distill.fit.learning_rate=0", "learning_rate > 0"),
        ("distill.fit=3", r"config distill\.fit: expected a mapping, got 3"),
        ("distill.axis=9", "axis 1, 2 or 3, got .*axis 9"),
        ("distill.fit.repeat=0", "repeat >= 1, got .*repeat 0"),
        ("distill.fit.min_area=5", r"min_area in \(0, 1\]"),
        ("distill.fit.clip_norm=-1", "clip_norm > 0"),
        ("distill.fit.weight_decay=-1", "weight_decay >= 0"),
        ("distill.fit.checkpoint_seconds=-1", "checkpoint_seconds >= 0"),
    ],
)
def test_wrong_values_of_a_stage_are_refused_before_anything_runs(setting: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        stage_config(combine(None, {}, (setting,)), setting.split(".")[0])


def test_full_disk_while_writing_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunFolderError, match="No space left on device; fix: free disk space"):
        write_yaml(tmp_path / "recipe.yaml", {"a": 1})


def test_reading_a_recipe_does_not_import_torch() -> None:
    code = "import sys, optimize; optimize.combine(None, {'seed': 1}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    assert Recipe().stages == ("distill", "prune", "quantize")
