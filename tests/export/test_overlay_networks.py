"""The overlay networks of this project through every target and precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibrated import calibration_record

from export.golden import random_photo
from export.parity import check_parity
from export.registry import TARGETS, get_target, list_targets
from models.artifact import Artifact, save_network
from models.controls import pack
from models.registry import create_model
from models.spec import Precision

SIZE = (32, 32)
KWARGS = {"widths": [8, 16], "depths": [1, 1]}
CASES = [(name, precision) for name in list_targets() for precision in TARGETS[name].precisions]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Artifact]:
    """``film_unet`` with random film and head, in float, and quantized (True)."""
    folder = tmp_path_factory.mktemp("film")
    torch.manual_seed(4)
    net = create_model("film_unet", **KWARGS)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "film" in name or "head" in name:
                value.normal_(0, 0.3)
    how = {"model": "film_unet", "task": "overlay_variants", "model_kwargs": KWARGS}
    plain = save_network(net, folder / "film.safetensors", **how)
    inputs = pack(torch.cat([random_photo(SIZE, seed=seed) for seed in range(8)]), torch.tensor([[0.0], [1.0]] * 4))
    metadata = calibration_record(folder, inputs)
    int8 = folder / "int8.safetensors"
    return {
        False: plain,
        True: save_network(net, int8, precision=Precision.INT8, parent=plain, metadata=metadata, **how),
    }


@pytest.mark.parametrize(("target", "precision"), CASES, ids=[f"{name}-{precision}" for name, precision in CASES])
def test_film_converts_and_passes_parity(
    target: str, precision: Precision, film: dict[bool, Artifact], tmp_path: Path
) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row, source = get_target(target), film[precision is Precision.INT8]
    made = row.load().export(source, tmp_path / f"film{row.suffix}", precision=precision, input_size=SIZE)
    result = check_parity(film[False], made)
    assert result.passed is not False
