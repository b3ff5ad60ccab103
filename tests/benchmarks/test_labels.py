"""Labels: none covers another one, or a point."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.labels import Box, place_labels, spread, text_width


def test_overlap_and_outside() -> None:
    one, two = Box(0, 0, 10, 10), Box(5, 8, 20, 20)
    assert one.overlap(two) == 10.0
    assert one.overlap(Box(10, 0, 20, 10)) == 0.0
    assert two.outside(Box(0, 0, 10, 100)) == 10 * 12


def test_no_label_covers_anything() -> None:
    rng = np.random.default_rng(3)
    points = [(float(x), float(y)) for x, y in rng.uniform(80, 500, (14, 2))]
    points += [(300.0, 300.0), (302.0, 301.0), (299.0, 303.0)]  # a heap
    widths = [text_width("Pruned · OpenVINO FP32 40.4x", 12)] * len(points)
    frame, line = Box(0, 0, 800, 600), Box(0, 250, 800, 252)
    labels = place_labels(points, widths, order=range(len(points)), frames=[frame] * len(points), obstacles=[line])
    boxes = [label.box for label in labels if label is not None]
    assert len(boxes) >= 14
    for index, box in enumerate(boxes):
        assert box.outside(frame) == 0
        assert box.overlap(line) == 0
        assert all(box.overlap(other) == 0 for other in boxes[:index])
        own = labels.index(next(label for label in labels if label is not None and label.box is box))
        for other, (x, y) in enumerate(points):
            assert other == own or box.overlap(Box(x - 8, y - 8, x + 8, y + 8)) == 0


def test_no_room_gives_no_label() -> None:
    assert place_labels([(5.0, 5.0)], [400.0], order=[0], frames=[Box(0, 0, 50, 50)]) == [None]


def test_widths_grow_with_text_and_size() -> None:
    assert text_width("mmm", 12) > text_width("iii", 12)
    assert text_width("abc", 24) == 2 * text_width("abc", 12)
    assert text_width("abc", 12, bold=True) > text_width("abc", 12)


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([], []),
        ([50.0], [50.0]),
        ([10.0, 40.0, 80.0], [10.0, 40.0, 80.0]),
        ([50.0, 50.0, 50.0], [40.0, 50.0, 60.0]),
        ([0.0, 0.0], [0.0, 10.0]),
        ([98.0, 99.0], [90.0, 100.0]),
    ],
)
def test_heights_are_spread_as_little_as_needed(heights: list[float], expected: list[float]) -> None:
    assert spread(heights, 10.0, 0.0, 100.0) == pytest.approx(expected)


def test_more_heights_than_room_share_it() -> None:
    places = spread([90.0] * 21, 10.0, 0.0, 100.0)
    assert np.diff(places) == pytest.approx([5.0] * 20)
    assert (min(places), max(places)) == pytest.approx((0.0, 100.0))


def test_random_heights_never_touch_nor_leave() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        places = spread(sorted(rng.uniform(0, 100, 9).tolist()), 10.0, 0.0, 100.0)
        assert min(np.diff(places)) >= 10.0 - 1e-9
        assert min(places) >= -1e-9
        assert max(places) <= 100.0 + 1e-9
