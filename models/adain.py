"""AdaIN style transfer: features of a photo take on the mean and deviation of those of a style, and are decoded.

The style is baked in: its statistics, two numbers a channel, are buffers of the network (``bake``). An engine is then
one encoder and one decoder with one picture in, half the work of encoding the style each time, INT8 is calibrated for
the style that ships, and an app holds one file a style. The strength is an input of the graph: it blends features.

The published encoder is VGG-19 up to relu4_1 and is not trained. Without its weights (they are not ours to ship, and
there may be no network), training has two steps (``optimize.two_steps``): encoder and decoder learn to reproduce
photos, at strength 0; then the decoder alone learns the perceptual losses on the encoder's features, at strength 1
(content: distance to the wanted features; style: distance of mean and deviation at four levels), and goes on
reproducing. Styles are the other photos of a batch and the built-in pattern. Trained together, the features moved
under the losses: after as many steps the picture was a blur.

Source: Huang and Belongie 2017; names and shapes of naoto0804/pytorch-AdaIN (``vgg`` and ``decoder`` of net.py, here
``encoder.*`` and ``decoder.*``), recorded in tests/models/state_dicts/adain.json.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.controls import spread, unpack

_EPSILON = 1e-5
_TAPS = (3, 10, 17, 30)  # relu1_1, relu2_1, relu3_1, relu4_1
#: Channels of the convolutions in units of ``width``; 0 halves or doubles the resolution.
_ENCODER = (1, 1, 0, 2, 2, 0, 4, 4, 4, 4, 0, 8)
_DECODER = (4, 0, 4, 4, 4, 2, 0, 2, 1, 0, 1)
#: What the authors' files are called -> our part of the network.
_PUBLISHED = {"vgg_normalised": "encoder", "vgg": "encoder"}
_CONTENT_WEIGHT, _STYLE_WEIGHT, _REPRODUCTION_WEIGHT = 1.0, 3.0, 20.0


def _layers(before: int, plan: tuple[int, ...], width: int, resize: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for factor in plan:
        if not factor:
            layers.append(resize())
            continue
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(before, factor * width, 3), nn.ReLU()]
        before = factor * width
    return layers


class _Halve(nn.MaxPool2d):
    """Max pooling to half of the height and width."""

    def __init__(self) -> None:
        super().__init__(2)


class _Double(nn.Module):
    """Nearest upsampling to twice the height and width."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2H, 2W)."""
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel of (N, C, H, W): (N, C, 1, 1) each."""
    mean = features.mean(dim=(2, 3), keepdim=True)
    count = features.shape[2] * features.shape[3]
    variance = (features - mean).square().mean(dim=(2, 3), keepdim=True) * (count / max(count - 1, 1))
    return mean, (variance + _EPSILON).sqrt()


class AdaIN(nn.Module):
    """The network; see the module's docstring.

    Args:
        width: Channels of the finest level; the published network has 64.
    """

    first_step_trains_all = True
    style_mean: Tensor
    style_deviation: Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 3, 1), *_layers(3, _ENCODER, width, _Halve))
        last = [nn.ReflectionPad2d(1), nn.Conv2d(width, 3, 3)]
        self.decoder = nn.Sequential(*_layers(8 * width, _DECODER, width, _Double), *last)
        self.register_buffer("style_mean", torch.zeros(1, 8 * width, 1, 1))
        self.register_buffer("style_deviation", torch.ones(1, 8 * width, 1, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.eye_(self.encoder[0].weight.data.view(3, 3))  # type: ignore[operator,union-attr]

    def forward(self, input: Tensor, alpha: Tensor | None = None, target: Tensor | None = None) -> Any:
        """Photo (N, 3, H, W) and strength (N,) or (1,), or both packed (N, 4, H, W) -> (N, 3, H, W) in about [0, 1].

        H and W are multiples of 8. With ``target`` it returns the training losses instead.
        """
        if target is not None:
            return self.training_losses(input, target)
        if alpha is None:
            input, alpha = unpack(input, 1)
        return self.decoder(self._restyle(self.encoder(input), self.style_mean, self.style_deviation, alpha))

    def _restyle(self, features: Tensor, mean: Tensor, deviation: Tensor, alpha: Tensor) -> Tensor:
        """Move features (N, C, h, w) towards the style's statistics (N or 1, C, 1, 1) by the strength."""
        own_mean, own_deviation = statistics(features)
        styled = (features - own_mean) / own_deviation * deviation + mean
        return features + spread(alpha) * (styled - features)

    def tuning_parameters(self) -> list[nn.Parameter]:
        """Return what the second step trains."""
        return list(self.decoder.parameters())

    def training_losses(self, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` and its parts for packed photos (N, 4, H, W); at strength 0 that of reproduction alone."""
        photo, alpha = unpack(inputs, 1)
        features = self.encoder(photo)
        again = functional.l1_loss(self.decoder(features), photo)
        if not alpha.any():
            return {"loss": again, "again": again}
        styles = torch.roll(photo, 1, dims=0)
        styles = torch.cat([pattern(photo.shape[2:]).to(photo), styles[1:]])
        with torch.no_grad():
            taps = self._taps(styles)
            wanted = self._restyle(features, *statistics(taps[-1]), alpha)
        seen = self._taps(self.decoder(wanted))
        content = functional.mse_loss(seen[-1], wanted) / wanted.square().mean().clamp_min(_EPSILON)
        style = torch.stack([self._distance(a, b, alpha) for a, b in zip(seen, taps, strict=True)]).sum()
        loss = _CONTENT_WEIGHT * content + _STYLE_WEIGHT * style + _REPRODUCTION_WEIGHT * again
        return {"loss": loss, "content": content, "style": style, "again": again}

    def _taps(self, picture: Tensor) -> list[Tensor]:
        """Features at four levels."""
        found = []
        for index, layer in enumerate(self.encoder):
            picture = layer(picture)
            if index in _TAPS:
                found.append(picture)
        return found

    @staticmethod
    def _distance(painted: Tensor, style: Tensor, alpha: Tensor) -> Tensor:
        """Distance of the statistics, weighted by the strength, over their size."""
        mine, theirs = statistics(painted), statistics(style)
        size = theirs[0].square().mean() + theirs[1].square().mean() + _EPSILON
        apart = (mine[0] - theirs[0]).square() + (mine[1] - theirs[1]).square()
        return (spread(alpha) * apart).mean() / size

    @torch.no_grad()
    def bake(self, style: Tensor) -> AdaIN:
        """Take on the style of a picture (1, 3, H, W) in [0, 1], sides multiples of 8; return the network."""
        mean, deviation = statistics(self.encoder(style))
        self.style_mean.copy_(mean)
        self.style_deviation.copy_(deviation)
        return self

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename what the authors publish, a folder with ``vgg_normalised.pth`` and ``decoder.pth``.

        Layers of VGG behind relu4_1 are left out. Where no style is stored, the built-in one is baked.
        """
        renamed = {}
        for key, value in state.items():
            part, _, rest = key.partition(".")
            index, part = rest.partition(".")[0], _PUBLISHED.get(part, part)
            if part != "encoder" or not index.isdigit() or int(index) <= _TAPS[-1]:
                renamed[f"{part}.{rest}" if rest else part] = value
        own = {key: value.shape for key, value in self.state_dict().items() if key.startswith("encoder.")}
        if "style_mean" not in renamed and all(key in renamed and renamed[key].shape == own[key] for key in own):
            net = copy.deepcopy(self)
            net.encoder.load_state_dict({key.partition(".")[2]: renamed[key].float() for key in own})
            made, _ = net.finished()
            renamed.update({"style_mean": made.style_mean, "style_deviation": made.style_deviation})
        return renamed

    def finished(self) -> tuple[AdaIN, dict[str, Any]]:
        """Return the network with the built-in style baked in, as training saves it."""
        return self.bake(pattern((256, 256)).to(self.style_mean)), {}


def pattern(size: tuple[int, ...] | torch.Size) -> Tensor:
    """Return the built-in style (1, 3, H, W) in [0, 1]: bent stripes of ink blue, ochre and white."""
    rows, columns = (torch.linspace(0, side / 32, side) for side in size[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    wave = torch.sin(2 * math.pi * (x + 0.6 * torch.sin(1.3 * y)) / 1.7)
    other = torch.sin(2 * math.pi * (y + 0.5 * torch.cos(0.9 * x)) / 2.3)
    inks = torch.tensor([[0.08, 0.16, 0.45], [0.85, 0.62, 0.15], [0.95, 0.94, 0.9]])
    shares = torch.softmax(4 * torch.stack([wave, other, -wave - other]), dim=0)
    return torch.einsum("khw,kc->chw", shares, inks)[None].clamp(0, 1)


def adain(width: int = 64) -> AdaIN:
    """Build the network with random weights and no style."""
    return AdaIN(width)
