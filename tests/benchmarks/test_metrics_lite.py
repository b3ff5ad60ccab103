"""The shipped ``lite`` net: small, a distance, and close to the official net on photos it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import stats

from benchmarks.metrics import load_lpips, lpips
from benchmarks.metrics.distortions import CHROMA_KINDS, HELD_OUT, TRAINED
from benchmarks.metrics.lite_judging import NO_CHROMA, Comparison, compare_nets, report, spearman, summarize
from benchmarks.metrics.lpips_weights import LITE_FILE
from models.artifact import sha256_of, sidecar_of
from models.photos import centre_square, embedded_photos, open_photos, to_batch

ALL_KINDS = {**TRAINED, **HELD_OUT}


def photos(size: int) -> torch.Tensor:
    found = embedded_photos("eval")
    return to_batch([centre_square(found.load(index), size) for index in range(2)])


class TestShippedFile:
    def test_is_half_precision_and_small(self) -> None:
        with safe_open(LITE_FILE, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a mapping
        assert {tensor.dtype for tensor in tensors} == {torch.float16}
        assert sum(tensor.numel() for tensor in tensors) <= 500_000
        assert LITE_FILE.stat().st_size <= 1_000_000

    def test_card_is_of_this_file_and_meets_the_target(self) -> None:
        card = json.loads(sidecar_of(LITE_FILE).read_text(encoding="utf-8"))
        assert card["sha256"] == sha256_of(LITE_FILE)
        for part in ("all", "size_256", "size_128", "held_out_kinds", "colour_kinds", "close_pairs"):
            assert card["figures"][part]["spearman"] >= 0.98, part
            assert card["figures"][part]["mae"] <= 0.01, part
        assert set(card["figures"]["by_kind"]) == {NO_CHROMA, *ALL_KINDS}

    def test_heads_are_not_negative(self) -> None:
        assert all((head >= 0).all() for head in load_lpips("lite").heads)


class TestDistance:
    def test_is_zero_for_equal_images_and_symmetric(self) -> None:
        first, second = photos(96)[:1], photos(96)[1:]
        assert lpips(first, first).item() == pytest.approx(0, abs=1e-7)
        assert lpips(first, second).item() == pytest.approx(lpips(second, first).item(), rel=1e-5)
        assert lpips(first, second).item() > 0.2

    @pytest.mark.parametrize("size", [(64, 64), (65, 131), (256, 96)])
    def test_takes_any_size_from_64(self, size: tuple[int, int]) -> None:
        photo = torch.nn.functional.interpolate(photos(128), size, mode="area")
        assert (lpips(photo, photo.mean(dim=1, keepdim=True).expand_as(photo)) > 0.01).all()

    @pytest.mark.parametrize("kind", ["desaturate", "blur", "noise", "jpeg", "chroma_swap"])
    def test_grows_with_the_distortion(self, kind: str) -> None:
        photo, other = photos(96)
        strengths = (0.1, 0.4, 1.0)
        versions = [ALL_KINDS[kind](photo, strength, np.random.default_rng(0), other) for strength in strengths]
        values = lpips(torch.stack(versions), photo.expand(3, -1, -1, -1)).tolist()
        assert values == sorted(values)
        assert values[0] > 0

    def test_gradient_descent_on_it_brings_an_image_closer(self) -> None:
        metric, target = load_lpips("lite"), photos(64)[:1]
        image = target.mean(dim=1, keepdim=True).repeat(1, 3, 1, 1).requires_grad_()
        optimizer = torch.optim.Adam([image], lr=0.02)
        before = metric(image, target).item()
        for _ in range(4):
            optimizer.zero_grad()
            metric(image, target).sum().backward()
            optimizer.step()
        assert metric(image, target).item() < 0.9 * before


def test_agrees_with_squeeze_on_photos_and_kinds_it_has_not_seen(pare_data: Path) -> None:
    chosen = open_photos(pare_data / "photos_val").sample(3, seed=0)
    official = load_lpips("squeeze", pare_data / "lpips")
    rows = compare_nets(load_lpips("lite"), official, chosen, sizes=(128,))
    assert len(rows) == 3 * (2 * len(ALL_KINDS) + 1)
    for part in (rows, [row for row in rows if row.kind.removesuffix("-small") in HELD_OUT]):
        summary = summarize(part)
        assert summary["spearman"] >= 0.98
        assert summary["mae"] <= 0.01


class TestJudging:
    def test_spearman_equals_scipy(self) -> None:
        first, noise = np.random.default_rng(0).random((2, 200))
        assert spearman(first, first + noise) == pytest.approx(stats.spearmanr(first, first + noise).statistic)

    def test_summary_by_hand(self) -> None:
        rows = [
            Comparison("blur", 128, 0.1, 0.2),
            Comparison("blur", 128, 0.4, 0.3),
            Comparison("noise", 128, 0.5, 0.5),
        ]
        summary = summarize(rows)
        assert summary["mae"] == pytest.approx(0.2 / 3, abs=1e-5)
        assert summary["bias"] == 0
        assert summary["spearman"] == 1
        assert summary["mean_official"] == pytest.approx(1 / 3, abs=1e-5)

    def test_report_keeps_held_out_and_colour_kinds_apart(self) -> None:
        rng = np.random.default_rng(0)
        rows = [
            Comparison(kind + end, size, *rng.random(2))
            for kind in ALL_KINDS
            for end in ("", "-small")
            for size in (128, 256)
        ] + [Comparison(NO_CHROMA, 128, *rng.random(2)) for _ in range(4)]
        content = report(rows)
        assert content["all"]["pairs"] == 4 * len(ALL_KINDS) + 4
        assert content["held_out_kinds"]["pairs"] == 4 * len(HELD_OUT)
        assert content["colour_kinds"]["pairs"] == 4 * len(CHROMA_KINDS)
        assert content["close_pairs"]["pairs"] == 2 * len(ALL_KINDS)
        assert sum(part["pairs"] for part in content["by_distance"].values()) == 4 * len(ALL_KINDS) + 4
