"""Transposed convolutions as a convolution and a pixel shuffle: the same numbers, the same names, integers in INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.parity import parity
from export.quantization import save_calibrated
from export.registry import get_target
from export.to_onnx import float_onnx
from export.transposed import ShuffledConv, shuffle_transposed, shuffled_layers
from models.artifact import Artifact, save_network, save_tensors
from models.registry import create_model
from models.spec import Precision


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [2, 3])
def test_the_numbers_and_names_are_the_same(scale: int, bias: bool) -> None:
    up = nn.ConvTranspose2d(5, 4, scale, scale, bias=bias)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ModuleDict({"up": up})["up"], nn.ReLU())
    x = torch.randn(2, 3, 7, 9)
    wanted = net(x).detach()
    written = shuffle_transposed(net)
    assert isinstance(written[1], ShuffledConv)
    torch.testing.assert_close(written(x), wanted, rtol=1e-5, atol=1e-5)


def test_a_size_that_is_asked_for_is_given() -> None:
    up, x = nn.ConvTranspose2d(3, 2, 2, 2), torch.randn(1, 3, 5, 6)
    for size in ((10, 12), (11, 13), (1, 2, 11, 12)):
        torch.testing.assert_close(ShuffledConv(up)(x, output_size=size), up(x, output_size=size))


def test_what_overlaps_or_is_not_plain_stays() -> None:
    class Own(nn.ConvTranspose2d):
        def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
            return super().forward(input, output_size) + 1

    hooked = nn.ConvTranspose2d(4, 4, 2, 2)
    hooked.register_forward_hook(lambda *_: None)
    normed = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(4, 4, 2, 2))
    others = [
        nn.ConvTranspose2d(4, 4, 4, 2, 1),
        nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
        nn.ConvTranspose2d(4, 4, 2, 3),
        nn.ConvTranspose2d(4, 4, (1, 2), (1, 2)),
        nn.ConvTranspose2d(4, 4, 2, 2, padding=1),
        nn.ConvTranspose2d(4, 4, 2, 2, output_padding=1),
        nn.ConvTranspose2d(4, 4, 2, 2, dilation=2),
        nn.ConvTranspose2d(4, 4, 1),
        Own(4, 4, 2, 2),
        hooked,
        normed,
    ]
    assert shuffled_layers(nn.Sequential(*others)) == []
    assert [name for name, _ in shuffled_layers(nn.Sequential(*others, nn.ConvTranspose2d(4, 4, 2, 2)))] == ["11"]


def test_a_layer_of_two_names_is_rewritten_under_both() -> None:
    up = nn.ConvTranspose2d(4, 4, 2, 2)
    net = nn.Sequential(up, up)
    x = torch.randn(1, 4, 3, 3)
    wanted = net(x).detach()
    torch.testing.assert_close(shuffle_transposed(net)(x), wanted, rtol=1e-5, atol=1e-5)
    assert shuffled_layers(net) == []


FACTORY = """
from torch import nn
def make(): return nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, 2, bias={bias}))
"""
SIZE = (32, 32)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    """Half the size and back."""
    (tmp_path / "net.py").write_text(FACTORY.format(bias=request.param))
    name = f"{tmp_path / 'net.py'}:make"
    return save_network(create_model(name, task="image"), tmp_path / "net.safetensors", model=name, task="image")


def test_the_graph_has_no_transposed_convolution(network: Artifact) -> None:
    pytest.importorskip("onnx")
    model = float_onnx(network, input_size=SIZE)
    kinds = [node.op_type for node in model.graph.node]
    assert "ConvTranspose" not in kinds
    assert kinds.count("DepthToSpace") == 1
    assert [node.name for node in model.graph.node if node.op_type == "Conv"] == ["0", "2"]


@pytest.mark.parametrize("target", ["onnx", "openvino", "coreml"])
def test_int8_takes_one_correction_a_channel(target: str, network: Artifact, tmp_path: Path) -> None:
    """Records are of the layers as they were: a channel's correction goes to all places of its square."""
    pytest.importorskip({"onnx": "onnxruntime", "coreml": "coremltools"}.get(target, target))
    row, x = get_target(target).load(), torch.rand(4, 3, *SIZE)
    suffix = get_target(target).suffix
    shift = torch.tensor([0.06, -0.04, 0.02])
    answers = {}
    for name, correction in (("plain", shift * 0), ("shifted", shift)):
        (tmp_path / name).mkdir()
        record = save_calibrated(network, tmp_path / name, x)
        file = next((tmp_path / name).glob("*calib*"))
        save_tensors({"input": x, "correction.2": correction}, file)
        content = {**record.metadata["quantization"], "sha256": ""}
        given = Artifact.create(
            record.path,
            format="torch",
            model=record.model,
            task="image",
            precision=Precision.INT8,
            metadata={"quantization": content},
        )
        made = row.export(given, tmp_path / f"{name}{suffix}", precision=Precision.INT8, input_size=SIZE)
        with row.open_runner(made.path, threads=1) as runner:
            answers[name] = runner.infer({"input": x[:1].numpy()})["output"]
    change = answers["shifted"] - answers["plain"]
    for top, left in ((0, 0), (0, 1), (1, 0), (1, 1)):
        places = change[0, :, top::2, left::2].reshape(3, -1)
        assert np.median(places, axis=1) == pytest.approx(shift.numpy(), abs=0.008)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_exported_network_computes_the_same(target: str, network: Artifact, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    row = get_target(target)
    made = row.load().export(network, tmp_path / f"a{row.suffix}", precision=Precision.FP32, input_size=SIZE)
    assert parity(network, made, threads=1).passed
    (item,) = made.metadata["screens"]["slow"]
    assert (item["operator"], item["rewrite"]) == ("transposed convolution, no overlap", "applied")
