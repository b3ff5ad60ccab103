"""AdaFM and FTN through every target, pruning and INT8 simulation: the level stays adjustable and right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated import calibration_record

from benchmarks.levels import fixed_level
from export import open_runner
from export.blending import blended
from export.golden import random_photo
from export.parity import check_parity
from export.registry import TARGETS, get_target, list_targets
from models.artifact import Artifact, load_network, save_network
from models.photos import embedded_photos
from models.registry import create_model, get_spec, get_task
from models.spec import Precision
from optimize.prune import PruneConfig
from optimize.pruner import prepare
from optimize.simulation import SimulatedInt8
from optimize.sources import check_input

SIZE = (32, 32)
KWARGS: dict[str, dict[str, Any]] = {
    "adafm": {"width": 16, "depth": 1},
    "ftn": {"width": 16, "depth": 1, "finished": True},
    "dni": {"width": 16, "depth": 1},
}
# Each family in FP32 on two runtimes, and in INT8 everywhere it is quantized in its own dialect.
CASES = [
    (name, target, precision)
    for name in ("adafm", "ftn")
    for target in list_targets()
    for precision in TARGETS[target].precisions
    if precision is Precision.INT8 or (name == "adafm" and precision is Precision.FP16)
] + [("dni", "onnx", Precision.FP32), ("ftn", "coreml", Precision.FP32), ("adafm", "tensorrt", Precision.FP32)]


@pytest.fixture(scope="module")
def tunable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Each network with a modification that does something, and a calibration record across the levels."""
    made, folder = {}, tmp_path_factory.mktemp("tunable")
    photos = torch.cat([random_photo(SIZE, seed=seed) for seed in range(8)])
    metadata = calibration_record(folder, get_task("denoise").prepare(photos)[0])
    for index, (name, kwargs) in enumerate(KWARGS.items()):
        torch.manual_seed(index)
        net = create_model(name, **kwargs)
        for key, value in net.named_parameters():
            if "transformer" in key or "change" in key:
                value.data.normal_(0, 0.05 if "change" in key else 0.3)
        made[name] = save_network(
            net,
            folder / f"{name}.safetensors",
            model=name,
            task="denoise",
            model_kwargs=kwargs,
            metadata=metadata,
        )
    return made


@pytest.mark.parametrize(("name", "target", "precision"), CASES, ids=["-".join(map(str, case)) for case in CASES])
def test_the_level_is_right_in_every_target(
    name: str, target: str, precision: Precision, tunable: dict[str, Artifact], tmp_path: Path
) -> None:
    pytest.importorskip({"tensorrt": "tensorrt_rtx", "coreml": "coremltools"}.get(target, target))
    row = get_target(target)
    made = row.load().export(tunable[name], tmp_path / f"a{row.suffix}", precision=precision, input_size=SIZE)
    assert check_parity(tunable[name], made, threads=1).passed


@pytest.mark.parametrize("name", ["adafm", "ftn"])
def test_an_engine_of_one_level_has_no_input_for_it(name: str, tunable: dict[str, Artifact], tmp_path: Path) -> None:
    source, path = tunable[name], tmp_path / "fixed.onnx"
    small = prepare(
        load_network(source),
        get_spec(name),
        PruneConfig(pruning_ratio=0.5, round_to=4, importance="magnitude", scope="uniform"),
        input_size=SIZE,
    ).build(0.5)
    how = {"model": name, "task": "denoise", "model_kwargs": KWARGS[name]}
    pruned = save_network(small, tmp_path / "pruned.safetensors", **how)
    plain = blended(pruned, {"level": 0.25}, path)
    made = get_target("onnx").load().export(plain, path, precision=Precision.FP32, input_size=SIZE)
    assert check_parity(plain, made, threads=1).passed
    assert fixed_level(made) == 0.25
    photo = random_photo(SIZE)
    with torch.inference_mode(), open_runner(made.path, threads=1) as runner:
        assert [spec.name for spec in runner.inputs] == ["input"]
        want = small.eval()(photo, torch.tensor([0.25]))
        torch.testing.assert_close(
            torch.from_numpy(runner.infer({"input": photo.numpy()})["output"]), want, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", ["adafm", "ftn"])
def test_channels_are_pruned_with_their_modification(name: str, tunable: dict[str, Artifact]) -> None:
    net = load_network(tunable[name])
    config = PruneConfig(pruning_ratio=0.5, round_to=4, importance="magnitude", scope="uniform")
    small = prepare(net, get_spec(name), config, input_size=SIZE).build(0.5)
    block = small.model[1].sub[0].res
    inner = block[0] if name == "adafm" else block[0].conv
    assert inner.out_channels == 8
    extra = block[1].transformer.weight if name == "adafm" else block[0].change.weight
    assert extra.shape[0] == 8
    with torch.inference_mode():
        assert small(torch.rand(1, 4, 32, 32)).shape == (1, 3, 32, 32)


def test_int8_ranges_cover_all_levels(tunable: dict[str, Artifact]) -> None:
    net, task = load_network(tunable["adafm"]), get_task("denoise")
    photos = torch.cat([random_photo(SIZE, seed=seed) for seed in range(4)])
    ends = [SimulatedInt8(net, task.prepare_at(photos, [level])[0]).ranges["model.2"] for level in (0.0, 1.0)]
    across = torch.cat([task.prepare_at(photos, [level])[0] for level in (0.0, 0.5, 1.0)])
    low, high = SimulatedInt8(net, across).ranges["model.2"]
    assert low <= min(end[0] for end in ends)
    assert high >= max(end[1] for end in ends)


def test_every_family_takes_what_the_task_makes(tunable: dict[str, Artifact]) -> None:
    photos = embedded_photos("eval")
    for artifact in tunable.values():
        check_input(artifact, photos, SIZE)
        inputs, _ = get_task("denoise").prepare(torch.rand(1, 3, *SIZE))
        with torch.inference_mode():
            assert load_network(artifact)(inputs).shape == (1, 3, *SIZE)
