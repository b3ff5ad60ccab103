"""Operations written in ones that all targets have: the same numbers as PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated import save_calibrated
from own_networks import check_in_targets, save_own
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from export.fourier import Spectrum
from export.parity import check_parity
from export.portable import Portable
from export.registry import get_target
from models.errors import ExportError
from models.spec import Precision

fft = torch.fft
WEIGHT = torch.complex(*torch.randn(2, 3, 3, 12, 8, generator=torch.Generator().manual_seed(1)))


def _lowest(x: Tensor) -> Tensor:
    """A Fourier layer: weights of the lowest bins, zeros elsewhere."""
    low = torch.zeros(2, 3, 12, 8, dtype=torch.cfloat)
    low[:, :, :4, :5] = torch.einsum("bixy,ioxy->boxy", fft.rfft2(x)[:, :, :4, :5], WEIGHT[:, :, :4, :5])
    return low


@pytest.fixture
def image() -> Tensor:
    """(2, 3, 12, 15) in [0, 1]."""
    return torch.rand(2, 3, 12, 15, generator=torch.Generator().manual_seed(0))


def rewritten(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function`` as it is traced."""
    with Portable():
        answer = function(*args)
    return torch.complex(answer.real, answer.imag) if isinstance(answer, Spectrum) else answer


@pytest.mark.parametrize("how", [(3, 1, 1, 1), ((4, 2), 1, (1, 0), (2, 3)), (4, 2, 3, 2), (4, 1, 0, 4)], ids=str)
def test_folding(how: tuple[Any, ...], image: Tensor) -> None:
    size = (16, 20)
    patches = F.unfold(torch.rand(2, 3, *size), *how)
    torch.testing.assert_close(rewritten(F.fold, patches, size, *how), F.fold(patches, size, *how))


@pytest.mark.parametrize("pad", [(1, 2, 3, 4), (0, 0, 1, 0), (3, -2, -1, 1)], ids=str)
def test_circular_padding(pad: tuple[int, ...], image: Tensor) -> None:
    def circular(x: Tensor) -> Tensor:
        return F.pad(x, pad, mode="circular")

    assert torch.equal(rewritten(circular, image), circular(image))


@pytest.mark.parametrize("how", [("constant", 0.5), ("reflect", None), ("replicate", None)], ids=str)
@pytest.mark.parametrize("pad", [(-1, 2, 3, -4), (-2, -2, -1, -1), (0, 0, 0, -3)], ids=str)
def test_padding_by_less_than_nothing_is_a_crop(
    pad: tuple[int, ...], how: tuple[str, float | None], image: Tensor
) -> None:
    def padded(x: Tensor) -> Tensor:
        return F.pad(x, pad, *how)

    expected = F.pad(
        image[..., max(-pad[2], 0) : 12 + min(pad[3], 0), max(-pad[0], 0) : 15 + min(pad[1], 0)],
        [max(side, 0) for side in pad],
        *how,
    )
    assert torch.equal(rewritten(padded, image), expected)
    seen: list[Any] = []

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.extend(args[1] if func is F.pad else [])
            return func(*args, **(kwargs or {}))

    with Seen(), Portable():
        padded(image)
    assert min(seen, default=0) >= 0


