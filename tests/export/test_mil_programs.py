"""Converted programs against PyTorch: one conversion covers many operations; loading, rounding and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.coreml_int8 import quantized_network
from export.coreml_quirks import repaired_converter
from export.mil.evaluate import Evaluator
from export.mil.program import Block, MilModel, Operation, Output, Ref, load_model
from export.mil.proto import quiet_coremltools
from export.quantization import Quantization
from export.to_coreml import trace
from models.artifact import save_tensors
from models.errors import CheckpointError, MissingExtraError, UnsupportedError

pytest.importorskip("coremltools")


def convert(net: nn.Module, folder: Path, *samples: Tensor, half: bool = False) -> Path:
    """Convert a module with several outputs (y0, y1, ...) and save it."""
    import coremltools as ct

    count = len(net.eval()(*samples))
    with quiet_coremltools(), repaired_converter():
        model = ct.convert(
            trace(net, samples),
            inputs=[ct.TensorType(name=f"x{i}", shape=x.shape, dtype=np.float32) for i, x in enumerate(samples)],
            outputs=[ct.TensorType(name=f"y{i}", dtype=np.float32) for i in range(count)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            skip_model_load=True,
        )
        path = folder / "many.mlpackage"
        model.save(str(path))
    return path


class Many(nn.Module):
    """Layers that networks from image to image use, each an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(4, 6, 3, padding=1),
                nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(2, 1)),
                nn.Conv2d(4, 8, 3, groups=4, padding="same"),
                nn.Conv2d(4, 4, 4, stride=2, padding=1, groups=2, bias=False),
                nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
                nn.ConvTranspose2d(4, 6, 2, stride=2),
                nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
                nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=2),
                nn.ConvTranspose2d(4, 2, 3, stride=1, padding=1, dilation=1, bias=False),
            ]
        )
        self.pools = nn.ModuleList(
            [
                nn.MaxPool2d(3, 2, 1),
                nn.MaxPool2d(3, 2, ceil_mode=True),
                nn.AvgPool2d(3, 2, 1),
                nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                nn.AvgPool2d(2, ceil_mode=False),
                nn.AdaptiveAvgPool2d(1),
            ]
        )
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.LayerNorm([4, 12, 10])]
        )
        self.prelu, self.attend = nn.PReLU(4), nn.MultiheadAttention(4, 2, batch_first=True)

        self.lstm, self.gru = nn.LSTM(4, 3, 2, bidirectional=True), nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = [conv(x) for conv in self.convs] + [pool(x) for pool in self.pools] + [norm(x) for norm in self.norms]
        y += [F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=flag) for flag in (False, True)]
        y += [F.interpolate(x, size=(7, 17), mode="bilinear", align_corners=flag) for flag in (False, True)]
        y += [F.interpolate(x, scale_factor=3.0, mode="nearest"), F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2)]
        y += [F.pad(x, (1, 2, 3, 0), mode=mode) for mode in ("constant", "reflect", "replicate")]
        y += [self.prelu(x), F.leaky_relu(x, 0.2), F.gelu(x), F.silu(x), F.hardswish(x), F.softplus(x), F.elu(x)]
        y += [
            x.clamp(-0.5, 0.7),
            x.clamp_min(0),
            x.clamp_max(1),
            x // 1 * 2,
            x % 1,
            torch.where(x > 0, x, 2 * x),
            x.abs() ** 0.4,
            torch.sqrt(x * x + 1),
        ]
        a, b = x.chunk(2, dim=1)
        y += [a * b, torch.cat([a, b * 2], 1), x[:, 1:, ::2, -5:], x.flip(3), x.roll((1, 2), (2, 3))]
        y += [x.mean((2, 3), keepdim=True), x.var(1, keepdim=True), x.amax(1), x.sum(dim=-1)]
        tokens = x.flatten(2).transpose(1, 2)
        y += [self.attend(tokens, tokens, tokens, need_weights=False)[0], tokens.softmax(1)]
        hidden, (last, cell) = self.lstm(tokens[:, :14].reshape(7, 2, 4))
        y += [hidden, last * 2, cell * 2, self.gru(tokens[:, :5])[0]]
        y += [F.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])]
        y += [x.reshape(1, 4, 3, 4, 5, 2).permute(0, 2, 4, 3, 5, 1).reshape(15, 8, 4)]
        y += [torch.einsum("nchw,cd->ndhw", x, x[0, :, :4, 0])]
        grid = torch.tanh(x[:, :2]).permute(0, 2, 3, 1) * 1.3
        y += [F.grid_sample(x, grid, padding_mode=mode, align_corners=False) for mode in ("zeros", "border")]
        y += [F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)]
        y += [F.grid_sample(x, grid, mode="nearest", align_corners=True)]
        return tuple(y)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Many, Path, Tensor]:
    torch.manual_seed(0)
    net = Many().eval()
    net.norms[0].running_var.uniform_(0.5, 2)
    x = torch.randn(1, 4, 12, 10)
    with torch.no_grad():
        return net, convert(net, tmp_path_factory.mktemp("many"), x), x


def test_a_converted_program_computes_what_torch_computes(many: tuple[Many, Path, Tensor]) -> None:
    net, path, x = many
    results = Evaluator(load_model(path))({"x0": x})
    with torch.no_grad():
        expected = net(x)
    assert len(results) == len(expected)
    for index, reference in enumerate(expected):
        got = results[f"y{index}"]
        assert got.shape == reference.shape, f"output {index}"
        error = float((got - reference).abs().max())
        assert error < 2e-5 * max(1.0, float(reference.abs().max())), f"output {index}: {error}"


