"""Networks that a user brings: factories in a file, published weights in other shapes and under other names."""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from own_networks import save_own
from safetensors.torch import save_file
from torch import nn

from export.fuse import fold_batch_norm
from models.artifact import load_network, load_weights, read_tensors, save_network
from models.errors import CheckpointError, UsageError
from models.layers import bake_weights, has_computed_weights
from models.registry import create_model, get_spec, get_task, load_object
from optimize.loop import Ema

OWN = """
from torch import nn
from beside import WIDTH
from models.spec import SizeRequirements


class Plain(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.a = nn.Conv2d(3, width, 1)
        self.b = nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return self.b(self.a(x).relu())


class Renamed(Plain):
    def convert_state(self, state):
        return {name.replace("first", "a").replace("second", "b"): value for name, value in state.items()}


def needs(width):
    return Plain(width)


def nothing():
    return (1, 2)


def half():
    return Plain().half()


def any_size():
    return Plain()


any_size.size = SizeRequirements(minimum=5)


def broken():
    return nn.GroupNorm(3, 8)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Path of a file with factories that imports a file beside it."""
    (tmp_path / "beside.py").write_text("WIDTH = 4\n", encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    return str(tmp_path / "own.py")


def test_a_factory_in_a_file_is_imported_once_and_its_artifact_reloads(own: str, tmp_path: Path) -> None:
    assert load_object(f"{own}:Plain") is load_object(f"{own}:Plain")
    net = create_model(f"{own}:Plain", task="image")
    saved = save_network(net, tmp_path / "net.safetensors", model=f"{own}:Plain", task="image")
    again = load_network(saved.path)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(again(image), net(image))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'; fix: make"),
        ("def f(:\n", "import of .*broken.py: expected a module, got SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_object(f"{tmp_path / 'broken.py'}:f")
    with pytest.raises(UsageError, match=r"import path: expected a file, got .*none\.py"):
        load_object(f"{tmp_path / 'none.py'}:f")


def test_factories_that_need_arguments_or_return_no_network_are_refused(own: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected arguments that it takes: none, got missing a required argument: 'width'"
    ):
        create_model(f"{own}:needs", task="image")
    assert create_model(f"{own}:needs", task="image", width=2).a.out_channels == 2
    with pytest.raises(UsageError, match=r"expected a torch.nn.Module, got tuple; fix: return the network itself"):
        create_model(f"{own}:nothing", task="image")


def test_what_code_of_the_users_raises_is_one_line_and_where_on_request(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pare_test_broken.py").write_text("raise RuntimeError('no such\\noperator')\n", encoding="utf-8")
    for call, message in (
        (
            lambda: create_model(f"{own}:broken", task="image"),
            r"own.py:broken: expected a network, got ValueError: num",
        ),
        (
            lambda: load_object("pare_test_broken:f"),
            "import of pare_test_broken: .* got RuntimeError: no such operator",
        ),
        (
            lambda: get_task(f"{own}:needs"),
            "own.py:needs: .* without arguments, got TypeError: .*'width'; fix: correct",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    monkeypatch.setenv("PARE_DEBUG", "1")
    with pytest.raises(ValueError, match=r"^num_channels"):
        create_model(f"{own}:broken", task="image")


def test_a_network_inside_of_a_larger_checkpoint_is_found(own: str, tmp_path: Path) -> None:
    state = create_model(f"{own}:Plain", task="image").state_dict()
    whole = {f"generator.{name}": value for name, value in state.items()} | {"critic.a.weight": torch.zeros(1)}
    torch.save({"model_state_dict": whole, "epoch": 3}, tmp_path / "training.pth")
    net = create_model(f"{own}:Plain", task="image", weights=tmp_path / "training.pth")
    assert torch.equal(net.b.weight, state["b.weight"])
    twice = whole | {f"ema.{name}": value.clone() for name, value in state.items()}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(CheckpointError, match=r"expected the network once, got it below ema\. and generator\."):
        create_model(f"{own}:Plain", task="image", weights=tmp_path / "twice.safetensors")


def test_a_network_in_half_precision_is_computed_in_single(own: str, tmp_path: Path) -> None:
    net = create_model(f"{own}:half", task="image")
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    saved = save_network(net, tmp_path / "net.safetensors", model=f"{own}:half", task="image")
    assert load_network(saved.path)(torch.rand(1, 3, 8, 8)).dtype == torch.float32


def test_sizes_that_a_factory_takes(own: str) -> None:
    assert get_spec(f"{own}:any_size", task="image").size.fit(5, 7) == (5, 7)
    assert get_spec(f"{own}:half", task="image").size.fit(5, 7) == (32, 32)


def test_what_training_scripts_keep_beside_the_tensors(own: str, tmp_path: Path) -> None:
    net = create_model(f"{own}:Plain", task="image")
    torch.save({"model": net.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "run.pth")
    assert torch.equal(read_tensors(tmp_path / "run.pth")["a.weight"], net.a.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        torch.jit.save(torch.jit.trace(net, torch.rand(1, 3, 8, 8)), tmp_path / "traced.pt")
    with pytest.raises(
        CheckpointError, match=r"expected a state_dict, got a TorchScript archive; fix: save torch\.jit"
    ):
        read_tensors(tmp_path / "traced.pt")


def test_weights_under_other_names_are_converted_by_the_network(own: str, tmp_path: Path) -> None:
    state = create_model(f"{own}:Plain", task="image").state_dict()
    published = {name.replace("a.", "first.").replace("b.", "second."): value for name, value in state.items()}
    save_file(published, tmp_path / "published.safetensors")
    net = create_model(f"{own}:Renamed", task="image", weights=tmp_path / "published.safetensors")
    assert torch.equal(net.a.weight, state["a.weight"])
    saved = save_network(net, tmp_path / "own.safetensors", model=f"{own}:Renamed", task="image")
    assert torch.equal(load_network(saved.path).a.weight, state["a.weight"])
    with pytest.raises(CheckpointError, match=r"4 missing .* fix: .* a method convert_state\(state\) -> state"):
        create_model(f"{own}:Plain", task="image", weights=tmp_path / "published.safetensors")


NORMS = [
    torch.nn.utils.parametrizations.weight_norm,
    torch.nn.utils.parametrizations.spectral_norm,
    torch.nn.utils.weight_norm,
    torch.nn.utils.spectral_norm,
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_computed_weights_become_plain_and_still_load(norm: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    def network(width: int = 4) -> nn.Sequential:
        return nn.Sequential(norm(nn.Conv2d(3, width, 3)), nn.ReLU(), nn.Conv2d(width, 3, 1)).eval()

    published, image = network(), torch.rand(1, 3, 8, 8)
    wanted = published(image)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    net = network()
    assert has_computed_weights(net)
    load_weights(net, tmp_path / "published.pth")  # under the names of the norm
    assert torch.allclose(net(image), wanted, atol=1e-6)
    bake_weights(net)
    assert not has_computed_weights(net)
    assert sorted(net.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert torch.allclose(net(image), wanted, atol=1e-6)
    twin = copy.deepcopy(net)
    twin.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    assert torch.equal(twin(image), net(image))
    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    again = network(6)  # wider: pruned weights load too
    load_weights(again, tmp_path / "plain.safetensors")
    assert torch.allclose(again(image), wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_a_trained_network_with_computed_weights_is_saved_and_loads_plain(
    norm: Callable[[nn.Module], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))

    saved, image = save_own(network, tmp_path, monkeypatch), torch.rand(1, 3, 8, 8)
    published = create_model(saved.model, task="image", weights=saved.path)
    net = load_network(saved)
    assert not has_computed_weights(net)
    torch.testing.assert_close(fold_batch_norm(net)(image), published.eval()(image), atol=1e-5, rtol=1e-4)
    published.train()(image).mean().backward()
    mean = Ema(published, 0.5)  # a copy of what is trained
    mean.update(published)
    assert mean.net(image).isfinite().all()


def test_a_folder_of_checkpoints_is_one_with_the_file_names_before_the_tensors(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "encoder.safetensors")
    torch.save({"w": torch.zeros(1)}, tmp_path / "decoder.pth")
    (tmp_path / "LICENSE").write_text("MIT", encoding="utf-8")
    assert {name: float(value) for name, value in read_tensors(tmp_path).items()} == {"encoder.w": 1, "decoder.w": 0}
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: expected a checkpoint \(.safetensors .pth .*\), got none"):
        read_tensors(tmp_path / "empty")