def test_an_instance_norm_with_running_statistics_uses_them(image: Tensor) -> None:
    norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval()
    assert norm.running_mean is not None
    norm.running_mean.fill_(0.5)
    torch.testing.assert_close(rewritten(norm, image), norm(image))
    plain = nn.InstanceNorm2d(3)
    torch.testing.assert_close(rewritten(plain, image), plain(image))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.var_mean(x, dim=1, keepdim=True)[0],
        lambda x: torch.var_mean(x, (2, 3), correction=0)[1],
        lambda x: torch.var_mean(x, unbiased=False)[0],
        lambda x: x.lerp(x * 2, 0.3),
        lambda x: nn.ChannelShuffle(3)(torch.cat([x, -x], 1)),
        lambda x: torch.cdist(x.flatten(2), -x.flatten(2)[:, :2]),
        lambda x: torch.sort(x, dim=1, stable=True)[0],
        lambda x: x.clamp(0, 1) + torch.clip(x, min=0, max=1),
        lambda x: x.unfold(2, 4, 3).unfold(-2, 5, 2),
        lambda x: x.movedim(1, -1).mT @ torch.moveaxis(x, (-1, 1), (2, 1)).mean(1, keepdim=True),
    ],
)
def test_single_functions(function: Callable[[Tensor], Tensor], image: Tensor) -> None:
    torch.testing.assert_close(rewritten(function, image), function(image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize(("mode", "volume"), [("bilinear", True), ("nearest", True), ("bicubic", False)])
def test_sampling_of_volumes_and_bicubic_sampling(
    mode: str, volume: bool, padding: str, align: bool, image: Tensor
) -> None:
    source = torch.stack([image, image * 2, image + 1], 2) if volume else image
    rng = torch.Generator().manual_seed(1)
    grid = torch.rand(2, *((2, 5, 7, 3) if volume else (5, 7, 2)), generator=rng) * 2.6 - 1.3
    expected = F.grid_sample(source, grid, mode, padding, align_corners=align)
    got = rewritten(lambda x: F.grid_sample(x, grid, mode, padding, align_corners=align), source)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


TRANSFORMS: list[Callable[[Tensor], Tensor]] = [
    lambda x: fft.fft2(x),
    lambda x: fft.rfft2(x, norm="ortho"),
    lambda x: fft.ifft2(fft.fft2(x) * 2),
    lambda x: fft.irfft2(fft.rfft2(x), s=(12, 15)),
    lambda x: fft.irfft2(fft.rfft2(x)),
    lambda x: fft.rfftn(x, dim=(-2, -1), norm="forward"),
    lambda x: fft.irfftn(fft.rfftn(x, s=(16, 10), dim=(2, 3)), s=(9, 20), dim=(2, 3), norm="ortho"),
    lambda x: fft.ifft(x, n=4, dim=2, norm="ortho"),
    lambda x: fft.irfft(x, n=7),
    lambda x: fft.fftn(x),
    lambda x: fft.ifftshift(fft.fftshift(fft.fft2(x), dim=(-2, -1)) * x, dim=(-2, -1)),
    lambda x: torch.polar(fft.rfft2(x).abs(), torch.angle(fft.rfft2(x))),
    lambda x: fft.rfft2(x) * torch.view_as_complex(torch.ones(12, 8, 2)) * 1j,
    lambda x: torch.view_as_real(fft.rfft2(x)),
    lambda x: torch.cat([fft.rfft2(x), 1 - fft.rfft2(x) / 2], 1)[:, 1:].mean(1),
    lambda x: -fft.rfft2(x).conj() / fft.rfft2(x + 1) + x[..., :8] - 2,
    lambda x: torch.roll(fft.rfft2(x), 1, 2).reshape(2, -1).chunk(2, 1)[0].real,
    lambda x: torch.matmul(fft.rfft2(x), WEIGHT[0].mT) + fft.rfft2(x) @ torch.ones(8, 12, dtype=torch.cfloat),
    lambda x: fft.irfft2(_lowest(x)),
]


@pytest.mark.parametrize("function", TRANSFORMS)
def test_fourier_transforms(function: Callable[[Tensor], Tensor], image: Tensor) -> None:
    torch.testing.assert_close(rewritten(function, image), function(image), atol=5e-5, rtol=1e-4)


def test_what_cannot_be_done_with_complex_values_is_named(image: Tensor) -> None:
    with pytest.raises(ExportError, match=r"operator exp on complex values: expected sums, .* got exp; fix: comp"):
        rewritten(lambda x: fft.fft2(x).exp(), image)
    with pytest.raises(ExportError, match="einsum on complex values: expected two tensors, got 3; fix: write one"):
        rewritten(lambda x: torch.einsum("bixy,ioxy,xy->boxy", fft.rfft2(x), WEIGHT, WEIGHT[0, 0]), image)


class Foreign(nn.Module):
    """What users write and targets lack."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(12, 8, 3, padding=1, padding_mode="circular")
        self.norm = nn.InstanceNorm2d(8, track_running_stats=True)
        self.waves = nn.Conv2d(16, 16, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat))
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(F.pixel_unshuffle(x, 2)))
        waves = fft.rfft2(y, norm="ortho")
        waves = waves + torch.einsum("bixy,io->boxy", waves, self.weight) / 8
        real, imag = self.waves(torch.cat([waves.real, waves.imag], 1)).relu().chunk(2, 1)
        colours = torch.stack([x[:, 0], x[:, 1], x[:, 2]], -1)[:, None, ::2, ::2] * 2 - 1
        table = F.grid_sample(y[:, :, :4, :4, None] * torch.ones(5), colours, align_corners=True)[:, :, 0]
        y = y + F.grid_sample(table, torch.tanh(y[:, :2]).permute(0, 2, 3, 1), mode="bicubic", align_corners=False)
        y = y + fft.irfft2(torch.complex(real, imag), s=y.shape[-2:], norm="ortho")
        y = F.fold(F.unfold(y, 4, stride=2, padding=1), y.shape[2:], 4, stride=2, padding=1)
        return self.out(F.interpolate(y, size=x.shape[2:], mode="bicubic"))


def test_every_target_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        ("onnx", Precision.FP32),
        ("openvino", Precision.FP32),
        ("coreml", Precision.FP32),
        ("coreml", Precision.FP16),
        ("tensorrt", Precision.FP16),
    ]
    check_in_targets(save_own(Foreign, tmp_path, monkeypatch), tmp_path, jobs, input_size=(32, 64))


class Sorting(nn.Module):
    """Pixels in the order of their category, a convolution along it, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.category, self.mix = nn.Conv2d(3, 8, 1), nn.Conv1d(3, 3, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.sort(self.category(x).argmax(1).flatten(1), dim=-1, stable=False)[1]
        back = torch.argsort(order, -1)
        tokens = self.mix(x.flatten(2).gather(2, order[:, None].expand(-1, 3, -1)))
        return tokens.gather(2, back[:, None].expand(-1, 3, -1)).reshape(x.shape)


@pytest.mark.parametrize("target", ["onnx", "openvino", "coreml"])
def test_equal_values_stay_in_their_order(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"coreml": "coremltools"}.get(target, target))
    source = save_own(Sorting, tmp_path, monkeypatch)
    row = get_target(target)
    made = row.load().export(source, tmp_path / f"s{row.suffix}", precision=Precision.FP32, input_size=(32, 32))
    assert check_parity(source, made, threads=1).passed


class Neighbours(nn.Module):
    """Sums of neighbours behind a quantized convolution without bias, weighted for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.weights = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(3, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.values(x), 3, padding=1).reshape(1, 8, 9, -1)
        weights = self.weights(x).softmax(1).reshape(1, 1, 9, -1)
        return (patches * weights).sum(2).reshape(1, 8, *x.shape[2:])[:, :3]


def test_quantized_values_are_looked_up_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    source = save_own(Neighbours, tmp_path, monkeypatch)
    start = save_calibrated(source, tmp_path, size=(32, 32), photos=2)
    made = (
        get_target("openvino")
        .load()
        .export(start, tmp_path / "n.openvino", precision=Precision.INT8, input_size=(32, 32))
    )
    assert check_parity(source, made, threads=1).passed
