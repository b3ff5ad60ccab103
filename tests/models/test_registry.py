"""The tables of models and tasks; every row is tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import models
from models import registry
from models.errors import CheckpointError, ConfigError, UnknownNameError, UsageError
from models.registry import MODELS, TASKS, WEIGHTS, create_model, get_spec, get_task, load_object

OWN = '''
from torch import nn

from models import ModelSpec


def plain(width=4):
    """(N, 1, H, W) -> (N, 2, H, W)."""
    return nn.Conv2d(1, 2, 3, padding=1)


def described():
    return plain()


described.spec = ModelSpec("own_networks:described", "colorize", "own_networks:described", student="mine")
number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user, importable as ``own_networks``."""
    (tmp_path / "own_networks.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    return "own_networks:plain"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_keeps_its_contract(name: str) -> None:
    spec = get_spec(name)
    net = create_model(name)
    assert not net.training
    height, width = spec.size.fit(33, 1)
    spec.size.check(height, width)
    with torch.inference_mode():
        out = net(torch.zeros(1, spec.packed_channels, height, width))
    assert out.shape == spec.outputs[0].at(N=1, H=height, W=width).shape
    assert spec.name == name
    assert spec.task in TASKS
    assert spec.source
    assert (spec.inputs, spec.outputs) == (get_task(spec.task).inputs, get_task(spec.task).outputs)
    assert spec.graph_controls in (get_task(spec.task).controls, ())
    if spec.student is not None:
        assert get_spec(spec.student).role == "student"
    if spec.feature is not None:
        assert net.get_submodule(spec.feature) is not None


@pytest.mark.parametrize("name", [name for name, row in sorted(MODELS.items()) if row.weights])
def test_every_shipped_checkpoint_loads_and_has_a_card(name: str) -> None:
    file = WEIGHTS / str(MODELS[name].weights)
    if not file.exists():
        pytest.skip(f"{file.name} is not in this checkout")
    net = create_model(name, pretrained=True)
    assert not net.training
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())
    assert file.with_suffix(".md").exists()
    assert file.stat().st_size <= (32e6 if MODELS[name].role == "teacher" else 8e6)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_keeps_its_contract(name: str) -> None:
    task = get_task(name)
    rgb = torch.rand(2, 3, 32, 32)
    inputs, target = task.prepare(rgb)
    assert task.name == name
    assert torch.equal(task.inputs_of(rgb), inputs)
    assert inputs.shape[1] == task.inputs[0].shape[1] + len(task.controls)
    assert inputs.shape[2] * task.photo_scale == 32
    assert target.shape[1] == task.outputs[0].shape[1]
    assert task.baseline(inputs).shape == target.shape
    assert task.loss_weight(target).shape == (2, 1, 32, 32)
    rendered = task.render(inputs, target)
    assert rendered.shape == rgb.shape
    assert float(rendered.min()) >= 0
    assert float(rendered.max()) <= 1
    assert task.do_nothing
    assert task.output_scale > 0


def test_lists_are_sorted_names() -> None:
    assert models.list_models() == sorted(MODELS)
    assert models.list_tasks() == sorted(TASKS)
    assert "resnet18_unet" in models.list_models()


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model: expected adafm \| .*got 'resnet18_net'; fix: use"):
        get_spec("resnet18_net")
    with pytest.raises(UnknownNameError, match=r"unknown task: .* got 'colourize'; fix: use 'colorize'"):
        get_task("colourize")


def test_a_name_stands_once() -> None:
    with pytest.raises(ConfigError, match="registry: expected each name once, got 'a' twice; fix: rename one"):
        registry._table((("a", 1), ("b", 2), ("a", 3)))


def test_kwargs_go_over_the_defaults_of_the_row() -> None:
    assert create_model("resnet18_unet", width=8).head.in_channels == 4


def test_pretrained_without_a_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    message = r"weights of 'resnet18_unet': expected a shipped file, got none; fix: train it, or pass weights=FILE"
    with pytest.raises(CheckpointError, match=message):
        create_model("resnet18_unet", pretrained=True)


def test_pretrained_takes_the_shipped_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = create_model("resnet18_unet", width=8)
    path = tmp_path / "resnet18_unet.safetensors"
    models.save_network(net, path, model="resnet18_unet", task="colorize", model_kwargs={"width": 8})
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    for loaded in (create_model("resnet18_unet", pretrained=True), create_model("resnet18_unet", True, width=8)):
        assert torch.equal(loaded.head.weight, net.head.weight)


def test_weights_of_a_file(tmp_path: Path) -> None:
    net = create_model("resnet18_unet", width=8)
    save_file(net.state_dict(), tmp_path / "mine.safetensors")
    loaded = create_model("resnet18_unet", weights=tmp_path / "mine.safetensors", width=8)
    assert torch.equal(loaded.stem.weight, net.stem.weight)


def test_own_factory_gets_a_row_from_its_task(own: str) -> None:
    spec = get_spec(own)
    assert (spec.name, spec.task, spec.factory, spec.student) == (own, "colorize", own, "chroma_unet")
    assert spec.inputs == get_task("colorize").inputs
    assert create_model(own)(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_own_factory_may_describe_itself(own: str) -> None:
    assert get_spec("own_networks:described").student == "mine"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (":factory", r"import path: expected package.module:name or path/to/file.py:name, got ':factory'"),
        ("own_networks:", r"expected package.module:name or path/to/file.py:name, got 'own_networks:'"),
        ("no_such_module:factory", r"expected a module, got 'no_such_module:factory' \(No module.*fix: run where"),
        ("own_networks:none", r"expected an attribute, got no 'none' in 'own_networks'; fix: check its name"),
    ],
)
def test_paths_that_cannot_be_imported(own: str, path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_object(path)


def test_the_tables_need_no_torch() -> None:
    code = (
        "import sys, models.registry, models.spec, models.errors, models.artifact, models.console, models.progress\n"
        "models.registry.list_models(), models.registry.get_spec('resnet18_unet')\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
