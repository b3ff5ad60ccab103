"""PSNR, SSIM and multi-scale SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.metrics.checks import check_pair, precise

WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_MS_SSIM_SMALLEST = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)


def psnr(preds: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 1; infinite for equal images.

    Args:
        preds: (N, 3, H, W) sRGB in [0, 1].
        target: The same shape.

    Returns:
        (N,), higher is better.

    Raises:
        ConfigError: Shape, type or range is another one.
    """
    check_pair(preds, target, metric="psnr")
    first, second = precise(preds, target)
    return (-10 * torch.log10((first - second).square().mean(dim=(1, 2, 3)))).to(torch.float32)


def _gaussian_mean(images: Tensor) -> Tensor:
    """Average (N, C, H, W) under the Gaussian window, where it fits: (N, C, H - 10, W - 10).

    Two matrix products: torch has no fast convolution of float64 on a processor (twice as long at 256x256).
    """
    rows, columns = (_bands(images.shape[dim], images) for dim in (2, 3))
    return rows @ images @ columns.T


def _bands(size: int, like: Tensor) -> Tensor:
    """Return the matrix (size - 10, size) whose rows are the shifted Gaussian window."""
    offsets = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    bands = like.new_zeros(size - WINDOW + 1, size)
    for index, weight in enumerate(window / window.sum()):
        bands.diagonal(index).fill_(float(weight))
    return bands


def similarity(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM and its contrast-structure part, (N, C) each, averaged over the image; differentiable.

    Args:
        first: (N, C, H, W) in [0, 1], any number of channels, sides of 11 or more.
        second: The same shape.
    """
    moments = _gaussian_mean(torch.cat((first, second, first * first, second * second, first * second)))
    mean1, mean2, square1, square2, product = moments.chunk(5)
    variance1, variance2, covariance = square1 - mean1**2, square2 - mean2**2, product - mean1 * mean2
    structure = (2 * covariance + _C2) / (variance1 + variance2 + _C2)
    luminance = (2 * mean1 * mean2 + _C1) / (mean1**2 + mean2**2 + _C1)
    return (luminance * structure).mean(dim=(2, 3)), structure.mean(dim=(2, 3))


def ssim(preds: Tensor, target: Tensor) -> Tensor:
    """Structural similarity: Gaussian window 11x11, sigma 1.5, K1 0.01, K2 0.03, mean over pixels and channels.

    The same as ``skimage.metrics.structural_similarity`` with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1``. Source: Wang et al. 2004, doi 10.1109/TIP.2003.819861.

    Args:
        preds: (N, 3, H, W) sRGB in [0, 1], sides of 11 or more.
        target: The same shape.

    Returns:
        (N,) in [-1, 1], higher is better.

    Raises:
        ConfigError: Shape, type or range is another one.
        InputSizeError: A side below 11.
    """
    check_pair(preds, target, smallest=WINDOW, metric="ssim")
    return similarity(*precise(preds, target))[0].mean(dim=1).to(torch.float32)


def ms_ssim(preds: Tensor, target: Tensor) -> Tensor:
    """Multi-scale SSIM over five scales, halved by 2x2 averages; an odd last row or column is dropped.

    Per channel, negative parts set to 0, then the mean over channels. Source: Wang et al. 2003, doi
    10.1109/ACSSC.2003.1292216.

    Args:
        preds: (N, 3, H, W) sRGB in [0, 1], sides of 176 or more.
        target: The same shape.

    Returns:
        (N,) in [0, 1], higher is better.

    Raises:
        ConfigError: Shape, type or range is another one.
        InputSizeError: A side below 176: the coarsest scale would be smaller than the window.
    """
    check_pair(preds, target, smallest=_MS_SSIM_SMALLEST, metric="ms_ssim")
    first, second = precise(preds, target)
    result = torch.ones_like(first[:, :, 0, 0])
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            first, second = functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2)
        whole, structure = similarity(first, second)
        part = whole if scale == len(SCALE_WEIGHTS) - 1 else structure
        result = result * part.clamp_min(0) ** weight
    return result.mean(dim=1).to(torch.float32)
