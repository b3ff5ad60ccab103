"""What the screens find before an export, and that FP16 files of a network that overflows are right."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from own_networks import Fitted, save_own
from torch import Tensor, nn
from torch.nn import functional

import models
from export import screens, to_coreml
from export.cli import main
from export.half_rounding import half_error
from export.parity import parity
from export.registry import get_target
from export.screens import LIMIT, OPERATORS, Screens, kept_names, screen, screen_artifact, words_of
from models.artifact import Artifact
from models.errors import UsageError
from models.spec import Precision

Maker = Callable[[str], tuple[nn.Module, tuple[int, int]]]
SIZE = (16, 32)


class Scaled(nn.Module):
    """Multiplies by 300, then cuts in two and squares one half."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Conv2d(2, 2, 1, bias=False)
        self.norm = nn.LayerNorm(8)
        self.last = nn.Identity()
        nn.init.constant_(self.grow.weight, 150.0)

    def forward(self, input: Tensor) -> Tensor:
        first, second = self.grow(input).chunk(2, dim=1)
        return self.last(first * second) / 300**2 + self.norm(second / 300)


def test_peaks_belong_to_the_layer_that_reads_or_writes_them() -> None:
    found = screen(Scaled(), [torch.ones(1, 2, 4, 8)])
    assert found.peaks["grow"] == pytest.approx(300)
    assert found.peaks[""] == pytest.approx(90_000)
    assert found.peaks["norm"] == pytest.approx(1.0)
    assert [(item.layer, item.overflows) for item in found.large] == [("", True)]
    assert found.keep == ("",)
    assert (found.photos, found.size) == (1, (4, 8))


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), nn.GroupNorm(1, 2), nn.Sequential()], ids=["layer", "group", "length"]
)
def test_squares_inside_of_a_norm_count(norm: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, input: Tensor) -> Tensor:
            return self.norm(input) if len(list(self.norm.parameters())) else functional.normalize(input, dim=1)

    x = torch.zeros(1, 2, 4, 8)
    x[..., 0] = 400.0
    found = screen(Net(), [x])
    assert max(found.peaks.values()) >= 300**2
    assert found.large[0].overflows


def test_operators_off_the_fast_path_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.wide = nn.ConvTranspose2d(2, 2, 2, 2), nn.ConvTranspose2d(2, 2, 4, 2, 1)
            self.norm = nn.LayerNorm(8)

        def forward(self, input: Tensor) -> Tensor:
            x = functional.interpolate(self.up(input) + self.wide(input), scale_factor=0.5, mode="bilinear")
            x = functional.grid_sample(x, torch.zeros(1, 4, 8, 2), align_corners=False)
            x = x + functional.interpolate(input, size=(4, 8), mode="nearest")
            x = x + functional.interpolate(input, size=(4, 8), mode="bicubic")
            return torch.roll(self.norm(torch.softmax(x, dim=-1)), 1, dims=2)

    found = {item.operator: item for item in screen(Net(), [torch.rand(1, 2, 4, 8)] * 3).slow}
    resizes = {"bilinear resize", "nearest resize", "bicubic, exact or antialiased resize"}
    assert set(found) == resizes | {
        "transposed convolution",
        "transposed convolution, no overlap",
        "grid sample",
        "attention",
        "LayerNorm",
        "cyclic shift",
    }
    assert {item.count for item in found.values()} == {1}
    assert found["transposed convolution"].layers == ("wide",)
    assert found["transposed convolution, no overlap"].layers == ("up",)
    assert found["transposed convolution, no overlap"].rewrite == "applied"
    assert found["LayerNorm"].layers == ("norm",)
    assert (found["grid sample"].rewrite, found["grid sample"].advice) == OPERATORS["grid sample"]


