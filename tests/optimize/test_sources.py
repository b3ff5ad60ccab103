"""What a run finds out about a network before it starts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from models.artifact import Artifact, load_network, save_network
from models.errors import InputSizeError, PareError, UnsupportedError, UsageError
from models.registry import create_model
from optimize.sources import check_size

FILE = """
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)


class Dict(Base):
    def forward(self, x):
        return {"image": self.conv(x), "aux": x.mean((2, 3))}


class Grey(Base):
    def __init__(self):
        super().__init__(1)

    def forward(self, x):
        return self.conv(x)


class Twice(Base):
    def forward(self, x):
        return nn.functional.interpolate(self.conv(x), scale_factor=2)


class Wide(Base):
    def forward(self, x):
        return nn.functional.interpolate(self.conv(x), scale_factor=(1, 2))


class Odd(Base):
    def forward(self, x):
        raise KeyError("no such thing")


class TwoInputs(Base):
    def forward(self, x, sigma):
        return self.conv(x) * sigma


class Broken(Base):
    def forward(self, x):
        return torch.log(self.conv(x) - 100)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Writing(Base):
    def forward(self, x):
        x -= x.mean()
        return self.conv(x)


class OneAlone(Base):
    def forward(self, x):
        return self.conv(x.squeeze(0)).unsqueeze(0)


class Relative(Base):
    def forward(self, x):
        x /= x.max()
        return self.conv(x)


class Caught:
    def __init__(self, module):
        module.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.value = output


class Hooked(Base):
    # reads what a hook of fastai's kind caught, also in a pass of its own when it is made (DDColor)
    def __init__(self):
        super().__init__()
        self.caught = [Caught(self.conv)]
        self.last = nn.Conv2d(3, 3, 1)
        self(torch.rand(1, 3, 8, 8))

    def forward(self, x):
        self.conv(x)
        return self.last(self.caught[0].value)


class Uncopied(Base):
    def __init__(self):
        super().__init__()
        self.torch = torch

    def forward(self, x):
        return self.torch.relu(self.conv(x))


class Noisy(Base):
    def __init__(self):
        super().__init__()
        self.noise = Noise()

    def forward(self, x):
        return self.noise(self.conv(x))


NET = Base()


def shared():
    return NET


def exported():
    return torch.export.export(nn.Conv2d(3, 3, 1), (torch.rand(1, 3, 32, 32),)).module()


def scripted():
    return nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.script(nn.Conv2d(3, 3, 1)))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Path of a file with networks."""
    (tmp_path / "own.py").write_text(FILE, encoding="utf-8")
    return str(tmp_path / "own.py")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        (
            "Dict",
            InputSizeError,
            r"got a dict of 2 tensors \[\(1, 3, 32, 32\), \(1, 3\)\] \(image, aux\); fix: write a",
        ),
        ("Grey", InputSizeError, r"expected output \(1, 3, 32, 32\), got \(1, 1, 32, 32\); fix: pass another"),
        (
            "Twice",
            InputSizeError,
            r"got \(1, 3, 64, 64\); fix: pass a --task of your own that says so",
        ),
        ("Wide", InputSizeError, r"got \(1, 3, 32, 64\); fix: pass another --input-size"),
        ("Odd", InputSizeError, r"got KeyError: 'no such thing'; fix"),
        ("TwoInputs", InputSizeError, r"got .*missing 1 required positional argument: 'sigma'; fix: write a small"),
        ("Broken", UnsupportedError, r"expected finite values, got nan or infinity"),
        (
            "Noisy",
            UnsupportedError,
            r"expected the same answer each time, got .*: layer noise: operator randn_like; fix",
        ),
        ("Uncopied", UnsupportedError, r"expected a network that can be copied, got TypeError: cannot pickle 'module'"),
    ],
)
def test_networks_that_cannot_be_worked_on_are_told_at_the_start(
    own: str, tmp_path: Path, name: str, error: type[PareError], text: str
) -> None:
    model = f"{own}:{name}"
    net = create_model(model, task="image")
    with pytest.raises(error, match=text):
        check_size(save_network(net, tmp_path / "n.safetensors", model=model, task="image"), (32, 32))


def test_a_size_that_is_only_assumed_says_how_to_say_otherwise(own: str, tmp_path: Path) -> None:
    saved = save_network(
        create_model(f"{own}:Base", task="image"), tmp_path / "n.safetensors", model=f"{own}:Base", task="image"
    )
    with pytest.raises(InputSizeError, match=r"got 65x47; fix: .* to 96x64, or say what it takes: FACTORY\.size = "):
        check_size(saved, (65, 47))


def test_a_network_that_writes_into_its_input_gets_a_copy(own: str, tmp_path: Path) -> None:
    net = create_model(f"{own}:Writing", task="image")
    check_size(save_network(net, tmp_path / "n.safetensors", model=f"{own}:Writing", task="image"), (32, 32))
    image = torch.rand(1, 3, 32, 32)
    given = image.clone()
    assert torch.equal(net(given), net.conv(image - image.mean()))
    assert torch.equal(given, image)


@pytest.mark.parametrize("name", ["OneAlone", "Relative", "Writing"])
def test_pictures_of_a_batch_are_answered_as_they_are_alone(own: str, tmp_path: Path, name: str) -> None:
    net = create_model(f"{own}:{name}", task="image")
    images = torch.rand(3, 3, 32, 32) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1, 1)
    given = images.clone()
    alone = torch.cat([net(image[None]) for image in images])
    for one in (net, copy.deepcopy(net)):
        torch.testing.assert_close(one(images), alone)
        one(images).mean().backward()
    assert torch.equal(images, given)
    assert all(bool(parameter.grad.any()) for parameter in net.parameters())
    saved = save_network(net, tmp_path / "n.safetensors", model=f"{own}:{name}", task="image")
    torch.testing.assert_close(load_network(saved)(images), alone)


def test_a_network_is_adopted_once(own: str) -> None:
    first, second = (create_model(f"{own}:shared", task="image") for _ in range(2))
    assert first is second
    assert [kind.__name__ for kind in type(first).__mro__].count("Base") == 2
    assert len(first._forward_pre_hooks) == 1


def test_a_network_that_keeps_values_of_a_pass_can_be_copied(own: str, tmp_path: Path) -> None:
    net = create_model(f"{own}:Hooked", task="image")
    check_size(save_network(net, tmp_path / "n.safetensors", model=f"{own}:Hooked", task="image"), (32, 32))
    image = torch.rand(2, 3, 32, 32)
    answer = net(image)
    made = copy.deepcopy(net)
    torch.nn.init.zeros_(made.conv.weight)
    assert not torch.equal(made(image), answer), "its hook is its own"
    torch.testing.assert_close(net(image), answer)


def test_scripted_and_exported_modules_are_refused(own: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected modules of Python, got a ScriptModule at layer 1; fix: return what"
    ):
        create_model(f"{own}:scripted", task="image")
    with pytest.raises(UsageError, match=r"expected a module with modes, got Calling eval\(\).*; fix: return what"):
        create_model(f"{own}:exported", task="image")


def test_a_network_of_the_registry_passes(tiny_teacher: Artifact) -> None:
    check_size(tiny_teacher, (64, 64))
