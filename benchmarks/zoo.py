"""Every registered teacher at a small budget through the whole path, one table of all of them.

The folder of a zoo::

    zoo.json zoo.md index.html   the table, with pictures
    pictures/                    a photo a model: input, doing nothing, teacher, what is shipped
    models/NAME/train/           the teacher, trained here (``python -m optimize train``)
    models/NAME/run/             everything after it, with its own report (``python -m optimize run``)
    models/NAME/*.log            what the two said
    models/NAME/row.json         the finished row

Models are rows of the registry; nothing here knows one by name. The two commands run in processes of their own, so
that what stops one model does not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.zoo_commands import Budget, crop_gmacs, run_command, train_command, trains_here
from benchmarks.zoo_process import call
from benchmarks.zoo_table import ZooRow, failed_row, row_of
from export.registry import list_targets
from models.artifact import write_json
from models.errors import ConfigError, PareError, UnknownNameError, explain
from models.progress import NULL_PROGRESS, Bar, Progress
from models.registry import MODELS, get_spec
from models.spec import check_threads

SCHEMA = 1
#: What a model takes beside its budget (exports, measurements), seconds: the first guess of the ETA.
_BESIDE_S = 90.0


@dataclass(frozen=True)
class ZooConfig:
    """What runs, and how much of it.

    Attributes:
        models: Registry names of teachers, or ``package.module:factory``; none: every teacher of the registry.
        minutes: Training time of a model: half for the teacher, half for the stages after it. Exports and measurements
            come on top.
        own_minutes: Model -> its own training time, where it takes more or less.
        data: What ``--data`` of ``python -m optimize`` takes; None: the embedded sample photos.
        input_size: Height and width of the inputs, pixels; a model that cannot take it gets the next size that it can.
        targets: Names of targets; none: all.
        threads: Of training and of each engine; None: their default.
        seed: Of everything random.
        from_scratch: Train teachers that ship with weights too, from random weights; else they are used as shipped.
        settings: ``KEY=VALUE`` of the recipe for both commands, over everything else.

    Raises:
        ConfigError: A budget that is not positive, or sizes that are none.
        UnknownNameError: No such teacher or target.
    """

    models: tuple[str, ...] = ()
    minutes: float = 2.0
    own_minutes: Mapping[str, float] = field(default_factory=dict)
    data: str | None = None
    input_size: tuple[int, int] = (256, 256)
    targets: tuple[str, ...] = ()
    threads: int | None = None
    seed: int = 0
    from_scratch: bool = False
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for minutes in (self.minutes, *self.own_minutes.values()):
            if not minutes > 0:
                fix = "for example --minutes 2"
                raise ConfigError(explain("--minutes", expected="above 0", got=minutes, fix=fix))
        if len(self.input_size) != 2 or min(self.input_size) < 1:
            fix = "for example --input-size 256 256"
            raise ConfigError(explain("--input-size", expected="height and width", got=self.input_size, fix=fix))
        check_threads(self.threads)
        known = teachers()
        for name in (*self.models, *self.own_minutes):
            if name not in known and ":" not in name:
                raise UnknownNameError("teacher", name, known)
        for name in self.targets:
            if name not in list_targets():
                raise UnknownNameError("target", name, list_targets())

    @property
    def chosen(self) -> tuple[str, ...]:
        """The models to run, each once, in order."""
        return tuple(dict.fromkeys(self.models)) or teachers()

    def minutes_of(self, model: str) -> float:
        """Return the training time of a model."""
        return self.own_minutes.get(model, self.minutes)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        content = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}


def read_minutes(text: str) -> tuple[float, dict[str, float]]:
    """Read ``2,sid_unet=16``: the minutes of a model, and those of models that take others.

    Raises:
        ConfigError: Not of this form.
    """
    usual, own = 2.0, {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        model, _, number = part.rpartition("=")
        try:
            minutes = float(number)
        except ValueError:
            fix = "for example --minutes 2 or --minutes 2,sid_unet=16"
            raise ConfigError(explain("--minutes", expected="MINUTES[,MODEL=MINUTES]", got=text, fix=fix)) from None
        if model:
            own[model] = minutes
        else:
            usual = minutes
    return usual, own


def teachers() -> tuple[str, ...]:
    """Return the names of the registry's teachers, in its order."""
    return tuple(name for name, spec in MODELS.items() if spec.role == "teacher")


