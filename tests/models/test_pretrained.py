"""ImageNet weights for the encoder: torchvision's names, and the download from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import create_model, pretrained
from models.downloads import MissingWeightsError, hub_path
from models.errors import CheckpointError, UnsupportedError
from models.pretrained import load_encoder
from models.resnet18_unet import ResNet18Encoder

#: torchvision.models.resnet18().state_dict(), recorded: layer -> shape of its weight; norms by their channels.
CONVOLUTIONS = {
    "conv1": (64, 3, 7, 7),
    "layer1.0.conv1": (64, 64, 3, 3),
    "layer1.0.conv2": (64, 64, 3, 3),
    "layer1.1.conv1": (64, 64, 3, 3),
    "layer1.1.conv2": (64, 64, 3, 3),
    "layer2.0.conv1": (128, 64, 3, 3),
    "layer2.0.conv2": (128, 128, 3, 3),
    "layer2.0.downsample.0": (128, 64, 1, 1),
    "layer2.1.conv1": (128, 128, 3, 3),
    "layer2.1.conv2": (128, 128, 3, 3),
    "layer3.0.conv1": (256, 128, 3, 3),
    "layer3.0.conv2": (256, 256, 3, 3),
    "layer3.0.downsample.0": (256, 128, 1, 1),
    "layer3.1.conv1": (256, 256, 3, 3),
    "layer3.1.conv2": (256, 256, 3, 3),
    "layer4.0.conv1": (512, 256, 3, 3),
    "layer4.0.conv2": (512, 512, 3, 3),
    "layer4.0.downsample.0": (512, 256, 1, 1),
    "layer4.1.conv1": (512, 512, 3, 3),
    "layer4.1.conv2": (512, 512, 3, 3),
}
NORMS = {
    "bn1": 64,
    "layer1.0.bn1": 64,
    "layer1.0.bn2": 64,
    "layer1.1.bn1": 64,
    "layer1.1.bn2": 64,
    "layer2.0.bn1": 128,
    "layer2.0.bn2": 128,
    "layer2.0.downsample.1": 128,
    "layer2.1.bn1": 128,
    "layer2.1.bn2": 128,
    "layer3.0.bn1": 256,
    "layer3.0.bn2": 256,
    "layer3.0.downsample.1": 256,
    "layer3.1.bn1": 256,
    "layer3.1.bn2": 256,
    "layer4.0.bn1": 512,
    "layer4.0.bn2": 512,
    "layer4.0.downsample.1": 512,
    "layer4.1.bn1": 512,
    "layer4.1.bn2": 512,
}
#: What torchvision's documentation gives for ResNet18, classifier included.
PUBLISHED_PARAMETERS = 11_689_512


def recorded() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet18, classifier included."""
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in CONVOLUTIONS.items()}
    for name, channels in NORMS.items():
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()
    return {**shapes, "fc.weight": (1000, 512), "fc.bias": (1000,)}


def small_checkpoint(seed: int = 5, width: int = 8) -> dict[str, Tensor]:
    """Random weights of a narrow ResNet18, with a classifier."""
    torch.manual_seed(seed)
    state = {key: torch.rand_like(value.float()) for key, value in ResNet18Encoder(width).state_dict().items()}
    return {**state, "fc.weight": torch.rand(10, 8 * width), "fc.bias": torch.rand(10)}


@pytest.fixture
def teacher() -> nn.Module:
    return create_model("resnet18_unet", width=8)


