"""Networks of other people: what the ONNX exporter stumbles over is avoided, or named with its layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_networks import check_in_targets, save_own
from torch import Tensor, nn

from export import open_runner, to_onnx, to_openvino
from export.refusal import layer_of, plain_functions, renamed, say_refusal
from models.artifact import Artifact, save_network
from models.errors import ExportError
from models.spec import Precision

FILE = """
import torch
from torch import nn


class Bounds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x / self.conv(x).clamp(1e-4, 1)


class Singular(nn.Module):
    def forward(self, x):
        return x + torch.linalg.svdvals(x).mean()


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 3, 1), Singular()

    def forward(self, x):
        return self.odd(self.stem(x))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Identity()

    def forward(self, x):
        return x * 2 if self.gate(x).mean() > 0.3 else x


class Warp(nn.Module):
    def forward(self, x):
        grid = torch.stack([x[:, 0], x[:, 1], x[:, 2]], -1)[:, None]
        volume = torch.stack([x, x], 2)
        return nn.functional.grid_sample(volume, grid, padding_mode="reflection", align_corners=False)[:, :, 0]


class Warped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.warp = nn.Conv2d(3, 3, 1), Warp()

    def forward(self, x):
        return self.warp(self.stem(x))


class Unpooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.back = nn.MaxPool2d(4, 2, 1, return_indices=True), nn.MaxUnpool2d(4, 2, 1)  # windows overlap

    def forward(self, x):
        return self.back(*self.pool(x))


class Sized(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[-1] % 8 == 0 else x
"""


@pytest.fixture
def export(tmp_path: Path) -> Callable[[str], Path]:
    """Export a network of the file to ONNX."""
    (tmp_path / "own.py").write_text(FILE, encoding="utf-8")

    def run(name: str) -> Path:
        from models.registry import create_model

        model = f"{tmp_path / 'own.py'}:{name}"
        artifact = save_network(
            create_model(model, task="image"), tmp_path / "n.safetensors", model=model, task="image"
        )
        return to_onnx.export(artifact, tmp_path / "n.onnx", input_size=(32, 32)).path

    return run


def test_whole_numbers_as_bounds_of_a_clamp(export: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from models.artifact import load_network

    image = torch.rand(1, 3, 32, 32)
    with open_runner(export("Bounds")) as runner:
        got = runner.infer({"input": image.numpy()})["output"]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(got), load_network(tmp_path / "n.safetensors")(image), rtol=1e-4)


def test_core_ml_does_not_bake_in_one_answer_of_a_branch(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from export import to_coreml
    from models.registry import create_model

    (tmp_path / "own.py").write_text(FILE, encoding="utf-8")

    def save(name: str) -> Artifact:
        model = f"{tmp_path / 'own.py'}:{name}"
        net = create_model(model, task="image")
        return save_network(net, tmp_path / f"{name}.safetensors", model=model, task="image")

    def export(name: str) -> Artifact:
        how = {"precision": Precision.FP32, "input_size": (32, 32)}
        return to_coreml.export(save(name), tmp_path / f"{name}.mlpackage", **how)

    with pytest.raises(ExportError, match=r"layer the network itself: .*Python code decides by the values of a tensor"):
        export("Branch")
    with pytest.raises(ExportError, match=r"got ValueError: layer warp: operator grid_sampler: "):
        export("Warped")
    with pytest.raises(ExportError, match=r"got TypeError: layer back: "):
        export("Unpooled")
    assert export("Sized").path.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Deep", r"got layer odd: operator _linalg_svd: No ONNX function found"),
        ("Branch", r"got layer the network itself: operator _local_scalar_dense: Python code decides by the values"),
    ],
)
def test_the_layer_and_the_operator_are_named(export: Callable[[str], Path], name: str, text: str) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match=text):
        export(name)


def test_the_first_module_that_calls_an_operator() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.GELU()), nn.GELU())
    sample = (torch.rand(1, 3, 4, 4),)
    assert layer_of(net, sample, "gelu") == "1.1"
    assert layer_of(net, sample, "svd") is None
    assert layer_of(nn.Sequential(nn.Identity(), nn.Flatten(1)), sample, "flatten") == "1"  # dispatched as a view
    assert all(not module._forward_hooks for module in net.modules())


def test_an_error_without_an_operator_is_told_in_a_line() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    sample = (torch.rand(1),)
    assert say_refusal(RuntimeError("first\nsecond"), Odd(), sample) == "first"
    assert say_refusal(RuntimeError("torch.ops.aten.gelu.default"), Odd(), sample).startswith("operator gelu:")
    unknown = NotImplementedError("PyTorch convert function for op 'gelu' not implemented.")
    net = nn.Sequential(nn.ReLU(), nn.GELU())
    assert say_refusal(unknown, net, sample) == f"layer 1: operator gelu: {unknown}"


OPENVINO = """Check 'false' failed at src/unconverted_ops_report.cpp:151:
Model wasn't fully converted. Failed operations detailed log:
-- Conv-18 with a message:
While validating ONNX node '<Node(Conv): circ>': Check 'data.rank().is_static()' failed at src/conv.cpp:38:
The input data tensor's rank has to be known (static)

-- Pad-18 with a message:
While validating ONNX node '<Node(Pad): pad_13>': Exception from src/frontends/onnx/frontend/src/op/pad.cpp:32:
Unsupported padding mode: [wrap]

Summary:
-- Conversion is failed for: Conv-18, Pad-18
"""


def test_the_node_that_openvino_refused_first_is_named() -> None:
    assert to_openvino.say_report(OPENVINO) == "operator Pad of node pad_13: Unsupported padding mode: [wrap]"
    assert to_openvino.say_report("no such file\nat all") == "no such file"


def test_functions_with_a_backward_of_their_own_are_traced_as_what_they_compute() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
            ctx.save_for_backward(x)
            ctx.factor = factor
            return x * factor

    def run(x: Tensor) -> Tensor:
        answer: Tensor = Twice.apply(x, 2.0)
        return answer

    x = torch.rand(3)
    with plain_functions(), torch.no_grad():
        traced = torch.jit.trace(run, (x,))
    assert "PythonOp" not in str(traced.graph)
    assert torch.equal(traced(x), x * 2)
    assert torch.equal(run(x), x * 2)


@torch.jit.script
def swish(x: Tensor) -> Tensor:
    """Scripted, as some networks have their activation."""
    return x * torch.sigmoid(x)


def test_scripted_functions_are_traced_as_what_they_compute() -> None:
    x, loaded = torch.randn(3), torch.jit.trace(lambda x: x + 1, torch.rand(3))
    with plain_functions(), torch.no_grad():
        traced = torch.jit.trace(lambda x: loaded(swish(x)), (x,))
    assert "swish" not in str(traced.graph)
    assert torch.equal(traced(x), swish(x) + 1)


class Named(nn.Module):
    """A network whose parts are called as what a graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Conv2d(3, 3, 3, padding=1)
        self.inner = nn.Module()
        self.inner.code = nn.Parameter(torch.rand(3))
        self.code = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.register_buffer("meta", torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.graph(x) * self.code + self.meta + self.inner.code[:, None, None]
        return y


def test_names_of_a_graph_are_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_in_targets(save_own(Named, tmp_path, monkeypatch), tmp_path)
    net = renamed(Named())
    assert sorted(net.state_dict()) == ["code_", "graph_.bias", "graph_.weight", "inner.code_", "meta_"]
    assert net.code is net.get_parameter("code_")
