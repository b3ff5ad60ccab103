"""LPIPS: published values, architectures, an independent calculation, and every way to find the weights."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.metrics import backbones, load_lpips, lpips, lpips_weights
from benchmarks.metrics.lpips import LPIPS
from models.errors import CheckpointError, ConfigError, UnknownNameError

# Convolutions of torchvision's alexnet and vgg16 checkpoints: index in `features`, shape of the weight.
ALEX = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128), 9: (256, 48, 192)}
FIRES |= {10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}


def shapes(net: str) -> dict[str, tuple[int, ...]]:
    state = backbones.OFFICIAL_NETS[net].build().state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def with_bias(convolutions: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    biases = {name.replace("weight", "bias"): shape[:1] for name, shape in convolutions.items()}
    return convolutions | biases


def random_metric(net: str) -> LPIPS:
    torch.manual_seed(1)
    metric = LPIPS(backbones.OFFICIAL_NETS[net].build(), net)
    for head in metric.heads:
        head.data.uniform_(0, 1)
    return metric.requires_grad_(False).eval()


def save_official(metric: LPIPS, folder: Path) -> None:
    """Write the files as they are published: a whole torchvision checkpoint and the linear heads."""
    state = {f"features.{name}": value for name, value in metric.features.state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(4, 4)
    checkpoint = backbones.OFFICIAL_NETS[metric.name].checkpoint.split("-")[0]
    torch.save(state, folder / f"{checkpoint}.pth")
    heads = {f"lin{i}.model.1.weight": head.data.view(1, -1, 1, 1) for i, head in enumerate(metric.heads)}
    torch.save(heads, folder / f"lin_{metric.name}.pth")


def pair(size: int = 48, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, count, 3, size, size, generator=generator)
    return first, second


class TestArchitecture:
    def test_alexnet_has_torchvisions_names_and_shapes(self) -> None:
        assert shapes("alex") == with_bias({f"{index}.weight": shape for index, shape in ALEX.items()})

    def test_vgg16_has_torchvisions_names_and_shapes(self) -> None:
        inputs = (3, *VGG_WIDTHS)
        rows = zip(VGG_INDICES, VGG_WIDTHS, inputs, strict=False)
        assert shapes("vgg") == with_bias({f"{i}.weight": (width, before, 3, 3) for i, width, before in rows})

    def test_squeezenet_has_torchvisions_names_and_shapes(self) -> None:
        wanted: dict[str, tuple[int, ...]] = {"0.weight": (64, 3, 3, 3)}
        for index, (inputs, squeeze, expand) in FIRES.items():
            wanted[f"{index}.squeeze.weight"] = (squeeze, inputs, 1, 1)
            wanted[f"{index}.expand1x1.weight"] = (expand, squeeze, 1, 1)
            wanted[f"{index}.expand3x3.weight"] = (expand, squeeze, 3, 3)
        assert shapes("squeeze") == with_bias(wanted)

    def test_parameter_counts_are_the_published_ones(self) -> None:
        counts = {net: sum(np.prod(shape) for shape in shapes(net).values()) for net in backbones.OFFICIAL_NETS}
        assert counts == {"squeeze": 722_496, "alex": 2_469_696, "vgg": 14_714_688}


def alex_taps(x: Tensor, w: dict[str, Tensor]) -> list[Tensor]:
    def conv(x: Tensor, index: int, stride: int, padding: int) -> Tensor:
        return functional.conv2d(x, w[f"{index}.weight"], w[f"{index}.bias"], stride, padding).clamp_min(0)

    taps = [conv(x, 0, 4, 2)]
    taps.append(conv(functional.max_pool2d(taps[-1], 3, 2), 3, 1, 2))
    taps.append(conv(functional.max_pool2d(taps[-1], 3, 2), 6, 1, 1))
    taps.append(conv(taps[-1], 8, 1, 1))
    taps.append(conv(taps[-1], 10, 1, 1))
    return taps


def vgg_taps(x: Tensor, w: dict[str, Tensor]) -> list[Tensor]:
    taps = []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        x = functional.max_pool2d(x, 2) if taps else x
        for index in block:
            x = functional.conv2d(x, w[f"{index}.weight"], w[f"{index}.bias"], padding=1).clamp_min(0)
        taps.append(x)
    return taps


def squeeze_taps(x: Tensor, w: dict[str, Tensor]) -> list[Tensor]:
    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how).clamp_min(0)

    x = conv(x, "0", stride=2)
    taps = [x]
    for block in ((3, 4), (6, 7), (9,), (10,), (11,), (12,)):
        if block[0] in (3, 6, 9):
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        for index in block:
            x = conv(x, f"{index}.squeeze")
            x = torch.cat((conv(x, f"{index}.expand1x1"), conv(x, f"{index}.expand3x3", padding=1)), 1)
        taps.append(x)
    return taps


@pytest.mark.parametrize(("net", "taps_of"), [("squeeze", squeeze_taps), ("alex", alex_taps), ("vgg", vgg_taps)])
def test_random_weights_equal_a_calculation_written_apart(net: str, taps_of: Any) -> None:
    metric = random_metric(net)
    weights = {name: value.double() for name, value in metric.features.state_dict().items()}
    first, second = pair(40)
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    taps = [taps_of((2 * image.double() - 1 - shift) / scale, weights) for image in (first, second)]
    wanted = torch.zeros(2, dtype=torch.float64)
    for a, b, head in zip(*taps, metric.heads, strict=True):
        a, b = (x / x.pow(2).sum(1, keepdim=True).sqrt() for x in (a, b))
        wanted += ((a - b).pow(2) * head.double().view(1, -1, 1, 1)).sum(1).mean((1, 2))
    assert torch.allclose(metric(first, second).double(), wanted, rtol=1e-4)


class TestOfficialSqueeze:
    def test_gives_the_values_of_torchmetrics_docstring(self, pare_data: Path) -> None:
        generator = torch.Generator().manual_seed(42)
        first, second = (torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2))
        got = lpips(first, second, net="squeeze", weights=pare_data / "lpips")
        assert got.tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)

    @pytest.mark.parametrize(("name", "wanted"), [("ex_p0", 0.71105), ("ex_p1", 0.14790)])
    def test_gives_the_values_of_the_authors_examples(self, pare_data: Path, name: str, wanted: float) -> None:
        from PIL import Image

        folder = pare_data / "lpips"
        first, second = (
            torch.from_numpy(np.array(Image.open(folder / f"{file}.png").convert("RGB"))).permute(2, 0, 1)[None] / 255
            for file in ("ex_ref", name)
        )
        assert lpips(first, second, net="squeeze", weights=folder).item() == pytest.approx(wanted, abs=5e-6)


class TestFindingWeights:
    @pytest.mark.parametrize("net", ["squeeze", "alex"])
    def test_folder_with_a_whole_torchvision_checkpoint(self, tmp_path: Path, net: str) -> None:
        metric = random_metric(net)
        save_official(metric, tmp_path)
        assert torch.equal(lpips(*pair(), net=net, weights=tmp_path), metric(*pair()))

    def test_file_with_its_heads_beside_it(self, tmp_path: Path) -> None:
        metric = random_metric("squeeze")
        save_official(metric, tmp_path)
        assert torch.equal(lpips(*pair(), net="squeeze", weights=tmp_path / "squeezenet1_1.pth"), metric(*pair()))

    def test_folder_in_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        metric = random_metric("squeeze")
        save_official(metric, tmp_path)
        monkeypatch.setenv(lpips_weights.WEIGHTS_VARIABLE, str(tmp_path))
        assert torch.equal(lpips(*pair(), net="squeeze"), metric(*pair()))

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(lpips_weights.MissingWeightsError, match=r"got no such file; fix: check --lpips-weights"):
            lpips(*pair(), net="squeeze", weights=tmp_path / "nowhere")

    def test_another_architecture(self, tmp_path: Path) -> None:
        save_official(random_metric("squeeze"), tmp_path)
        (tmp_path / "squeezenet1_1.pth").rename(tmp_path / "alexnet.pth")
        heads = {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}
        torch.save(heads, tmp_path / "lin_alex.pth")
        with pytest.raises(CheckpointError, match=r"LPIPS net 'alex': expected its own tensors, got .* fix: pass"):
            lpips(*pair(), net="alex", weights=tmp_path)

    def test_heads_of_another_net(self, tmp_path: Path) -> None:
        save_official(random_metric("squeeze"), tmp_path)
        torch.save({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, tmp_path / "lin_squeeze.pth")
        with pytest.raises(CheckpointError, match=r"linear heads of 'squeeze': expected \(64, 128, .* got \(64,\)"):
            lpips(*pair(), net="squeeze", weights=tmp_path)

    def test_a_pickle_with_code_is_not_run(self, tmp_path: Path) -> None:
        (tmp_path / "squeezenet1_1.pth").write_bytes(pickle.dumps({"0.weight": print}, protocol=2))
        with pytest.raises(CheckpointError, match=r"expected tensors only, got a pickle with code"):
            lpips(*pair(), net="squeeze", weights=tmp_path)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LPIPS]:
    """A local server with a random ``squeeze``, its hash in the file name, and an empty hub cache."""
    served = tmp_path / "served"
    served.mkdir()
    metric = random_metric("squeeze")
    save_official(metric, served)
    backbone, heads = served / "squeezenet1_1.pth", served / "lin_squeeze.pth"
    heads = heads.rename(served / "squeeze.pth")
    digests = {file: hashlib.sha256(file.read_bytes()).hexdigest()[:8] for file in (backbone, heads)}
    name = f"squeezenet1_1-{digests[backbone]}.pth"
    backbone.rename(served / name)
    source = backbones.NetSource(backbones.squeezenet_features, name)
    monkeypatch.setitem(backbones.OFFICIAL_NETS, "squeeze", source)
    monkeypatch.setitem(lpips_weights._HEADS_HASH, "squeeze", digests[heads])
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.delenv(lpips_weights.WEIGHTS_VARIABLE, raising=False)
    from benchmarks.metrics.lpips import _read, _ready

    _read.cache_clear()
    _ready.cache_clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv(lpips_weights.URL_VARIABLE, f"http://127.0.0.1:{server.server_port}")
    yield metric
    server.shutdown()
    server.server_close()
    thread.join()
    _read.cache_clear()
    _ready.cache_clear()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class TestDownload:
    def test_downloads_once_and_then_reads_the_cache(self, published: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
        assert torch.equal(lpips(*pair(), net="squeeze"), published(*pair()))
        monkeypatch.setenv(lpips_weights.URL_VARIABLE, "http://127.0.0.1:9")
        from benchmarks.metrics.lpips import _read

        _read.cache_clear()
        assert torch.equal(load_lpips("squeeze")(*pair()), published(*pair()))

    def test_a_changed_file_is_refused(self, published: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(lpips_weights._HEADS_HASH, "squeeze", "00000000")
        with pytest.raises(CheckpointError, match=r"expected the published file, got invalid hash value"):
            lpips(*pair(), net="squeeze")

    def test_without_a_network_the_error_says_what_to_do(
        self, published: LPIPS, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(lpips_weights.URL_VARIABLE, "http://127.0.0.1:9")
        wanted = r"'squeeze': expected squeezenet1_1-.* in --lpips-weights.*; fix: pass --lpips-weights DIR .*net lite"
        with pytest.raises(lpips_weights.MissingWeightsError, match=wanted):
            lpips(*pair(), net="squeeze")


def test_an_unknown_net_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown LPIPS net: expected alex \| .*, got 'squeze'; fix: use 'squeeze'"
    ):
        lpips(*pair(), net="squeze")
    with pytest.raises(UnknownNameError, match=r"fix: use 'vgg'"):
        load_lpips("vgg16")


def test_nan_is_refused() -> None:
    first, second = pair()
    first[0, 0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"preds: expected values in \[0, 1\]"):
        lpips(first, second)


class TestLoading:
    def test_every_call_gives_a_module_of_its_own_with_frozen_weights(self) -> None:
        first, second = load_lpips("lite"), load_lpips("lite")
        assert first is not second
        assert not first.training
        assert not any(parameter.requires_grad for parameter in first.parameters())

    def test_a_first_call_in_inference_mode_does_not_spoil_later_training(self) -> None:
        from benchmarks.metrics.lpips import _read, _ready

        _read.cache_clear()
        _ready.cache_clear()
        with torch.inference_mode():
            lpips(*pair(64))
        first, second = pair(64)
        load_lpips("lite")(first.requires_grad_(), second).sum().backward()
        assert first.grad is not None
        assert torch.isfinite(first.grad).all()
        assert first.grad.abs().sum() > 0

    def test_autocast_does_not_change_the_number(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            rounded = lpips(*pair(64))
        assert torch.equal(rounded, lpips(*pair(64)))
