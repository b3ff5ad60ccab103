"""AdaIN: the published names, the strength, the baked style, and losses that teach it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from models.adain import adain, pattern, statistics
from models.artifact import load_network, save_network
from models.controls import pack
from models.registry import create_model, get_task
from optimize.two_steps import TwoSteps

RECORDED = Path(__file__).parent / "state_dicts" / "adain.json"


def test_names_and_shapes_are_the_published_ones() -> None:
    content = json.loads(RECORDED.read_text())
    with torch.device("meta"):
        net = adain(**content["kwargs"])
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == content["tensors"]


def test_the_two_published_files_load_from_one_folder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = adain(4)
    beyond = {"31.weight": torch.rand(1), "50.bias": torch.rand(1)}  # VGG goes on to relu5_4
    torch.save({**net.encoder.state_dict(), **beyond}, tmp_path / "vgg_normalised.pth")
    torch.save(net.decoder.state_dict(), tmp_path / "decoder.pth")
    loaded = create_model("adain", weights=tmp_path, width=4)
    photo = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        want = net.finished()[0](photo, torch.ones(1))  # the built-in style, seen by the published encoder
        torch.testing.assert_close(loaded(photo, torch.ones(1)), want)


def test_a_style_of_ones_own_is_baked_and_saved(tmp_path: Path) -> None:
    net, photo = adain(4).eval(), torch.rand(1, 3, 16, 16)
    painting = torch.rand(1, 3, 32, 32)
    path = tmp_path / "own.safetensors"
    save_network(net.bake(painting), path, model="adain", task="style", model_kwargs={"width": 4})
    with torch.inference_mode():
        again = load_network(path)(photo, torch.ones(1))
        torch.testing.assert_close(again, net(photo, torch.ones(1)))
        assert not torch.allclose(again, net.finished()[0](photo, torch.ones(1)), atol=1e-4)


def test_statistics_are_those_of_torch() -> None:
    x = torch.rand(2, 3, 5, 7)
    mean, deviation = statistics(x)
    assert torch.allclose(mean, x.mean(dim=(2, 3), keepdim=True))
    assert torch.allclose(deviation, x.flatten(2).std(dim=2)[..., None, None], atol=1e-4)


def test_features_take_on_the_baked_statistics_by_the_strength() -> None:
    net, photo = adain(4).eval().bake(pattern((64, 64))), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        features = net.encoder(photo)
        styled = net._restyle(features, net.style_mean, net.style_deviation, torch.ones(1))
        mean, _ = statistics(styled)
        assert torch.allclose(mean, net.style_mean, atol=1e-4)
        assert torch.equal(net(photo, torch.zeros(1)), net.decoder(features))
        half = net(pack(photo, torch.full((1, 1), 0.5)))
        assert torch.allclose(half, net.decoder((features + styled) / 2), atol=1e-5)


def test_strength_0_teaches_reproduction_alone() -> None:
    net, task = adain(4).train(), get_task("style")
    inputs, target = task.prepare_at(torch.rand(3, 3, 32, 32), [0.0])
    assert not task.has_truth(target)
    losses = net(inputs, target=target)
    assert torch.equal(losses["loss"], losses["again"])
    torch.testing.assert_close(losses["again"], (net.decoder(net.encoder(target)) - target).abs().mean())


def test_the_second_step_changes_the_decoder_alone() -> None:
    net, task = adain(4).train(), get_task("style")
    fit = SimpleNamespace(raw_net=net, step=1, set_rate=lambda fraction: None)
    steps = TwoSteps(fit, task, 0.5, Path("nowhere"))  # type: ignore[arg-type]
    photo = torch.rand(3, 3, 32, 32)
    for fraction, wanted in ((0.1, {"encoder", "decoder"}), (0.6, {"decoder"})):
        net.zero_grad()
        inputs, target = steps.prepare(photo, fraction)
        net(inputs, target=target)["loss"].backward()
        taught = {name.partition(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        assert taught == wanted


def test_a_few_steps_lower_the_loss_and_training_bakes_the_style() -> None:
    torch.manual_seed(0)
    net, task = adain(4).train(), get_task("style")
    net.encoder.requires_grad_(False)
    inputs, target = task.prepare_at(torch.rand(2, 3, 32, 32), [1.0])
    optimizer = torch.optim.Adam(net.decoder.parameters(), 2e-3)
    values = []
    for _ in range(12):
        losses = net(inputs, target=target)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        values.append({name: float(value.detach()) for name, value in losses.items()})
    assert values[-1]["loss"] < 0.8 * values[0]["loss"]
    assert values[-1]["style"] < values[0]["style"]
    baked, _ = net.finished()
    assert not torch.equal(baked.style_mean, torch.zeros_like(baked.style_mean))


def test_the_pattern_is_a_picture_of_three_inks() -> None:
    picture = pattern((48, 64))
    assert picture.shape == (1, 3, 48, 64)
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1
    assert float(picture.flatten(2).std(dim=2).min()) > 0.1