def test_what_is_computed_from_weights_alone_does_not_count() -> None:
    """An engine holds it as a constant."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.rand(5))

        def forward(self, input: Tensor) -> Tensor:
            return input + torch.roll(self.table[torch.tensor([0, 1, 2, 3])], 1)

    class Moving(Net):
        def forward(self, input: Tensor) -> Tensor:
            return torch.roll(input, 1, dims=2) + self.table[input[..., :1].flatten().long()][:4]

    assert screen(Net(), [torch.rand(1, 2, 4, 4)]).slow == ()
    assert {item.operator for item in screen(Moving(), [torch.rand(1, 2, 4, 4)]).slow} == {"cyclic shift", "gather"}


def test_a_network_says_what_it_does_without(tiny_network: Maker) -> None:
    net, size = tiny_network("hdrnet")
    (found,) = screen(net, [torch.rand(1, 3, *size)]).slow
    assert (found.operator, found.count, found.layers, found.rewrite) == ("grid sample", 1, ("forward",), "applied")
    net, size = tiny_network("swinir")
    (found,) = (item for item in screen(net, [torch.rand(1, 3, *size)]).slow if item.operator == "cyclic shift")
    assert (found.layers, found.rewrite) == (("layers.0.residual_group.blocks.1",), "applied")


def test_tensors_of_a_watched_network_live_no_longer_than_without() -> None:
    """All tensors of some photos at 512x512 are gigabytes."""

    class Chain(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            made: list[weakref.ref[Tensor]] = []
            for layer in self:
                x = layer(x)
                made.append(weakref.ref(x))
                alive.append(sum(tensor() is not None for tensor in made))
            return x

    alive: list[int] = []
    screen(Chain(*(nn.Conv2d(1, 1, 1) for _ in range(8))), [torch.rand(1, 1, 4, 4)])
    assert len(alive) >= 8
    assert max(alive) == 1


def test_a_plain_network_has_nothing_to_say() -> None:
    found = screen(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), [torch.rand(1, 3, 8, 8)])
    assert (found.large, found.slow) == ((), ())
    assert words_of(found.to_json()) == []


def test_the_network_stays_as_it_was() -> None:
    net = Scaled().train()
    screen(net, [torch.ones(1, 2, 4, 8)])
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def grown(name: str, layers: tuple[str, str], branches: tuple[str, ...], maker: Maker, start: Artifact) -> Artifact:
    """Save a tiny network whose residual stream reaches hundreds, as those of trained ones do."""
    net, _ = maker(name)
    first, last = (net.get_submodule(layer) for layer in layers)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter *= 600.0
        last.weight /= 120.0
        for key, parameter in net.named_parameters():
            if key.endswith(branches):
                parameter *= 300.0
    path = start.path.with_name(f"grown_{name}.safetensors")
    return models.save_network(net, path, model=name, task="overlay", model_kwargs=start.model_kwargs)


@pytest.fixture(scope="module")
def overflowing(tiny_network: Maker, tiny_artifact: Callable[[str], Artifact]) -> Artifact:
    """NAFNet, whose LayerNorms square what is above 256."""
    start = tiny_artifact("nafnet_w32")
    return grown("nafnet_w32", ("intro", "ending"), (), tiny_network, start)


@pytest.fixture(scope="module")
def overflowing_restormer(tiny_network: Maker, tiny_artifact: Callable[[str], Artifact]) -> Artifact:
    """Restormer, whose bias-free norms no converter knows, so that their squares stay in the graph."""
    start = tiny_artifact("restormer_lite")
    return grown("restormer_lite", ("patch_embed.proj", "output"), ("project_out.weight",), tiny_network, start)


def test_layer_norms_of_nafnet_are_found(overflowing: Artifact) -> None:
    found = screen_artifact(overflowing, SIZE)
    assert "encoders.0.0.norm1" in found.keep
    assert "encoders.0.0.conv2" not in found.keep
    assert found.peaks["encoders.0.0.norm1"] > 65504
    assert screen_artifact(overflowing, SIZE) is found
    content = json.loads(json.dumps(found.to_json()))
    assert content["fp16_limit"] == LIMIT
    assert content["photos"] == 4
    text = words_of(content)[0]
    assert text.startswith("FP16 range: ")
    assert "keep them in FP32" in text


@pytest.mark.parametrize("target", ["onnx", "tensorrt", "coreml"])
def test_fp16_of_a_network_that_overflows_is_right(target: str, overflowing: Artifact, tmp_path: Path) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row = get_target(target)
    made = row.load().export(overflowing, tmp_path / f"a{row.suffix}", precision=Precision.FP16, input_size=SIZE)
    result = parity(overflowing, made, threads=1)
    assert result.passed
    assert "range" in made.metadata["kept_fp32"].values()
    assert made.metadata["screens"]["large"]


def test_the_screen_makes_the_difference(
    overflowing_restormer: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("coremltools")
    row = get_target("coreml")

    def error(file: str) -> float:
        path = tmp_path / f"{file}{row.suffix}"
        made = row.load().export(overflowing_restormer, path, precision=Precision.FP16, input_size=(16, 24))
        result = parity(overflowing_restormer, made, threads=1)
        assert result.rms is not None
        return result.rms if result.rms == result.rms else float("inf")

    with_screen = error("with")
    monkeypatch.setattr(to_coreml, "screen_artifact", lambda *_: Screens(0, (0, 0), {}, (), ()))
    without = error("without")
    assert with_screen < 0.02
    assert without > 5 * with_screen


class Cancelling(nn.Module):
    """A variance as the mean of squares minus the square of the mean, far from zero; it divides."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x + 10
        mean = functional.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
        variance = functional.avg_pool2d(y * y, 3, 1, 1, count_include_pad=False) - mean * mean
        return self.last((y - mean) / (variance.relu() + 1e-3).sqrt())


