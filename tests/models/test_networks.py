"""The networks of overlays: neutral at first, bounded, trainable, and their parts against plain references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
from models.encoder_unet import IMAGENET_MEAN, IMAGENET_STD
from models.errors import ConfigError
from models.hdrnet import HDRNet, area_weights, slice_grid
from models.norms import BiasFreeNorm2d, LayerNorm2d
from models.registry import MODELS, load_object
from models.unet_convnext import GlobalResponseNorm
from models.windows import MASKED, attend, merge, partition, relative_places, roll, shift_masks

Maker = Callable[[str], tuple[nn.Module, tuple[int, int]]]
MAPS = sorted(name for name, row in MODELS.items() if row.defaults.get("form") == "map")


def test_every_network_of_the_list_has_a_row() -> None:
    wanted = "nafnet_w32 unet_convnext unet_efficientnet_b4 restormer_lite hdrnet scunet swinir pix2pix"
    assert sorted(wanted.split()) == MAPS
    assert MODELS["unet"].task == "colorize"


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_trained_weights_is_bounded(name: str, tiny_network: Maker) -> None:
    net, size = tiny_network(name)
    with torch.inference_mode():
        out = net(torch.rand(1, 3, *size))
    assert out.shape == (1, 1, *size)
    assert out.std() > 1e-3
    assert 0 <= float(out.min()) < float(out.max()) <= 1


@pytest.mark.parametrize("name", MAPS)
def test_a_new_map_network_starts_neutral(name: str, tiny_network: Maker, request: pytest.FixtureRequest) -> None:
    net = models.create_model(name, **tiny_arguments(request, name))
    size = tiny_network(name)[1]
    with torch.inference_mode():
        out = net(torch.rand(2, 3, *size))
    assert torch.equal(out, torch.full_like(out, 0.5))


def tiny_arguments(request: pytest.FixtureRequest, name: str) -> dict[str, object]:
    """Return the factory arguments of the tiny network ``name``."""
    kwargs: dict[str, object] = request.getfixturevalue("tiny_artifact")(name).model_kwargs
    return kwargs


@pytest.mark.parametrize("name", [*MAPS, "unet"])
def test_every_weight_of_a_picture_network_gets_a_gradient(
    name: str, tiny_network: Maker, request: pytest.FixtureRequest
) -> None:
    arguments = {**tiny_arguments(request, name), "form": "image"}
    channels = 1 if name == "unet" else 3
    net = load_object(MODELS[name].factory)(**arguments)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.1)
    size = tiny_network(name)[1]
    net(torch.rand(2, channels, *size)).square().sum().backward()
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["nafnet_w32", "restormer_lite", "swinir", "unet_convnext"])
def test_a_picture_needs_as_many_channels_out_as_in(name: str) -> None:
    message = "channels of form 'image': expected as many out as in, got 3 in, 1 out; fix: use form='map'"
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        load_object(MODELS[name].factory)(out_channels=1)


@pytest.mark.parametrize("name", [*MAPS, "unet"])
def test_an_unknown_form_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=r"form: expected image \| map, got 'mask'"):
        load_object(MODELS[name].factory)(form="mask")


def test_the_baseline_of_colorization_halves_three_times() -> None:
    net, sides = load_object("models.unet:unet")(width=4).eval(), []
    for name, layer in net.named_children():
        if name.startswith("down"):
            layer.register_forward_hook(lambda _, given, out: sides.append((given[0].shape[2], out.shape[2])))
    with torch.inference_mode():
        assert net(torch.rand(1, 1, 32, 40)).shape == (1, 2, 32, 40)
    assert sides == [(32, 16), (16, 8), (8, 4)]
    assert MODELS["unet"].size.multiple_of == 8


def test_sizes_of_networks_are_checked() -> None:
    with pytest.raises(ConfigError, match="levels of pix2pix: expected 5 or more, got 4; fix: use for example 7"):
        load_object("models.pix2pix:pix2pix")(levels=4)
    with pytest.raises(ConfigError, match="levels of a U-Net: expected 1 or more, got 0"):
        load_object("models.unet:unet")(levels=0)
    with pytest.raises(ConfigError, match=r"grid of hdrnet: expected cells a multiple of 4, .* got cells 16, low 100"):
        HDRNet(low=100)


def test_norms_are_layer_norms_over_channels() -> None:
    x = torch.randn(2, 5, 3, 4) * 3 + 1
    norm = LayerNorm2d(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    last = x.permute(0, 2, 3, 1)
    expected = functional.layer_norm(last, (5,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)
    free = BiasFreeNorm2d(5)
    expected = x / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    torch.testing.assert_close(free(x), expected)


def test_response_norm_is_the_published_one() -> None:
    norm = GlobalResponseNorm(6)
    nn.init.normal_(norm.gamma)
    nn.init.normal_(norm.beta)
    x = torch.randn(2, 8, 7, 6)
    length = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    expected = norm.gamma * (x * (length / (length.mean(dim=-1, keepdim=True) + 1e-6))) + norm.beta + x
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


def test_windows_are_rolled_cut_and_joined() -> None:
    x = torch.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    assert torch.equal(roll(x, -2), torch.roll(x, (-2, -2), (1, 2)))
    assert torch.equal(roll(x, 2), torch.roll(x, (2, 2), (1, 2)))
    cut = partition(x, 4)
    assert cut.shape == (2 * 2 * 3, 16, 3)
    assert torch.equal(cut[1], x[0, :4, 4:8].reshape(16, 3))
    assert torch.equal(merge(cut, 4, 8, 12), x)


def test_shifted_windows_look_only_at_their_neighbours() -> None:
    """A pixel may look at another one when they were less than a window apart before the shift."""
    height, width, window, shift = 8, 12, 4, 2
    rows, columns = shift_masks(height, width, window, shift, torch.zeros(()))
    mask = (rows + columns[:, 0]).flatten(0, 1)
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)[None]
    cut = partition(roll(places.float(), -shift), window)
    apart = (cut[:, :, None] - cut[:, None, :]).abs().amax(dim=-1) >= window
    assert torch.equal(mask <= MASKED, apart)
    assert set(mask.unique().tolist()) == {0.0, MASKED, 2 * MASKED}
    queries, bias = torch.zeros(2 * len(mask), 3, 16, 5), torch.zeros(3, 16, 16)
    values = cut.repeat(2, 1, 1)[:, None].expand(-1, 3, -1, -1)
    seen = attend(queries, queries, values, bias, (rows, columns), scale=1.0)  # the mean place of whom a pixel sees
    wanted = torch.stack([torch.softmax(one, -1) @ places for one, places in zip(mask, cut, strict=True)])
    assert torch.allclose(seen, wanted.repeat(2, 1, 3), atol=1e-5)


def test_relative_places_number_the_offsets() -> None:
    table = relative_places(3)
    assert table[4, 4] == 2 * 5 + 2
    assert table[0, 8] == 0
    assert table[8, 0] == 24
    assert table[1, 0] == table[5, 4] == 13


def reference_slice(grid: Tensor, guide: Tensor) -> Tensor:
    """Trilinear look-up pixel by pixel, indices held at the borders: (C, D, h, w) and (H, W) -> (C, H, W)."""
    channels, depth, cells_y, cells_x = grid.shape
    height, width = guide.shape
    out = torch.zeros(channels, height, width)
    for i in range(height):
        for j in range(width):
            place = (float(guide[i, j]) * depth, (i + 0.5) * cells_y / height, (j + 0.5) * cells_x / width)
            corner = [int(torch.tensor(p - 0.5).floor()) for p in place]
            for dk in (0, 1):
                for di in (0, 1):
                    for dj in (0, 1):
                        index = [corner[0] + dk, corner[1] + di, corner[2] + dj]
                        weight = 1.0
                        for at, p in zip(index, place, strict=True):
                            weight *= max(0.0, 1 - abs(at + 0.5 - p))
                        k, y, x = (
                            min(max(at, 0), n - 1) for at, n in zip(index, (depth, cells_y, cells_x), strict=True)
                        )
                        out[:, i, j] += weight * grid[:, k, y, x]
    return out


def test_slicing_is_the_trilinear_look_up() -> None:
    grid, guide = torch.randn(1, 3, 4, 5, 3), torch.rand(1, 1, 13, 17)
    guide[0, 0, 0, :4] = torch.tensor([0.0, 1.0, 0.125, 0.5])
    expected = reference_slice(grid[0], guide[0, 0])
    torch.testing.assert_close(slice_grid(grid, guide)[0], expected, rtol=1e-5, atol=1e-5)


def test_slicing_is_a_grid_sample() -> None:
    grid, guide = torch.randn(2, 3, 8, 4, 4), torch.rand(2, 1, 16, 16)
    step = (torch.arange(16) + 0.5) / 8 - 1
    y, x = torch.meshgrid(step, step, indexing="ij")
    places = torch.stack([x.expand(2, 16, 16), y.expand(2, 16, 16), 2 * guide[:, 0] - 1], dim=-1)[:, None]
    expected = functional.grid_sample(grid, places, padding_mode="border", align_corners=False)[:, :, 0]
    torch.testing.assert_close(slice_grid(grid, guide), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 32), (30, 20), (12, 40)])
def test_the_small_photo_is_an_average_by_area(size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size)
    rows, columns = area_weights(size[0], 16, x), area_weights(size[1], 16, x)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(16))
    small = rows @ x @ columns.T
    assert small.mean() == pytest.approx(float(x.mean()), abs=1e-5)
    if size == (64, 32):
        torch.testing.assert_close(small, functional.avg_pool2d(x, (4, 2)))


def test_the_guide_is_the_curves_of_the_paper() -> None:
    guide = HDRNet(low=32, cells=8).guide
    for parameter in guide.parameters():
        nn.init.uniform_(parameter, -0.3, 0.5)
    x = torch.rand(1, 3, 5, 6)
    toned = torch.einsum("ncij,cd->ndij", x, guide.ccm) + guide.ccm_bias[:, None, None]
    curves = sum(
        guide.slopes[:, k, None, None] * functional.relu(toned - guide.shifts[:, k, None, None]) for k in range(16)
    )
    expected = guide.channel_mixing(curves).clamp(0, 1)
    torch.testing.assert_close(guide(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["unet_convnext", "unet_efficientnet_b4"])
def test_published_encoders_read_what_they_were_trained_on(name: str, tiny_network: Maker) -> None:
    net, size = tiny_network(name)
    seen: list[torch.Tensor] = []
    net.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        for value in (0.0, 1.0, -2.0):
            net((mean + value * deviation).expand(1, 3, *size))
    for value, given in zip((0.0, 1.0, -2.0), seen, strict=True):
        torch.testing.assert_close(given, torch.full_like(given, value), atol=1e-6, rtol=0)
    assert not any(key.startswith("stem") for key in net.state_dict()), "published names stay as they are"
