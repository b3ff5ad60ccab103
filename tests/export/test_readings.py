"""What Python code reads out of tensors: numbers for what is constant, tensors for what depends on the input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_networks import save_own
from torch import Tensor, nn
from torch.nn import functional as F

from export.golden import random_photo
from export.parity import parity
from export.readings import readings_of
from export.registry import get_target
from models.artifact import Artifact
from models.errors import ExportError
from models.spec import Precision


class Reads(nn.Module):
    """A block that ``read`` of a subclass gives its arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.level = nn.Parameter(torch.tensor([0.7]))
        self.register_buffer("order", torch.tensor([2, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.conv(x))

    def read(self, x: Tensor) -> Tensor:
        raise RuntimeError("give it")


class Constants(Reads):
    def read(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, i : i + 1] for i in self.order.tolist()], 1) ** 2
        if self.level > 0.5 and x.shape[-1] % 2 == 0:
            x = torch.roll(x, int(self.order[0]), 2)
        return (x + 0.1) ** self.level.item() + float(self.level) * len(x)


class Numbers(Reads):
    def read(self, x: Tensor) -> Tensor:
        gains = x.mean((0, 2, 3)).tolist()
        return (x**2 + 0.1) ** (0.5 + x.mean().item() ** 2) + torch.stack([x[:, i] * gains[i] for i in range(3)], 1)


class Asking(Reads):
    """Looks at values where nothing is captured, as kornia does, and goes another way where it is."""

    def read(self, x: Tensor) -> Tensor:
        if not (torch.jit.is_tracing() or torch.compiler.is_exporting()):
            x = x if float(x.max()) < 100 else x.clamp_max(100)
        return x**2 * (self.level.item() + float(self.order[1]))


class Sizes(Reads):
    """Gives sizes, axes and steps as tensors, as CompressAI does; what it was given goes back in place."""

    def read(self, x: Tensor) -> Tensor:
        axes, back, two = torch.tensor([0, 2, 3, 1]), torch.tensor([0, 3, 1, 2]), self.order[0]
        x = torch.roll(x.permute(*axes) * 2, two, 1).permute(*back)
        x = torch.cat([*x.split(two * 8, 3)][::-1], 3) + x.narrow(2, two, 1) + x.unfold(2, two, two).mean()
        return F.pixel_shuffle(F.pixel_unshuffle(x, two), two) * torch.linspace(0, 1, two * 16)


class Expert(Reads):
    def read(self, x: Tensor) -> Tensor:
        chosen = int(x.mean() * 100) % 3
        return x * [1, 2, 3][chosen]


class Branch(Reads):
    def read(self, x: Tensor) -> Tensor:
        marks = torch.zeros_like(x)
        marks[:, 1] = (x[:, 0] > 0).float()
        return x * 2 if marks.sum() > 5 else x


class Sum(Reads):
    def read(self, x: Tensor) -> Tensor:
        return F.relu(x) * float(x.detach().numpy().mean())


class Stored(Reads):
    """Computes a weight from others at each call, as SPAN does."""

    def __init__(self) -> None:
        super().__init__()
        self.joint = nn.Conv2d(3, 3, 1)

    def read(self, x: Tensor) -> Tensor:
        self.joint.weight.data = (self.weights(x)[:, :, None, None] * 2).contiguous()
        return self.joint(x)

    def weights(self, x: Tensor) -> Tensor:
        return self.conv.weight.data[:, :, 0, 0].clone()


class Drawn(Stored):
    def weights(self, x: Tensor) -> Tensor:
        return torch.diag(x.mean((0, 2, 3)))


def save(net: type[nn.Module], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """Save a network of the class ``net`` as one of a user's own."""
    return save_own(lambda: nn.Sequential(nn.Identity(), net()), folder, monkeypatch)


PHOTOS = [random_photo((32, 32), seed=seed) * gain for seed, gain in ((0, 1.0), (1, 0.1))]


@pytest.mark.parametrize("target", ["onnx", "coreml"])
@pytest.mark.parametrize("net", [Constants, Numbers, Stored, Asking, Sizes])
def test_constants_and_numbers_that_only_enter_arithmetic_convert(
    net: type[nn.Module], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"coreml": "coremltools"}.get(target, target))
    row, source = get_target(target), save(net, tmp_path, monkeypatch)
    made = row.load().export(source, tmp_path / f"n{row.suffix}", precision=Precision.FP32, input_size=(32, 32))
    assert parity(source, made, PHOTOS, threads=1).passed


@pytest.mark.parametrize(("net", "function"), [(Expert, "int"), (Branch, "bool"), (Sum, "numpy")])
def test_core_ml_does_not_hold_one_answer_for_ever(
    net: type[nn.Module], function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("coremltools")
    source = save(net, tmp_path, monkeypatch)
    with pytest.raises(ExportError, match=rf"layer 1: .* decides by the values of a tensor \({function}\); fix: "):
        get_target("coreml").load().export(
            source, tmp_path / "n.mlpackage", precision=Precision.FP32, input_size=(32, 32)
        )


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_weights_that_the_input_decides_are_refused(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"coreml": "coremltools"}.get(target, target))
    row, source = get_target(target), save(Drawn, tmp_path, monkeypatch)
    with pytest.raises(ExportError, match=r"layer 1: .* decides by the values of a tensor \(data\); fix: "):
        row.load().export(source, tmp_path / f"n{row.suffix}", precision=Precision.FP32, input_size=(32, 32))
    assert isinstance(torch.ones(2).data, Tensor)
    assert "data" not in vars(Tensor)


def test_what_the_input_has_a_part_in() -> None:
    found, stored, gradients = readings_of(nn.Sequential(Constants(), Numbers(), Branch()), [torch.rand(1, 3, 8, 8)])
    told = [(item.layer, item.function, item.dependent, item.late) for item in found]
    assert told == [
        *[("0", "item", False, False)] * 3,
        ("0", "__bool__", False, False),
        ("0", "__int__", False, False),
        ("0", "item", False, False),
        ("0", "__float__", False, False),
        *[("1", "item", True, True)] * 4,
        ("2", "__bool__", True, False),
    ]
    assert not stored
    assert not gradients
    assert [item.value for item in found[:3]] == [2, 1, 0]


def test_sizes_are_read_at_their_places() -> None:
    found, *_ = readings_of(Sizes(), [torch.rand(1, 3, 32, 32)])
    assert [(item.function, item.value) for item in found[:2]] == [
        ("permute", {1: 0, 2: 2, 3: 3, 4: 1}),
        ("roll", {1: 2}),
    ]
