"""The recipe of a run: a tree of frozen dataclasses, read from YAML, overridden by flags, written back resolved.

Sections named after a stage (``distill:``, ``prune:``, ...) hold the fields of that stage's config; they are checked
when the stage is imported, so that reading a recipe does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.metrics import LPIPS_NETS
from models.errors import ConfigError, RunFolderError, UnknownNameError, explain, nearest
from models.registry import list_models, list_tasks
from models.spec import Precision, check_threads
from optimize.config import assign, build, merge, to_plain
from optimize.registry import STAGES, get_stage

SCHEMA = 1
DEVICES = ("auto", "cpu", "cuda", "mps")
DEFAULT_TARGETS = ("onnx", "openvino", "tensorrt", "coreml")


@dataclass(frozen=True)
class TeacherRecipe:
    """The network to start from.

    Attributes:
        model: Registry name, or ``package.module:factory``.
        weights: Checkpoint; None takes the shipped one, or for your own factory what it returns.
        task: Task of your own factory; None: that of its ``spec``, else ``colorize``.
    """

    model: str = "resnet18_unet"
    weights: Path | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (("model", self.model, list_models()), ("task", self.task, list_tasks())):
            if name is not None and ":" not in name and name not in known:
                raise UnknownNameError(kind, name, known)


@dataclass(frozen=True)
class DataRecipe:
    """Photos.

    Attributes:
        source: Folder, named set or ``URL#sha256=...``; None takes the sample photos of scikit-image and scikit-learn.
        eval: The same, to measure with; None holds ``eval_fraction`` of ``source`` out.
        calibration: The same, for INT8; None takes the training photos.
        eval_fraction: Share of ``source`` that is held out.
        eval_photos: At most so many photos to measure with.
        train_photos: At most so many photos to train on, drawn at random, for a teacher that is slow; None: all.
        keep_grey: Keep photos without chroma where the task would skip them (``Task.skips_grey``).
    """

    source: str | None = None
    eval: str | None = None
    calibration: str | None = None
    eval_fraction: float = 0.1
    eval_photos: int = 32
    train_photos: int | None = None
    keep_grey: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.eval_fraction < 1 or self.eval_photos < 1:
            got = f"eval_fraction {self.eval_fraction}, eval_photos {self.eval_photos}"
            expected = "eval_fraction between 0 and 1, eval_photos of 1 or more"
            raise ConfigError(explain("photos", expected=expected, got=got, fix="change the recipe"))
        if self.train_photos is not None and self.train_photos < 1:
            fix = "leave it out to train on all"
            raise ConfigError(explain("data.train_photos", expected="1 or more", got=self.train_photos, fix=fix))
        if self.eval and not self.source:
            fix = "pass --data too"
            raise ConfigError(explain("photos", expected="data beside eval-data", got="eval-data alone", fix=fix))


@dataclass(frozen=True)
class ExportRecipe:
    """What to ship.

    Attributes:
        targets: Names of the table of targets.
        precisions: Each target that can compute in one gets an artifact of it.
        dynamic: Leave height and width open.
        options: Options of each target, by its name.
        reference_targets: The teacher and the stages in between are exported to these too, in fp32, so that the report
            can tell what the runtime gained from what compression gained.
    """

    targets: tuple[str, ...] = DEFAULT_TARGETS
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.FP16, Precision.INT8)
    dynamic: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference_targets: tuple[str, ...] = ("onnx", "openvino")

    def __post_init__(self) -> None:
        from export.registry import get_target, list_targets

        known = list_targets()
        for name in (*self.targets, *self.options, *self.reference_targets):
            if name not in known:
                raise UnknownNameError("target", name, known)
        for name, options in self.options.items():
            get_target(name).check_options(options)


@dataclass(frozen=True)
class BenchmarkRecipe:
    """How to measure.

    Attributes:
        warmup: Unrecorded calls of each artifact.
        iterations: Recorded calls of each artifact.
        pictures: Photos shown side by side.
        levels: Levels of a run-time control at which quality is measured, the ends among them; 0: not measured.
        level_photos: Photos that this is measured on.
        probes: Measure load time, first inference and memory in a process each.
    """

    warmup: int = 10
    iterations: int = 50
    pictures: int = 4
    levels: int = 5
    level_photos: int = 3
    probes: bool = True

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.iterations < 1 or self.pictures < 0:
            got = f"warmup {self.warmup}, iterations {self.iterations}, pictures {self.pictures}"
            expected = "warmup and pictures of 0 or more, iterations of 1 or more"
            raise ConfigError(explain("benchmark", expected=expected, got=got, fix="change the recipe"))
        if self.levels == 1 or self.levels < 0 or self.level_photos < 1:
            got = f"levels {self.levels}, level_photos {self.level_photos}"
            expected = "levels of 0 or of 2 and more, level_photos of 1 or more"
            raise ConfigError(explain("benchmark", expected=expected, got=got, fix="change the recipe"))


@dataclass(frozen=True)
class GateRecipe:
    """What may be shipped.

    Attributes:
        max_lpips_drop: Largest LPIPS above the teacher's, on the same photos; a stage or artifact above it is reported
            and not shipped.
        allow_drop: Ship it all the same.
        min_gain: A pruned network must be faster by this factor, else the unpruned one goes on.
    """

    max_lpips_drop: float = 0.02
    allow_drop: bool = False
    min_gain: float = 1.05

    def __post_init__(self) -> None:
        if self.max_lpips_drop < 0 or self.min_gain < 0:
            got = f"max_lpips_drop {self.max_lpips_drop}, min_gain {self.min_gain}"
            raise ConfigError(explain("gate", expected="0 or more", got=got, fix="change --max-lpips-drop"))


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on.

    Attributes:
        schema: Version of this layout.
        teacher: The network to start from.
        data: Photos.
        stages: Stages in order.
        options: Config values by stage; sections of the file.
        export: What to ship.
        benchmark: How to measure.
        gate: What may be shipped.
        input_size: Height and width that artifacts are measured and exported at, pixels.
        seed: Of everything random.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        threads: Of PyTorch and of each engine; None: their default.
        lpips_net: ``lite``, ``squeeze``, ``alex`` or ``vgg``.
        lpips_weights: Weights of an official net.
        budget_minutes: Time for the stages together, shared out among those that do not set their own.
    """

    schema: int = SCHEMA
    teacher: TeacherRecipe = TeacherRecipe()
    data: DataRecipe = DataRecipe()
    stages: tuple[str, ...] = ("distill", "prune", "quantize")
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    export: ExportRecipe = field(default_factory=ExportRecipe)
    benchmark: BenchmarkRecipe = BenchmarkRecipe()
    gate: GateRecipe = GateRecipe()
    input_size: tuple[int, int] = (256, 256)
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    lpips_net: str = "lite"
    lpips_weights: Path | None = None
    budget_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            fix = "use the version of Pare that wrote it"
            raise ConfigError(explain("recipe schema", expected=SCHEMA, got=self.schema, fix=fix))
        usable = [name for name, row in STAGES.items() if row.in_pipeline]
        for name in self.stages:
            if name not in usable:
                raise UnknownNameError("stage", name, usable)
        if len(set(self.stages)) != len(self.stages):
            fix = "remove the repetition"
            raise ConfigError(explain("stages", expected="each once", got=list(self.stages), fix=fix))
        if self.budget_minutes is not None and self.budget_minutes <= 0:
            raise ConfigError(
                explain("budget", expected="above 0 minutes", got=self.budget_minutes, fix="leave it out")
            )
        if min(self.input_size) < 1:
            fix = "use for example --input-size 256 256"
            raise ConfigError(explain("input size", expected="positive pixels", got=self.input_size, fix=fix))
        if not 0 <= self.seed < 2**32:
            raise ConfigError(explain("seed", expected="0 to 2**32 - 1", got=self.seed, fix="use for example --seed 0"))
        check_threads(self.threads)
        if self.device not in DEVICES:
            close = nearest(self.device, DEVICES)
            fix = f"use --device {close}" if close else "choose one of these with --device"
            raise ConfigError(explain("device", expected=" | ".join(DEVICES), got=repr(self.device), fix=fix))
        if self.lpips_net not in LPIPS_NETS:
            raise UnknownNameError("LPIPS net", self.lpips_net, LPIPS_NETS)