class Server:
    """Serves a folder on 127.0.0.1 and counts the requests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, 0
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                super().do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def publish(self, monkeypatch: pytest.MonkeyPatch, content: bytes, digest: str | None = None) -> None:
        """Serve ``content`` under a name that states its hash, or another one, as torchvision's file."""
        name = f"resnet18-{(digest or hashlib.sha256(content).hexdigest())[:8]}.pth"
        (self.folder / name).write_bytes(content)
        monkeypatch.setattr(pretrained, "CHECKPOINT", name)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "site").mkdir()
    server = Server(tmp_path / "site")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv(pretrained.URL_VARIABLE, f"{server.url}/")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def saved(state: dict[str, Any]) -> bytes:
    """The bytes of ``torch.save``."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def encoder_of(net: nn.Module) -> dict[str, Tensor]:
    encoder = net.encoder
    assert isinstance(encoder, nn.Module)
    return encoder.state_dict()


def assert_loaded(net: nn.Module, state: dict[str, Tensor]) -> None:
    for key, value in encoder_of(net).items():
        torch.testing.assert_close(value, state[key].to(value.dtype), rtol=0, atol=0)


def test_encoder_has_the_names_and_shapes_of_torchvision() -> None:
    own = {key: tuple(value.shape) for key, value in ResNet18Encoder().state_dict().items()}
    published = recorded()
    assert len(published) == 122
    assert {**own, "fc.weight": (1000, 512), "fc.bias": (1000,)} == published


def test_encoder_has_the_parameters_that_torchvision_states() -> None:
    classifier = 1000 * 512 + 1000
    assert sum(p.numel() for p in ResNet18Encoder().parameters()) + classifier == PUBLISHED_PARAMETERS


def test_imagenet_is_downloaded_once_and_quietly(
    server: Server, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = small_checkpoint()
    server.publish(monkeypatch, saved(state))
    decoder = {key: value.clone() for key, value in teacher.state_dict().items() if not key.startswith("encoder.")}
    load_encoder(teacher, "imagenet")
    assert_loaded(teacher, state)
    for key, value in decoder.items():
        assert torch.equal(value, teacher.state_dict()[key])
    again = create_model("resnet18_unet", width=8)
    load_encoder(again, "imagenet")
    assert_loaded(again, state)
    assert server.requests == 1
    assert hub_path(pretrained.CHECKPOINT).is_file()
    assert capsys.readouterr().out == ""


def test_another_hash_is_refused_and_not_kept(
    server: Server, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    server.publish(monkeypatch, saved(small_checkpoint()), digest="0123456789abcdef")
    with pytest.raises(CheckpointError, match=r"expected the published file, got invalid hash value .*; fix: download"):
        load_encoder(teacher, "imagenet")
    assert not hub_path(pretrained.CHECKPOINT).exists()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_an_altered_file_in_the_cache_is_refused(
    server: Server, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(monkeypatch, saved(small_checkpoint()))
    load_encoder(teacher, "imagenet")
    hub_path(pretrained.CHECKPOINT).write_bytes(saved(small_checkpoint(seed=6)))
    with pytest.raises(CheckpointError, match=r"a SHA-256 that begins with [0-9a-f]{8}, got .*fix: remove the file"):
        load_encoder(teacher, "imagenet")


def test_no_such_file_on_the_server(server: Server, teacher: nn.Module) -> None:
    message = r"ImageNet weights of ResNet18: expected .*resnet18-f37072fd\.pth, .*404.*--encoder-weights FILE"
    with pytest.raises(MissingWeightsError, match=message):
        load_encoder(teacher, "imagenet")


def test_no_network(server: Server, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pretrained.URL_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(MissingWeightsError, match=r"or a network to fetch http://127\.0\.0\.1:9/resnet18.*PARE_TORCH"):
        load_encoder(teacher, "imagenet")


def test_a_pickle_with_code_is_never_run(
    server: Server, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    server.publish(monkeypatch, saved({"conv1.weight": Code()}))
    with pytest.raises(CheckpointError, match=r"expected tensors only, got a pickle with code"):
        load_encoder(teacher, "imagenet")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_loads(teacher: nn.Module, tmp_path: Path, suffix: str) -> None:
    state = small_checkpoint()
    path = tmp_path / f"resnet{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    load_encoder(teacher, path)
    assert_loaded(teacher, state)


def test_a_file_without_batch_counters_loads(teacher: nn.Module, tmp_path: Path) -> None:
    state = {key: value for key, value in small_checkpoint().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load_encoder(teacher, tmp_path / "old.pth")
    assert torch.equal(encoder_of(teacher)["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])


def test_another_architecture_is_refused(teacher: nn.Module, tmp_path: Path) -> None:
    state = small_checkpoint()
    state["layer1.2.conv1.weight"] = state.pop("layer1.1.conv1.weight")
    torch.save(state, tmp_path / "resnet34.pth")
    message = (
        r"expected the tensors of the encoder, got 1 missing \(first: \['layer1\.1\.conv1\.weight'\]\), "
        r"1 unknown \(first: \['layer1\.2\.conv1\.weight'\]\); fix: pass a ResNet18 checkpoint"
    )
    with pytest.raises(CheckpointError, match=message):
        load_encoder(teacher, tmp_path / "resnet34.pth")


def test_another_width_is_refused(teacher: nn.Module, tmp_path: Path) -> None:
    torch.save(small_checkpoint(width=4), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"conv1\.weight of shape \(8, 3, 7, 7\), got \(4, 3, 7, 7\).*width"):
        load_encoder(teacher, tmp_path / "narrow.pth")


def test_a_missing_file_is_named(teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected file .*nowhere\.pth, got no such file"):
        load_encoder(teacher, tmp_path / "nowhere.pth")


def test_a_network_without_encoder_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"expected a network with `encoder`, got none in Linear; fix: leave"):
        load_encoder(nn.Linear(1, 1), "imagenet")
