"""The tables of the page: artifacts, sortable, and the way from the teacher to each of them."""

from __future__ import annotations

from html import escape

from benchmarks.front import marker
from benchmarks.markup import note, tag
from benchmarks.row import BenchmarkRow
from benchmarks.view import View, number, short, times
from benchmarks.walk import Step, Way

_STATUS = {"measured": "ok", "built": "idle", "unsupported": "idle", "failed": "bad"}
_SEEN = 5e-5  # what shows in four decimals
_NOISY = "noisy: quartiles further apart than 10% of the median"
_BEFORE_OWN = ("Colour", False)
_COLUMNS = (
    ("LPIPS", False),
    ("+ teacher", False),
    ("to teacher", True),
    ("worst", True),
    ("PSNR dB", False),
    ("SSIM", False),
    ("MS-SSIM", True),
    ("ΔE2000", True),
    _BEFORE_OWN,
    ("p50 ms", False),
    ("p95 ms", False),
    ("Speedup", False),
    ("Photo to photo ms", False),
    ("Images/s", True),
    ("Load ms", True),
    ("First call ms", True),
    ("Peak MB", True),
    ("Params M", True),
    ("GMACs", True),
    ("Size MB", False),
)


def status(word: str) -> str:
    """Write a status as a coloured pill."""
    return tag("i", escape(word), class_=f"status {_STATUS[word]}")


def artifacts(view: View) -> str:
    """Write head and body of the table of artifacts; every second column waits for "all columns"."""
    names = (("Artifact", False), *_columns(view), ("Status", False))
    head = (
        tag("th", tag("button", escape(name), type="button"), scope="col", class_="more" if more else None)
        for name, more in names
    )
    return tag("thead", tag("tr", *head)) + tag("tbody", *(_artifact(view, row) for row in view.rows))


def _artifact(view: View, row: BenchmarkRow) -> str:
    words = tag("span", escape(row.stage_name), tag("small", escape(row.engine_name)))
    name = tag("div", marker(row.target, row.precision), words)
    cells = [tag("th", name, scope="row", data_v=row.label)]
    for (_, more), (text, value) in zip(_columns(view), _values(view, row), strict=True):
        cells.append(tag("td", text, class_="more" if more else None, data_v="" if value is None else value))
    cells.append(tag("td", status(row.status), data_v=row.status, title=row.reason))
    return tag("tr", *cells, class_="teacher" if row.is_teacher else None)


def _columns(view: View) -> list[tuple[str, bool]]:
    """Return name, and whether it waits for "all columns", of each column."""
    place = _COLUMNS.index(_BEFORE_OWN) + 1
    return [*_COLUMNS[:place], *((name, False) for name in view.own_metrics), *_COLUMNS[place:]]


def _values(view: View, row: BenchmarkRow) -> list[tuple[str, float | None]]:
    """Return the markup and the sorting value of each column."""
    cost = None if row.is_teacher else view.lpips_cost(row)
    noisy = " " + tag("abbr", "~", title=_NOISY) if row.latency_is_noisy else ""
    net = " " + tag("small", escape(row.lpips_net)) if row.lpips_net else ""
    return [
        (number(row.lpips, 4) + net, row.lpips),
        (number(cost, 4, sign=True), cost),
        (number(row.lpips_vs_teacher, 4), row.lpips_vs_teacher),
        (number(row.lpips_worst, 4), row.lpips_worst),
        (number(row.psnr_db, 2), row.psnr_db),
        (number(row.ssim, 4), row.ssim),
        (number(row.ms_ssim, 4), row.ms_ssim),
        (number(row.delta_e, 2), row.delta_e),
        (number(row.colourfulness_ratio, 2), row.colourfulness_ratio),
        *((number(row.own_metrics.get(name), 4), row.own_metrics.get(name)) for name in view.own_metrics),
        (short(row.latency_p50_ms) + noisy, row.latency_p50_ms),
        (short(row.latency_p95_ms), row.latency_p95_ms),
        (tag("b", times(row.speedup)), row.speedup),
        (short(row.end_to_end_p50_ms), row.end_to_end_p50_ms),
        (short(row.images_per_s), row.images_per_s),
        (short(row.load_ms), row.load_ms),
        (short(row.first_inference_ms), row.first_inference_ms),
        (short(row.peak_rss_mb), row.peak_rss_mb),
        (short(row.params_m), row.params_m),
        (short(row.gmacs), row.gmacs),
        (short(row.size_mb), row.size_mb),
    ]


def walk(view: View) -> str:
    """Write one table a target: what each step cost in LPIPS and gained in time."""
    found = view.ways()
    if not found:
        return note("There is no way to show: no teacher, or nothing made from it.")
    costs = [abs(step.lpips_cost) for way in found for step in way.steps if step.lpips_cost is not None]
    worst = max(costs, default=0.0) or 1.0
    return "".join(_way(way, worst) for way in found)


def _way(way: Way, worst: float) -> str:
    slowest = max((step.row.latency_p50_ms or 0.0 for step in way.steps), default=0.0) or 1.0
    first, last = way.steps[0].row, way.row
    total = None if first.distance is None or last.distance is None else last.distance - first.distance
    whole = "not timed here"
    if first.latency_p50_ms is not None and last.latency_p50_ms is not None:
        whole = f"{times(first.latency_p50_ms / last.latency_p50_ms)} faster"
    summary = tag("span", f"{whole}, LPIPS {number(total, 4, sign=True)}")
    title = tag("h3", marker(last.target, last.precision, size=16), escape(last.engine_name), summary)
    names = ("Step", f"LPIPS-{last.lpips_net}", "cost", "", "p50 ms", "ms saved", "faster", "")
    head = tag("thead", tag("tr", *(tag("th", escape(name)) for name in names)))
    body = tag("tbody", *(_step(step, worst, slowest) for step in way.steps))
    return tag("article", title, tag("div", tag("table", head, body), class_="scroll"), class_="way")


def _step(step: Step, worst: float, slowest: float) -> str:
    latency = step.row.latency_p50_ms
    lost = spent = ""
    if step.lpips_cost is not None and abs(step.lpips_cost) >= _SEEN:
        lost = _bar("gain" if step.lpips_cost < 0 else "loss", abs(step.lpips_cost) / worst)
    if latency is not None:
        spent = _bar("time", latency / slowest)
    what = "Teacher, PyTorch" if step.what == "start" else step.what[0].upper() + step.what[1:]
    return tag(
        "tr",
        tag("th", escape(what)),
        tag("td", number(step.row.distance, 4)),
        tag("td", number(step.lpips_cost, 4, sign=True)),
        tag("td", lost, class_="track"),
        tag("td", short(latency)),
        tag("td", number(step.ms_gained, 2)),
        tag("td", times(step.factor)),
        tag("td", spent, class_="track"),
    )


def _bar(kind: str, part: float) -> str:
    return tag("i", class_=f"bar {kind}", style=f"width:{100 * part:.1f}%")
