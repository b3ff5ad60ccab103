"""The tile command: photos of any size through torch and exported artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.bundle import write_bundle
from export.cli import main
from export.registry import get_target
from export.tile_photo import tile_photo
from export.tiling import Tiling
from models.artifact import Artifact, load_network, save_network
from models.errors import UsageError
from models.photos import to_batch
from models.registry import create_model, get_task
from models.spec import Precision

KWARGS = {"widths": [8, 16], "depths": [1, 1]}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(4)
    net = create_model("film_unet", **KWARGS)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "film" in name or "head" in name:
                value.normal_(0, 0.2)
    path = tmp_path_factory.mktemp("film") / "film.safetensors"
    return save_network(net, path, model="film_unet", task="overlay_variants", model_kwargs=KWARGS)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, columns = np.mgrid[0:150, 0:210] / 40
    waves = [np.sin(rows * (index + 1)) * np.cos(columns * (3 - index)) for index in range(3)]
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(path)
    return path


def test_tiles_give_what_the_whole_photo_gives(film: Artifact, photo: Path) -> None:
    rgb = np.asarray(Image.open(photo))[:144, :208]
    made = tile_photo(film.path, rgb, tile=(96, 96), overlap=48, controls={"variant": 1.0})
    task = get_task("overlay_variants")
    packed, _ = task.prepare_at(to_batch([rgb]), [1.0])
    with torch.inference_mode():
        whole = load_network(film)(packed)
    assert made.tiling == Tiling((96, 96), 48, 16)
    assert made.tiles == 2 * 4
    assert float(np.abs(made.output - whole.numpy()).mean()) < 2e-3
    rendered = (255 * task.render(packed, whole)[0].permute(1, 2, 0)).round().byte().numpy()
    assert np.abs(made.picture.astype(int) - rendered).mean() < 0.5
    other = tile_photo(film.path, rgb, tile=(96, 96), overlap=48)
    assert np.abs(other.output - made.output).max() > 0.01


def test_an_exported_artifact_of_one_size(film: Artifact, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = get_target("onnx").load().export(film, tmp_path / "film.onnx", precision=Precision.FP32, input_size=(64, 64))
    rgb = np.asarray(Image.open(photo))
    tiled = tile_photo(made.path, rgb)
    assert tiled.tiling == Tiling((64, 64), 32, 16)
    assert tiled.picture.shape == rgb.shape
    message = "seams: expected an artifact that takes the whole photo, got 64x64 alone; fix: pass the .safetensors"
    with pytest.raises(UsageError, match=message):
        tile_photo(made.path, rgb, seams=True)
    with pytest.raises(UsageError, match=r"tile: expected 64x64, as exported, got \(128, 128\); fix: leave out --tile"):
        tile_photo(made.path, rgb, tile=(128, 128))
    bundle = write_bundle([made], tmp_path / "bundle", reference=film)
    (row,) = json.loads((bundle / "bundle.json").read_text())["artifacts"]
    assert row["tiling"]["tile"] == [64, 64]
    assert row["tiling"]["receptive_field"]["reach"] > row["tiling"]["receptive_field"]["effective"] > 0
    text = (bundle / "README.md").read_text()
    assert "tiles of 64 x 64, overlap 32; a pixel depends on" in text
    assert "np.sqrt(rgb) - rgb" in text


def test_the_command_writes_picture_and_map(film: Artifact, photo: Path, tmp_path: Path, capsys) -> None:
    words = ["tile", str(film.path), str(photo), "-o", str(tmp_path / "out.png"), "--map", str(tmp_path / "map.png")]
    assert main([*words, "--control", "variant=0.5", "--tile", "64", "64", "--overlap", "32", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["tile"], said["overlap"]) == ([64, 64], 32)
    assert Image.open(tmp_path / "out.png").size == Image.open(photo).size
    assert Image.open(tmp_path / "map.png").mode == "L"


def test_the_command_measures_seams(film: Artifact, photo: Path, tmp_path: Path, capsys) -> None:
    """Without overlap the borders of tiles show; the whole photo is computed at once to compare with."""
    words = ["tile", str(film.path), str(photo), "-o", str(tmp_path / "out.png"), "--tile", "64", "64", "--seams"]
    found = []
    for overlap in ("0", "32"):
        assert main([*words, "--overlap", overlap, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["seams"])
    rgb = np.asarray(Image.open(photo))
    padded = np.pad(rgb, ((0, 10), (0, 14), (0, 0)), mode="symmetric")
    packed = get_task("overlay_variants").app_input(to_batch([padded]))
    with torch.inference_mode():
        whole = load_network(film)(packed).numpy()[:, :, :150, :210]
    tiled = tile_photo(film.path, rgb, tile=(64, 64), overlap=0)
    assert found[0]["max_abs"] == pytest.approx(float(np.abs(tiled.output - whole).max()), abs=1e-5)
    assert found[0]["seam"] > 1.05 > found[1]["seam"]
    assert found[1]["mean_abs"] < 0.5 * found[0]["mean_abs"]
    assert main([*words, "--overlap", "32", "--quiet"]) == 0
    assert "(1: none); against the whole photo at once " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "status", "message"),
    [
        (["--control", "level=1"], 2, "control of film_unet: expected variant, got 'level'; fix: use one of these"),
        (["--control", "variant=much"], 2, "control variant: expected a number, got 'much'"),
        (["--tile", "60", "64"], 1, "input size: expected height and width"),
        (["--tile", "64", "64", "--overlap", "40"], 2, "an overlap of 0 to 32"),
    ],
)
def test_what_the_command_refuses(film, photo, tmp_path, capsys, extra, status, message) -> None:
    assert main(["tile", str(film.path), str(photo), "-o", str(tmp_path / "out.png"), "--quiet", *extra]) == status
    assert message in capsys.readouterr().err