def test_a_batch_of_one_is_loaded_with_its_contract(many: tuple[Many, Path, Tensor]) -> None:
    model = load_model(many[1])
    assert model.inputs[0].shape == (1, 4, 12, 10)
    assert model.inputs[0].accepts((1, 4, 12, 10))
    assert not model.inputs[0].accepts((1, 4, 12, 11))
    counts = model.operation_counts()
    assert counts["conv_transpose"] == 4
    assert "const" not in counts


def _program(operations: list[Operation], outputs: tuple[str, ...], dtype: torch.dtype = torch.float16) -> MilModel:
    return MilModel((), (), {"x": dtype}, Block(("x",), tuple(operations), outputs))


def test_fp16_rounds_and_overflows_after_each_operation() -> None:
    half = torch.float16
    small = Operation("const", "c", {"val": (torch.tensor(1e-4, dtype=half),)}, (Output("c", half),))
    add = Operation("add", "a", {"x": (Ref("x"),), "y": (Ref("c"),)}, (Output("a", half),))
    square = Operation("mul", "m", {"x": (Ref("x"),), "y": (Ref("x"),)}, (Output("m", half),))
    back = Operation("sub", "b", {"x": (Ref("a"),), "y": (Ref("x"),)}, (Output("b", half),))
    seen: list[str] = []
    evaluate = Evaluator(_program([small, add, square, back], ("a", "m", "b")))
    results = evaluate({"x": torch.tensor([1.0, 300.0])}, observe=lambda op, out, value: seen.append(out.name))
    assert results["a"].tolist() == [1.0, 300.0]  # 1.0001 is not an FP16 number
    assert results["b"].tolist() == [0.0, 0.0]
    assert results["m"].tolist() == [1.0, float("inf")]  # 90000 is above 65504
    assert seen == ["a", "m", "b"]


def test_control_flow_runs_the_chosen_block() -> None:
    kind = torch.float32

    def op(name: str, function: str, x: str, y: Any) -> Operation:
        return Operation(function, name, {"x": (Ref(x),), "y": (y,)}, (Output(name, kind),))

    double = Block((), (op("d", "mul", "x", torch.tensor(2.0)),), ("d",))
    negate = Block((), (op("n", "mul", "x", torch.tensor(-1.0)),), ("n",))
    test = op("t", "greater", "x", torch.tensor(0.0))
    chosen = Operation("cond", "c", {"pred": (Ref("t"),)}, (Output("c", kind),), (double, negate))
    small = Block(("v",), (op("s", "less", "v", torch.tensor(100.0)),), ("s",))
    grow = Block(("v",), (op("g", "mul", "v", torch.tensor(3.0)),), ("g",))
    loop = Operation("while_loop", "w", {"loop_vars": (Ref("c"),)}, (Output("w", kind),), (small, grow))
    evaluate = Evaluator(_program([test, chosen, loop], ("c", "w"), kind))
    assert evaluate({"x": torch.tensor(4.0)})["w"].item() == 216.0  # 8, 24, 72, 216
    assert evaluate({"x": torch.tensor(-5.0)})["c"].item() == 5.0


def test_an_unknown_operation_is_named() -> None:
    strange = Operation("fold_space", "f", {"x": (Ref("x"),)}, (Output("f", torch.float16),))
    with pytest.raises(UnsupportedError, match=r"MIL operation: expected one of the \d+ .*got fold_space; fix: add"):
        Evaluator(_program([strange], ("f",)))


def test_damaged_packages_are_refused(many: tuple[Many, Path, Tensor], tmp_path: Path) -> None:
    import shutil

    with pytest.raises(CheckpointError, match=r"expected an .mlpackage folder, got no readable Manifest.json"):
        load_model(tmp_path)
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(many[1], broken)
    weights = next(broken.rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="truncated or altered weight file"):
        load_model(broken)
    spec = next(broken.rglob("model.mlmodel"))
    spec.write_bytes(spec.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="unreadable specification"):
        load_model(broken)


def test_a_missing_extra_is_named(many: tuple[Many, Path, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(
        MissingExtraError, match=r"package 'coremltools', got not installed; fix: pip install 'pare\[coreml\]'"
    ):
        load_model(many[1])


class Weighted(nn.Module):
    """A layer of each kind with a weight, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up, self.grouped = nn.ConvTranspose2d(6, 9, 2, stride=2), nn.ConvTranspose2d(9, 6, 3, groups=3)
        self.mix, self.line = nn.Linear(6, 4), nn.Conv1d(4, 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.grouped(torch.relu(self.up(self.deep(torch.relu(self.conv(x))))))
        y = self.mix(y.permute(0, 2, 3, 1)).flatten(1, 2)
        return (self.line(y.transpose(1, 2)),)


def test_int8_levels_are_those_of_torch(tmp_path: Path) -> None:
    save_tensors({"input": torch.randn(8, 2, 8, 8)}, tmp_path / "calibration.safetensors")
    record = Quantization(calibration=tmp_path / "calibration.safetensors", samples=8)
    net = quantized_network(Weighted().eval(), record)
    x = torch.randn(1, 2, 8, 8)
    model = load_model(convert(net, tmp_path, x))
    assert model.operation_counts()["constexpr_affine_dequantize"] == 6
    with torch.no_grad():
        expected = net(x)[0]
    off = (Evaluator(model)({"x0": x})["y0"] - expected).abs() > 1e-5
    assert float(off.float().mean()) < 0.02  # a value on the edge between two levels may fall to either side


def test_coremltools_stays_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x * 2,)

    convert(One(), tmp_path, torch.ones(1, 1, 4, 4))
    assert capfd.readouterr() == ("", "")