def recipe_from(content: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain values; sections named after a stage become ``options``.

    Raises:
        ConfigError: An unknown key or a wrong value.
    """
    known = [*(item.name for item in fields(Recipe)), *STAGES]
    for key, value in content.items():
        if key not in known:
            close = nearest(str(key), known)
            fix = f"use {close!r}" if close else "remove it"
            raise ConfigError(explain("recipe", expected=" | ".join(known), got=repr(key), fix=fix))
        if key in STAGES and not isinstance(value, (Mapping, type(None))):
            fix = "write keys and values, or leave the section out"
            raise ConfigError(explain(f"config {key}", expected="a mapping", got=repr(value), fix=fix))
    values = {key: value for key, value in content.items() if key not in STAGES}
    options = {key: dict(value or {}) for key, value in content.items() if key in STAGES}
    if options:
        values["options"] = merge(values.get("options") or {}, options)
    return build(Recipe, values)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as plain values.

    Raises:
        ConfigError: No such file, no YAML, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fix = "pass a YAML file, for example the recipe.yaml of another run"
        raise ConfigError(explain(f"recipe {path}", expected="a readable file", got=error, fix=fix)) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        fix = "write keys and values, for example `seed: 1`"
        raise ConfigError(explain(f"recipe {path}", expected="a mapping", got=type(content).__name__, fix=fix))
    return content


def combine(path: Path | None, flags: Mapping[str, Any], settings: tuple[str, ...] = ()) -> Recipe:
    """Build the recipe of a command: the file, over it the flags, over them ``--set KEY=VALUE``.

    Args:
        path: Recipe file or None.
        flags: Dotted keys of the flags that were given.
        settings: Texts ``distill.fit.learning_rate=1e-4``; values are read as YAML.
    """
    import yaml

    content = read_recipe(path) if path else {}
    for key, value in flags.items():
        assign(content, key, value)
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            fix = "write for example --set distill.fit.seed=1"
            raise ConfigError(explain("--set", expected="KEY=VALUE", got=repr(text), fix=fix))
        try:
            assign(content, key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(explain("--set", expected="a YAML value", got=repr(value), fix="quote it")) from error
    return recipe_from(content)


def stage_config(recipe: Recipe, name: str, defaults: Mapping[str, Any] | None = None) -> Any:
    """Build the config of stage ``name``: its section over ``defaults`` over the recipe's seed.

    Raises:
        ConfigError: The section has an unknown key or a wrong value.
    """
    config_type = get_stage(name).config_type
    known = {item.name for item in fields(config_type)}
    base: dict[str, Any] = {}
    if "seed" in known:
        base["seed"] = recipe.seed
    values = merge(merge(base, defaults or {}), recipe.options.get(name, {}))
    if "fit" in known:
        given = values.get("fit") or {}
        if not isinstance(given, Mapping):
            fix = "write keys and values, or leave the section out"
            raise ConfigError(explain(f"config {name}.fit", expected="a mapping", got=repr(given), fix=fix))
        values["fit"] = _fit_values(config_type, {"seed": recipe.seed, **given})
    return build(config_type, values, where=name)


def _fit_values(config_type: type[Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on the stage's own default of its ``fit`` section."""
    own = next(item for item in fields(config_type) if item.name == "fit")
    default = own.default_factory() if callable(own.default_factory) else own.default
    return merge(to_plain(default), over)


def resolve(recipe: Recipe, configs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe as plain values with every default filled in, stage configs included."""
    content: dict[str, Any] = to_plain(replace(recipe, options={}))
    content.pop("options")
    return {**content, **{name: to_plain(config) for name, config in configs.items()}}


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write YAML in one step.

    Raises:
        RunFolderError: The disk is full or the folder cannot be written.
    """
    import yaml

    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(yaml.safe_dump(dict(content), sort_keys=False, width=110), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        fix = "free disk space, or choose another --output"
        raise RunFolderError(explain(f"writing {path}", expected="a writable folder", got=error, fix=fix)) from error
