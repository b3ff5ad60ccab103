"""The comparison of the ways to balance a photo, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.balance import WAYS, _measure, compare_ways
from benchmarks.cli import main
from models.errors import ConfigError
from models.photos import centre_crop, embedded_photos


@pytest.mark.parametrize("way", sorted(WAYS))
def test_every_way_repeats_and_is_measured(way: str) -> None:
    photo = centre_crop(embedded_photos("eval").load(0), 96, 128)
    row, pictures = _measure(way, [photo], "lite")
    assert row.way == way
    assert row.repeats
    assert row.delta_e > 0
    assert row.lpips > 0
    assert min(row.fit_s, row.apply_s, row.memory_mb) >= 0
    assert [picture.shape for picture in pictures] == [(96, 128, 3)]


def test_the_command_writes_figures_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"nothing": WAYS["nothing"], "student, lut": WAYS["student, lut"]}
    monkeypatch.setattr("benchmarks.balance.WAYS", kept)
    assert main(["balance", "-o", str(tmp_path), "--limit", "1", "--size", "64", "96", "--json", "--quiet"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "balance.json").read_text()) == answer
    assert [row["way"] for row in answer["rows"]] == list(kept)
    assert Image.open(tmp_path / "balance.png").size == (2 * 96, 64)


def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="64 pixels and one photo at least"):
        compare_ways(embedded_photos("eval"), tmp_path, size=(32, 64))
