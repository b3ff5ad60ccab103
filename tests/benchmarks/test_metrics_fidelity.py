"""PSNR, SSIM and MS-SSIM against scikit-image and a numpy calculation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import metrics as skimage_metrics

from benchmarks.metrics import ms_ssim, psnr, ssim


def images(height: int = 48, width: int = 65, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((2, 3, height, width)), (0, 0, 3, 3))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    noisy = np.clip(smooth + noise * rng.standard_normal(smooth.shape), 0, 1)
    return torch.from_numpy(noisy).float(), torch.from_numpy(smooth).float()


def test_psnr_equals_skimage() -> None:
    preds, target = images()
    for index, value in enumerate(psnr(preds, target)):
        wanted = skimage_metrics.peak_signal_noise_ratio(
            target[index].double().numpy(), preds[index].double().numpy(), data_range=1.0
        )
        assert float(value) == pytest.approx(wanted, abs=1e-5)


def test_psnr_by_hand() -> None:
    assert psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)).item() == pytest.approx(20, abs=1e-5)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_ssim_equals_skimage(noise: float) -> None:
    preds, target = images(noise=noise)
    for index, value in enumerate(ssim(preds, target)):
        wanted = skimage_metrics.structural_similarity(
            target[index].double().numpy(),
            preds[index].double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=0,
        )
        assert float(value) == pytest.approx(wanted, abs=1e-6)


def ms_ssim_of_a_channel(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Wang 2003, written apart: scipy's filters on whole images, cut where the window does not fit."""

    def mean(image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(image, 1.5, truncate=3.5))[5:-5, 5:-5]

    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        m1, m2 = mean(first), mean(second)
        v1, v2, cov = mean(first**2) - m1**2, mean(second**2) - m2**2, mean(first * second) - m1 * m2
        part = (2 * cov + 0.0009) / (v1 + v2 + 0.0009)
        if scale == 4:
            part = part * (2 * m1 * m2 + 0.0001) / (m1**2 + m2**2 + 0.0001)
        result *= max(part.mean(), 0.0) ** weight
        rows, columns = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
        first, second = (
            x[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3)) for x in (first, second)
        )
    return result


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ms_ssim_equals_a_numpy_calculation(noise: float) -> None:
    preds, target = images(177, 190, noise)
    for index, value in enumerate(ms_ssim(preds, target)):
        channels = zip(preds[index].double().numpy(), target[index].double().numpy(), strict=True)
        wanted = np.mean([ms_ssim_of_a_channel(first, second) for first, second in channels])
        assert float(value) == pytest.approx(wanted, abs=1e-6)


def test_flat_images_have_the_ssim_of_their_luminance() -> None:
    value = ssim(torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.4)).item()
    assert value == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), abs=1e-6)
