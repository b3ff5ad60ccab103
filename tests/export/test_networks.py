"""Every network of the registry through the targets; with PARE_EVERY_EXPORT=1 in every target and precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from calibrated import save_calibrated
from export_cases import Case, export_cases
from tiny_networks import TINY_NETWORKS
from torch import nn

from export.parity import check_parity
from export.registry import get_target, list_targets
from models.artifact import Artifact
from models.registry import get_spec
from models.spec import Precision

Maker = Callable[[str], tuple[nn.Module, tuple[int, int]]]
_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8)


def short_list() -> list[Case]:
    """Return Core ML and one other target of each network, the precisions in turn."""
    others = [target for target in list_targets() if target != "coreml"]
    chosen = []
    for place, name in enumerate(TINY_NETWORKS):
        chosen.append((name, "coreml", _PRECISIONS[place % 3]))
        chosen.append((name, others[(place + place // 3) % 3], _PRECISIONS[(place + 2) % 3]))
    return chosen


CASES = export_cases(TINY_NETWORKS, short_list().__contains__)


@pytest.mark.parametrize(("name", "target", "precision"), CASES, ids=str)
def test_a_network_computes_what_pytorch_computes(
    name: str,
    target: str,
    precision: Precision,
    tiny_network: Maker,
    tiny_artifact: Callable[[str], Artifact],
    tmp_path: Path,
) -> None:
    row = get_target(target)
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    source, size = tiny_artifact(name), tiny_network(name)[1]
    start = save_calibrated(source, tmp_path, size=size, photos=2) if precision is Precision.INT8 else source
    made = row.load().export(start, tmp_path / f"made{row.suffix}", precision=precision, input_size=size)
    result = check_parity(source, made, threads=1)
    assert result.passed
    assert result.span > 1e-3


@pytest.mark.parametrize("name", ["nafnet_w32", "swinir", "hdrnet"])
def test_open_sizes_compute_what_pytorch_computes(
    name: str, tiny_artifact: Callable[[str], Artifact], tmp_path: Path
) -> None:
    from export.golden import random_photo

    source = tiny_artifact(name)
    made = get_target("onnx").load().export(source, tmp_path / "open.onnx", input_size=(32, 48), dynamic=True)
    step = get_spec(name).size.multiple_of
    for size in ((48, 32), (64, 16 * step)):
        assert check_parity(source, made, [random_photo(size)], threads=1).passed


def test_the_short_list_has_every_target_and_precision() -> None:
    chosen = short_list()
    assert set(chosen) <= set(CASES)
    assert {target for _, target, _ in chosen} == set(list_targets())
    assert {(target, precision) for _, target, precision in chosen if target in ("coreml", "tensorrt")} == {
        (target, precision) for target in ("coreml", "tensorrt") for precision in _PRECISIONS
    }
