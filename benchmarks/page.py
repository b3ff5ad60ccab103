"""``index.html``: the report as one self-contained page; style, script, plots and pictures are inside of the file."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template

from benchmarks.front import marker
from benchmarks.level_chart import caption, head, lines
from benchmarks.markup import definitions, note, plain_table, tag
from benchmarks.page_pictures import pictures
from benchmarks.page_tables import artifacts, status, walk
from benchmarks.screens import HEAD as SCREENS_HEAD
from benchmarks.shell import wrap
from benchmarks.view import View, number, short, times

_HERE = Path(__file__).parent
_FOOTER = (
    "Made by <code>python -m benchmarks</code>. The numbers are in <code>report.json</code>, with every raw sample."
)


def page(view: View, pictures_from: Path) -> str:
    """Render the report as HTML.

    Args:
        view: What it says.
        pictures_from: Folder that the picture files of the report are relative to.
    """
    main = Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        cards=_cards(view),
        notes="".join(note(text) for text in view.notes()),
        plots=_plots(view),
        artifacts=artifacts(view),
        ways=walk(view),
        levels=_levels(view),
        screens=_screens(view),
        pictures=pictures(view.content.get("pictures") or [], pictures_from),
        extremes=_extremes(view),
        unmeasured=_unmeasured(view),
        stages=_stages(view),
        machine=_machine(view),
        recipe=escape(json.dumps(view.content.get("recipe", {}), indent=2)),
    )
    return wrap(main, brand="Pare report", title=view.title(), subtitle=view.subtitle(), footer=_FOOTER)


def _cards(view: View) -> str:
    one = view.headline
    if one is None:
        return note("No artifact can be compared with a teacher here; the reasons are below.")
    row, teacher = one.row, one.teacher
    noisy = " (noisy)" if one.is_noisy else ""
    floor = view.baseline.get("lpips")
    idle = f"; doing nothing {number(floor, 4)}" if floor is not None else ""
    cards = (
        (
            times(row.speedup),
            "faster than the teacher",
            f"{_ms(teacher.latency_p50_ms)} to {_ms(row.latency_p50_ms)}, engine only{noisy}",
        ),
        (
            number(one.lpips_cost, 4, sign=True),
            f"LPIPS-{row.lpips_net}",
            f"{number(teacher.distance, 4)} to {number(row.distance, 4)}{idle}",
        ),
        (
            _ms(row.end_to_end_p50_ms),
            "photo to photo",
            f"the teacher {_ms(teacher.end_to_end_p50_ms)}; with colour conversion and rendering",
        ),
        (
            f"{short(row.size_mb)} MB",
            "on disk",
            f"the teacher {short(teacher.size_mb)} MB; {short(row.params_m)} of {short(teacher.params_m)} M parameters",
        ),
    )
    body = []
    for index, (big, what, small) in enumerate(cards):
        kind = "card over" if index == 1 and not one.within_limit else "card"
        parts = (tag("b", escape(big)), tag("span", escape(what)), tag("small", escape(small)))
        body.append(tag("div", *parts, class_=kind))
    which = tag("p", marker(row.target, row.precision, size=16), " ", escape(row.label), class_="which")
    return which + tag("div", *body, class_="cards")


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{short(value)} ms"


def _plots(view: View) -> str:
    figures = []
    for (_, svg), title in zip(view.plots(), view.plot_titles(), strict=True):
        caption = tag("figcaption", escape(title)) if len(view.groups) > 1 else ""
        figures.append(tag("figure", svg, caption))
    return "".join(figures)


def _extremes(view: View) -> str:
    lines = [
        (one.row.label, one.worst, number(one.worst_lpips, 4), one.slowest, times(one.slowest_ratio))
        for one in view.extremes()
    ]
    if not lines:
        return note("No photo was measured.")
    return plain_table(("Artifact", "Worst photo", "its LPIPS", "Slowest photo", "over the median"), lines)


def _unmeasured(view: View) -> str:
    items = [
        tag("li", status(rows[0].status), " ", tag("b", escape(", ".join(r.label for r in rows))), " ", escape(reason))
        for rows, reason in view.unmeasured()
    ]
    counted = ", ".join(view.content.get("not_counted", []))
    if counted:
        words = f" leave out what is neither a convolution nor a matrix product: {escape(counted)}"
        items.append(tag("li", tag("b", "GMACs"), words))
    skipped = (view.content.get("photos") or {}).get("skipped", [])
    if skipped:
        names = "; ".join(f"{one['photo']}: {one['reason']}" for one in skipped[:20])
        more = f"; and {len(skipped) - 20} more" if len(skipped) > 20 else ""
        items.append(tag("li", tag("b", f"Files left out: {len(skipped)}"), f" {escape(names)}{more}"))
    return tag("ul", *items, class_="reasons") if items else note("Nothing.")


def _levels(view: View) -> str:
    if not view.levels:
        return ""
    control, plot = view.levels["control"], view.level_plot()
    parts = [tag("h2", "Quality by level")]
    if plot is not None:
        parts.append(tag("figure", plot))
        parts.append(tag("p", escape(caption(control, view.levels["lpips_net"])), class_="hint"))
        parts.append(plain_table(head(view.curves, control), lines(view.curves)))
    parts += [tag("p", escape(text), class_="hint") for text in view.level_notes()]
    return tag("section", *parts, id="levels")


def _screens(view: View) -> str:
    found = view.screens()
    if not found:
        return ""
    hint = "Found on photos before export: what FP16 cannot hold, and operators that engines run slowly."
    body = plain_table(SCREENS_HEAD, [line.cells() for line in found])
    return tag("section", tag("h2", "Screens"), tag("p", hint, class_="hint"), body, id="screens")


def _stages(view: View) -> str:
    lines = [
        (str(stage.get("stage", "")), f"{short(stage.get('seconds'))} s", str(stage.get("note") or ""))
        for stage in view.content.get("stages") or []
    ]
    return tag("h3", "Stages") + plain_table(("Stage", "Time", "Note"), lines) if lines else ""


def _machine(view: View) -> str:
    machines = view.content.get("machines") or {"": view.machine}
    parts = [definitions(machine.items()) for machine in machines.values()]
    settings = view.content.get("settings") or {}
    if settings:
        parts += [tag("h3", "Settings"), definitions(settings.items())]
    return "".join(parts)