def run_zoo(config: ZooConfig, root: Path, *, progress: Progress = NULL_PROGRESS) -> dict[str, Any]:
    """Run every model of ``config`` in the folder ``root`` and write the table after each of them.

    A model that is finished there under the same settings is not run again, and is in the table even where ``models``
    leaves it out; one that failed is tried again, and goes on from its finished stages.

    Args:
        config: What to run.
        root: Folder of the zoo; made if needed.
        progress: Where to report.

    Returns:
        The content of ``zoo.json``.

    Raises:
        RunFolderError: The folder cannot be written.
        UsageError: A factory of yours cannot be imported.
    """
    from benchmarks.zoo_page import write_zoo

    names = config.chosen
    table = tuple(dict.fromkeys((*names, *teachers())))
    for name in names:
        get_spec(name)
    rows = {name: row for name in table if (row := _finished(config, name, root)) is not None}
    todo = [name for name in names if name not in rows]
    for name in names:
        if name in rows:
            progress.note(f"{name}: finished before, not run again")
    with progress.track("Zoo", total=len(names), completed=len(names) - len(todo)) as bar:
        for name in todo:
            bar.advance(0, model=name)
            rows[name] = _run_model(config, name, root, bar, _expected_s(config, rows.values()))
            progress.note(_line(rows[name]))
            write_zoo(root, _content(config, [rows[other] for other in table if other in rows]))
    content = _content(config, [rows[name] for name in table if name in rows])
    write_zoo(root, content)
    return content


def model_folder(root: Path, name: str) -> Path:
    """Return the folder of a model in the zoo's."""
    return root / "models" / name.replace("/", "_").replace(":", "_")


def _run_model(config: ZooConfig, name: str, root: Path, bar: Bar, expected_s: float) -> ZooRow:
    """Train, run, and read the report; what fails becomes a row with the reason."""
    spec, folder, start = get_spec(name), model_folder(root, name), time.monotonic()
    steps = _Steps(bar, expected_s)
    training: Mapping[str, Any] = {}
    budget = Budget.of(config, spec)
    try:
        if trains_here(spec, from_scratch=config.from_scratch):
            budget = budget.with_cost(crop_gmacs(spec, budget.crop))
            training = call(train_command(config, spec, budget, folder), folder / "train.log", tick=steps.tick)
        command = run_command(config, spec, budget, folder, training)
        call(command, folder / "run.log", tick=steps.tick)
        report = folder / "run" / "report"
        row = replace(row_of(spec, report, training), report=(report / "index.html").relative_to(root).as_posix())
    except PareError as error:
        row = failed_row(spec, str(error), training)
    steps.finish()
    row = replace(row, minutes=config.minutes_of(name), seconds=round(time.monotonic() - start, 1))
    write_json(folder / "row.json", {"schema": SCHEMA, "key": _key(config, name), "row": row.to_json()})
    return row


class _Steps:
    """Moves the bar of the zoo by the time that a model has taken over what it is expected to take."""

    def __init__(self, bar: Bar, expected_s: float) -> None:
        self._bar, self._expected, self._start, self._done = bar, expected_s, time.monotonic(), 0.0

    def tick(self, said: str) -> None:
        """Move on; ``said`` is the last line of the process that runs."""
        done = min((time.monotonic() - self._start) / self._expected, 0.95)
        self._bar.advance(done - self._done, now=said[:100].replace("[", "(").replace("]", ")"))  # no markup
        self._done = done

    def finish(self) -> None:
        """Complete the model."""
        self._bar.advance(1.0 - self._done)
        self._done = 1.0


def _expected_s(config: ZooConfig, rows: Any) -> float:
    """Return the mean time of the models that are finished, seconds; before the first a guess."""
    known = [row.seconds for row in rows if row.status == "done" and row.seconds]
    return sum(known) / len(known) if known else 60 * config.minutes + _BESIDE_S


def _key(config: ZooConfig, name: str) -> str:
    """Hash everything that a row depends on, but for the photos' content and the machine."""
    content = {**config.to_json(), "models": None, "own_minutes": None, "model": name, "schema": SCHEMA}
    content["minutes"] = config.minutes_of(name)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finished(config: ZooConfig, name: str, root: Path) -> ZooRow | None:
    """Return the row of an earlier run of the same settings, unless it failed."""
    try:
        known = json.loads((model_folder(root, name) / "row.json").read_text(encoding="utf-8"))
        row = ZooRow.from_json(known["row"]) if known["key"] == _key(config, name) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return row if row is not None and row.status == "done" else None


def _content(config: ZooConfig, rows: Sequence[ZooRow]) -> dict[str, Any]:
    from benchmarks.machine import describe_machine

    return {
        "schema": SCHEMA,
        "machine": describe_machine(threads=config.threads).to_json(),
        "settings": config.to_json(),
        "rows": [row.to_json() for row in rows],
    }


def _line(row: ZooRow) -> str:
    """Say in a line what came of a model."""
    if row.status != "done":
        return f"{row.model}: {row.status}: {row.reason}"
    return f"{row.model}: {row.shipped or 'nothing shipped'}, {row.seconds:.0f} s"
