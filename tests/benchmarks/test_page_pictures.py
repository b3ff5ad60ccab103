"""Pictures inside of a page."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.page_pictures import pictures


@pytest.mark.parametrize("size", [64, 512])
def test_noise_fits_into_the_page(tmp_path: Path, size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    tiles = [{"label": label, "file": "noise.png", "lpips": None, "also": []} for label in ("Input", "Teacher")]
    page = pictures([{"photo": "dark.dng", "why": "worst", "tiles": tiles}], tmp_path)
    (data,) = set(re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page))
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (size, size)
        assert np.abs(np.asarray(image).astype(int) - noise).mean() < 30
