"""Quality against the level: the numbers of each level, the transition, the chart."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cli import main
from benchmarks.level_chart import IDLE
from benchmarks.levels import measure_levels, write_levels
from benchmarks.metrics import psnr
from export import get_target
from export.blending import blended
from models.artifact import Artifact, load_network, save_network, save_tensors
from models.errors import UnsupportedError, UsageError
from models.registry import create_model, get_task
from models.spec import Precision


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny AdaFM whose modification does something."""
    torch.manual_seed(0)
    kwargs = {"width": 8, "depth": 1}
    net = create_model("adafm", **kwargs)
    for parameter in net.tuning_parameters():
        parameter.data.normal_(0, 0.5)
    path = tmp_path_factory.mktemp("levels") / "adafm.safetensors"
    return save_network(net, path, model="adafm", task="denoise", model_kwargs=kwargs)


def test_each_level_is_scored_against_its_own_truth(denoiser: Artifact, tmp_path: Path) -> None:
    rgb = torch.rand(2, 3, 64, 64)
    idle, curve = measure_levels([denoiser], rgb, count=3, threads=1)
    assert idle.name == IDLE
    assert curve.levels == (0.0, 0.5, 1.0)
    assert idle.psnr_db[0] > idle.psnr_db[1] > idle.psnr_db[2]
    task, net = get_task("denoise"), load_network(denoiser)
    inputs, target = task.prepare_at(rgb, [0.5])
    with torch.inference_mode():
        want = float(psnr(net(inputs).clamp(0, 1), target).mean())
    assert curve.psnr_db[1] == pytest.approx(want, abs=1e-3)
    assert curve.detour is not None
    assert curve.detour >= 1 - 1e-6
    assert curve.evenness is not None
    assert 0 < curve.evenness <= 1
    folder = write_levels(tmp_path / "out", [idle, curve], control="level", lpips_net="lite")
    content = json.loads((folder / "levels.json").read_text())
    assert content["curves"][1]["levels"] == [0.0, 0.5, 1.0]
    drawing = ElementTree.fromstring((folder / "levels.svg").read_text())
    assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == 4
    assert "| adafm.safetensors |" in (folder / "levels.md").read_text()


def test_both_variants_of_a_retoucher_are_the_truth_of_their_ends(tmp_path: Path) -> None:
    """An overlay network that does nothing, on a photo whose first target is the photo itself."""
    folder, rng = tmp_path / "pairs", np.random.default_rng(0)
    photo = rng.integers(40, 200, (64, 64, 3), dtype=np.uint8)
    for name, rgb in (("input", photo), ("target/dodge_and_burn", photo), ("target/volume", photo + 20)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(rgb).save(folder / name / "a.png")
    kwargs = {"widths": [8, 8], "depths": [1, 1]}
    net = create_model("film_unet", **kwargs)
    how = {"model": "film_unet", "task": "overlay_variants", "model_kwargs": kwargs}
    path = save_network(net, tmp_path / "film.safetensors", **how).path
    command = f"levels {path} --data {folder} -o {tmp_path / 'out'} --count 3 --input-size 64 64 --threads 1 --quiet"
    assert main(command.split()) == 0
    content = json.loads((tmp_path / "out" / "levels.json").read_text())
    assert content["control"] == "variant"
    for curve in content["curves"]:
        first, between, second = curve["psnr_db"]
        assert first is None or first > 50
        assert 20 < second < between < 40


def test_what_has_no_level_is_refused(denoiser: Artifact, tiny_student: Artifact) -> None:
    with pytest.raises(UnsupportedError, match="task colorize: expected a run-time control, got none"):
        measure_levels([tiny_student], torch.rand(1, 3, 64, 64))
    with pytest.raises(UsageError, match="levels: expected one task"):
        measure_levels([denoiser, tiny_student], torch.rand(1, 3, 64, 64))


@pytest.fixture(scope="module")
def both_ends(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny DNI as training leaves it: half way, its ends beside it."""
    torch.manual_seed(1)
    kwargs, folder = {"width": 8, "depth": 1}, tmp_path_factory.mktemp("dni")
    note = {name: f"{name}.safetensors" for name in ("start", "end")}
    for file in note.values():
        save_tensors(create_model("dni", **kwargs).state_dict(), folder / file)
    net = create_model("dni", **kwargs)
    how = {"model": "dni", "task": "denoise", "model_kwargs": {**kwargs, "alpha": 0.5}}
    artifact = save_network(net, folder / "dni.safetensors", **how, metadata={"blend": note})
    half = load_network(blended(artifact, {"alpha": 0.5}, folder / "half.onnx"))
    return save_network(half, folder / "dni.safetensors", **how, metadata={"blend": note})


def test_a_set_of_engines_is_one_curve_each_level_by_the_nearest(both_ends: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    rgb, engines = torch.rand(1, 3, 64, 64), []
    for alpha in (1.0, 0.0, 0.25):
        path = tmp_path / f"{alpha:g}.onnx"
        plain = blended(both_ends, {"alpha": alpha}, path)
        engines.append(get_target("onnx").load().export(plain, path, precision=Precision.FP32, input_size=(64, 64)))
    _, before, after = measure_levels([both_ends, *engines], rgb, count=5, threads=1)
    assert (before.name, after.name) == ("dni.safetensors", "0.onnx to 1.onnx: 3 engines")
    assert before.levels == (0.0, 0.25, 0.5, 0.75, 1.0)
    alone = [measure_levels([engine], rgb, count=5, threads=1)[1] for engine in engines]
    nearest = (1, 2, 2, 0, 0)  # places in ``engines``
    assert after.psnr_db == tuple(alone[index].psnr_db[place] for place, index in enumerate(nearest))
    for place in (0, 1, 4):  # where there is an engine of this very level, it is what PyTorch blends
        assert after.psnr_db[place] == pytest.approx(before.psnr_db[place], abs=1e-3)
    assert before.detour is not None
    assert alone[0].detour is None  # one engine does not move


def test_without_a_ground_truth_a_teacher_can_be_compared_with(tmp_path: Path) -> None:
    kwargs = {"width": 4}
    style = save_network(
        create_model("adain", **kwargs), tmp_path / "a.safetensors", model="adain", task="style", model_kwargs=kwargs
    )
    rgb = torch.rand(1, 3, 64, 64)
    assert None not in measure_levels([style], rgb, count=2)[1].psnr_db
    assert measure_levels([style], rgb, count=2, teacher=style)[1].psnr_db == (None, None)  # the same pictures
