"""The networks of colour balance through every target and precision, at tiny widths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from calibrated import calibration_record
from export_cases import Case, export_cases

from export.golden import random_photo
from export.parity import check_parity
from export.registry import get_target
from models.artifact import Artifact, load_network, save_network
from models.registry import create_model
from models.spec import Precision

SIZE = (32, 32)
KWARGS: dict[str, dict[str, Any]] = {
    "balance_lut": {"widths": [8, 16], "basis": 8, "nodes": 4, "thumbnail": 16},
    "latent_balancer": {"block_out_channels": [8, 8], "norm_num_groups": 2, "width": 8, "depth": 1, "heads": 2},
}


def usual(case: Case) -> bool:
    """Of the larger network INT8 everywhere and FP16 in Core ML; its FP32 in ONNX Runtime is the last test's."""
    name, target, kind = case
    return name == "balance_lut" or kind is Precision.INT8 or (target, kind) == ("coreml", Precision.FP16)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Artifact]:
    """Both networks, moved off the identity, in float and quantized (True)."""
    folder = tmp_path_factory.mktemp("balance")
    metadata = calibration_record(folder, torch.cat([random_photo(SIZE, seed=seed) for seed in range(8)]))
    made = {}
    for name, kwargs in KWARGS.items():
        torch.manual_seed(4)
        net: Any = create_model(name, **kwargs)
        last = net.tables if name == "balance_lut" else net.balancer.conv_out
        torch.nn.init.normal_(last.weight, std=0.05)
        how: dict[str, Any] = {"model": name, "task": "balance", "model_kwargs": kwargs}
        plain = save_network(net, folder / f"{name}.safetensors", **how)
        how.update(metadata=metadata, precision=Precision.INT8, parent=plain)
        int8 = save_network(net, folder / f"{name}-int8.safetensors", **how)
        made.update({(name, False): plain, (name, True): int8})
    return made


@pytest.mark.parametrize(("name", "target", "precision"), export_cases(KWARGS, usual), ids=str)
def test_they_convert_and_pass_parity(
    name: str, target: str, precision: Precision, sources: dict[tuple[str, bool], Artifact], tmp_path: Path
) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row, source = get_target(target), sources[name, precision is Precision.INT8]
    made = row.load().export(source, tmp_path / f"net{row.suffix}", precision=precision, input_size=SIZE)
    result = check_parity(sources[name, False], made)
    assert result.passed is not False


def test_the_fit_is_exact_and_keeps_no_constant_of_the_size_of_the_photo(
    sources: dict[tuple[str, bool], Artifact], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    source = sources["latent_balancer", False]
    made = get_target("onnx").load().export(source, tmp_path / "net.onnx", input_size=(64, 64))
    assert check_parity(source, made).passed
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in onnx.load(made.path).graph.initializer}
    assert max(sizes.values()) <= max(weight.numel() for weight in load_network(source).parameters())