@pytest.fixture(params=[Cancelling, Fitted])
def cancelling(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    return save_own(request.param, tmp_path, monkeypatch)


def test_a_network_that_rounding_spoils_is_found(cancelling: Artifact, tiny_student: Artifact) -> None:
    found = screen_artifact(cancelling, (32, 32))
    assert found.layers_only
    assert found.half_error > 0.02
    (text,) = [line for line in words_of(found.to_json()) if line.startswith("FP16 rounding: ")]
    assert "only layers with weights in FP16" in text
    plain = screen_artifact(tiny_student, (32, 32))
    assert not plain.layers_only
    assert plain.half_error < 0.005


def test_rounding_is_that_of_half_precision() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(2)), torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        expected = net(x)
        half = (
            (functional.conv2d(x.half().float(), net[0].weight.half().float(), net[0].bias.half().float()))
            .half()
            .float()
        )
    error = (half.relu().flatten(2) - expected).abs() / (expected.max() - expected.min())
    assert half_error(net, x) == pytest.approx((float(error.max()), float(error.square().mean().sqrt())))
    assert half_error(net, x, layers_only=True) == half_error(net, x)
    assert half_error(net, x, keep=["0"])[0] < half_error(net, x)[0]


@pytest.mark.parametrize("target", ["onnx", "tensorrt", "coreml"])
def test_fp16_of_a_network_that_rounding_spoils_is_right(
    target: str, cancelling: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row = get_target(target)

    def made(name: str) -> Artifact:
        path = tmp_path / f"{name}{row.suffix}"
        return row.load().export(cancelling, path, precision=Precision.FP16, input_size=(32, 32))

    kept = made("with").metadata["kept_fp32"]
    assert "rounding" in kept.values()
    assert not [name for name in kept if name in ("last", "wanted")]
    assert parity(cancelling, made("with"), threads=1).passed
    if target == "onnx":  # ONNX Runtime computes some of these operators in FP32 on a processor, whatever the file says
        return
    monkeypatch.setattr(f"export.to_{target}.screen_artifact", lambda *_: Screens(0, (0, 0), {}, (), ()))
    assert not parity(cancelling, made("without"), threads=1).passed


def test_names_to_keep_are_a_list_or_a_text() -> None:
    assert kept_names({}) == ()
    assert kept_names({"keep_fp32": "a,b.c"}) == kept_names({"keep_fp32": ["a", "b.c"]}) == ("a", "b.c")


def test_core_ml_keeps_what_is_asked_for(tiny_student: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    export = get_target("coreml").load().export
    made = export(
        tiny_student,
        tmp_path / "a.mlpackage",
        precision=Precision.FP16,
        input_size=(32, 32),
        options={"keep_fp32": "stem"},
    )
    assert made.metadata["kept_fp32"] == dict.fromkeys(("stem", "stem.0", "stem.1", "stem.2"), "asked")
    assert parity(tiny_student, made, threads=1).passed
    with pytest.raises(UsageError, match="keep_fp32: expected layers of the network, got stern; fix: use names of"):
        export(
            tiny_student,
            tmp_path / "b.mlpackage",
            precision=Precision.FP16,
            input_size=(32, 32),
            options={"keep_fp32": "stern"},
        )


def test_the_command_line_says_what_was_found(
    overflowing: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    arguments = ["onnx", str(overflowing.path), "--precision", "fp16", "--input-size", "16", "32", "--quiet"]
    assert main([*arguments, "-o", str(tmp_path / "a.onnx")]) == 0
    text = capsys.readouterr().out
    assert "screen: FP16 range: " in text
    assert "screen: norm over channels x" in text
    assert main([*arguments, "-o", str(tmp_path / "b.onnx"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["screens"]["large"][0]["overflows"] in (True, False)
    assert content["screens"]["size"] == [16, 32]


def test_calibration_inputs_are_screened_where_there_are_some(
    quantized_student: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.photos.embedded_photos", lambda *_: pytest.fail("photos were read"))
    assert screens.screen_artifact(quantized_student, (64, 64)).photos == 4
    assert [item.shape for item in screens.probes(quantized_student, (32, 64))] == [(1, 1, 32, 64)] * 2


def test_a_norm_of_nothing_has_no_peak() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.norm(x[:, :0])], 1)

    assert screen(Empty(), [torch.ones(1, 2, 4, 8)]).peaks["norm"] == pytest.approx(1)


ONE_SIZE = """
import torch
from torch import nn


class OneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.place, self.conv = nn.Parameter(torch.rand(1, 3, 160, 160)), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x + self.place)
"""


def test_a_network_of_one_size_is_screened_at_that_size(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ONE_SIZE, encoding="utf-8")
    model = f"{tmp_path / 'own.py'}:OneSize"
    net = models.create_model(model, task="image")
    source = models.artifact.save_network(net, tmp_path / "n.safetensors", model=model, task="image")
    assert screen_artifact(source, (160, 160)).size == (160, 160)
    with pytest.raises(RuntimeError, match="size of tensor"):
        screen_artifact(source, (64, 64))
