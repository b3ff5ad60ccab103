"""The tables of models and tasks: explicit rows, imported on use, duplicates rejected."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from models.errors import (
    CheckpointError,
    ConfigError,
    UnknownNameError,
    UsageError,
    explain,
    first_line,
    running_users_code,
)
from models.spec import Control, ModelSpec, SizeRequirements, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from models.tasks.base import Task

WEIGHTS = Path(__file__).parent / "weights"

_L = TensorSpec("input", ("N", 1, "H", "W"), value_range=(0.0, 1.0), color_space="cielab-l/100")
_RGB_IN = TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0))
_RGB_OUT = TensorSpec("output", ("N", 3, "H", "W"), value_range=(0.0, 1.0))
_AB = TensorSpec("output", ("N", 2, "H", "W"), value_range=(-0.5, 0.5), color_space="cielab-ab/255")

_PHOTO = TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0))
_OVERLAY = TensorSpec("output", ("N", 1, "H", "W"), value_range=(0.0, 1.0), color_space="overlay-soft-light")

#: Takes most networks further in the same minutes (docs/distillation.md).
_MUON = {"optimizer": "muon"}
_OVERLAY_STUDENT_ROWS = (
    ModelSpec(
        name="overlay_unet",
        task="overlay",
        factory="models.overlay_unet:overlay_unet",
        inputs=(_PHOTO,),
        outputs=(_OVERLAY,),
        size=SizeRequirements(minimum=32, multiple_of=16),
        role="student",
        feature="bottleneck",
        source="Pare",
    ),
    ModelSpec(
        name="film_unet",
        task="overlay_variants",
        factory="models.overlay_unet:film_unet",
        inputs=(_PHOTO,),
        outputs=(_OVERLAY,),
        size=SizeRequirements(minimum=32, multiple_of=16),
        controls=(Control("variant", "graph_input", 0.0, 1.0, 0.0),),
        student="overlay_unet",
        feature="bottleneck",
        fit=_MUON,
        source="Pare; Perez et al. 2018 (FiLM)",
    ),
)


def _overlay(
    name: str, factory: str, *, multiple_of: int, feature: str, source: str, fit: Mapping[str, Any] | None = None
) -> ModelSpec:
    """Return the row of a network of ``models.outputs``, one map out; its factory alone builds the published one."""
    return ModelSpec(
        name=name,
        task="overlay",
        factory=factory,
        defaults={"out_channels": 1, "form": "map"},
        inputs=(_PHOTO,),
        outputs=(_OVERLAY,),
        size=SizeRequirements(minimum=max(multiple_of, 16), multiple_of=multiple_of),
        student="overlay_unet",
        feature=feature,
        fit=fit or {},
        source=source,
    )


_COLORIZE_ROWS = (
    ModelSpec(
        name="resnet18_unet",
        task="colorize",
        factory="models.resnet18_unet:resnet18_unet",
        inputs=(_L,),
        outputs=(_AB,),
        size=SizeRequirements(minimum=32, multiple_of=32),
        student="chroma_unet",
        feature="encoder.layer4",
        weights="resnet18_unet.safetensors",
        source="He et al. 2016; fastai DynamicUnet",
    ),
    ModelSpec(
        name="chroma_unet",
        task="colorize",
        factory="models.chroma_unet:chroma_unet",
        inputs=(_L,),
        outputs=(_AB,),
        size=SizeRequirements(minimum=32, multiple_of=32),
        role="student",
        feature="bottleneck",
        weights="chroma_unet.safetensors",
        source="Pare",
    ),
    ModelSpec(
        name="image_unet",
        task="image",
        factory="models.chroma_unet:image_unet",
        inputs=(_RGB_IN,),
        outputs=(_RGB_OUT,),
        size=SizeRequirements(minimum=32, multiple_of=32),
        role="student",
        feature="bottleneck",
        source="Pare",
    ),
    ModelSpec(
        name="unet",
        task="colorize",
        factory="models.unet:unet",
        inputs=(_L,),
        outputs=(_AB,),
        size=SizeRequirements(minimum=8, multiple_of=8),
        student="chroma_unet",
        feature="down3",
        fit=_MUON,
        source="Ronneberger et al. 2015; milesial/Pytorch-UNet",
    ),
)
_BALANCE_ROWS = (
    ModelSpec(
        name="latent_balancer",
        task="balance",
        factory="models.latent_balancer:latent_balancer",
        inputs=(_RGB_IN,),
        outputs=(_RGB_OUT,),
        size=SizeRequirements(minimum=32, multiple_of=8),
        student="balance_lut",
        weights="latent_balancer.safetensors",
        source="Rombach et al. 2022 (autoencoder); Pare",
    ),
    ModelSpec(
        name="balance_lut",
        task="balance",
        factory="models.balance_lut:balance_lut",
        inputs=(_RGB_IN,),
        outputs=(_RGB_OUT,),
        size=SizeRequirements(minimum=32),
        role="student",
        weights="balance_lut.safetensors",
        source="Zeng et al. 2020",
    ),
)
_RAW = TensorSpec("input", ("N", 4, "H", "W"), value_range=(0.0, 1.0), color_space="bayer-rgbg")
_DOUBLE = TensorSpec("output", ("N", 3, "2H", "2W"), value_range=(0.0, 1.0))
_SID = ModelSpec(
    name="sid_unet",
    task="low_light",
    factory="models.sid_unet:sid_unet",
    inputs=(_RAW,),
    outputs=(_DOUBLE,),
    size=SizeRequirements(minimum=16, multiple_of=16),
    controls=(Control("ratio", "graph_input", 1.0, 300.0, 100.0),),
    student="raw_unet",
    feature="bottleneck",
    fit=_MUON,
    source="Chen et al. 2018; lavi135246/pytorch-Learning-to-See-in-the-Dark",
)
_LOW_LIGHT_ROWS = (
    _SID,
    replace(_SID, name="sid_unet_8", defaults={"width": 8, "deepest": 256}, role="student", student=None),
    replace(
        _SID,
        name="raw_unet",
        factory="models.raw_unet:raw_unet",
        size=SizeRequirements(minimum=16, multiple_of=8),
        role="student",
        student=None,
        source="Pare",
    ),
)
_OVERLAY_ROWS = (
    _overlay(
        "nafnet_w32",
        "models.nafnet:nafnet_w32",
        multiple_of=16,
        feature="middle_blks",
        source="Chen et al. 2022; megvii-research/NAFNet",
    ),
    _overlay(
        "unet_convnext",
        "models.unet_convnext:unet_convnext",
        multiple_of=32,
        feature="encoder.stages.3",
        source="Woo et al. 2023; facebookresearch/ConvNeXt-V2",
    ),
    _overlay(
        "unet_efficientnet_b4",
        "models.unet_efficientnet:unet_efficientnet_b4",
        multiple_of=32,
        feature="encoder.features.7",
        source="Tan and Le 2019; torchvision",
    ),
    _overlay(
        "restormer_lite",
        "models.restormer:restormer_lite",
        multiple_of=8,
        feature="latent",
        fit=_MUON,
        source="Zamir et al. 2022; swz30/Restormer",
    ),
    _overlay(
        "hdrnet",
        "models.hdrnet:hdrnet",
        multiple_of=1,
        feature="coefficients.prediction.conv1",
        fit=_MUON,
        source="Gharbi et al. 2017; google/hdrnet",
    ),
    _overlay(
        "scunet",
        "models.scunet:scunet",
        multiple_of=64,
        feature="m_body",
        fit=_MUON,
        source="Zhang et al. 2023; cszn/SCUNet",
    ),
    _overlay(
        "swinir",
        "models.swinir:swinir",
        multiple_of=8,
        feature="conv_after_body",
        fit=_MUON,
        source="Liang et al. 2021; JingyunLiang/SwinIR",
    ),
    _overlay(
        "pix2pix",
        "models.pix2pix:pix2pix",
        multiple_of=256,
        feature="model.model.1",
        source="Isola et al. 2017; junyanz/pytorch-CycleGAN-and-pix2pix",
    ),
)
_NOISY = TensorSpec("input", ("N", 3, "H", "W"), value_range=(0.0, 1.0))
_CLEAN = TensorSpec("output", ("N", 3, "H", "W"), value_range=(0.0, 1.0))
_ADAFM = ModelSpec(
    name="adafm",
    task="denoise",
    factory="models.adafm:adafm",
    inputs=(_NOISY,),
    outputs=(_CLEAN,),
    size=SizeRequirements(minimum=16, multiple_of=2),
    controls=(Control("level", "graph_input", 0.0, 1.0, 0.5),),
    student="adafm_s",
    feature="model.1",
    fit=_MUON,
    source="He et al. 2019; hejingwenhejingwen/AdaFM",
)
_DENOISE_ROWS = (
    _ADAFM,
    replace(_ADAFM, name="adafm_s", defaults={"width": 32, "depth": 4}, role="student", student=None),
    replace(_ADAFM, name="ftn", factory="models.ftn:ftn", source="Lee et al. 2020; AdaFM's residual network"),
    replace(
        _ADAFM,
        name="dni",
        factory="models.dni:dni",
        controls=(Control("alpha", "weight_blend", 0.0, 1.0, 0.5),),
        source="Wang et al. 2019; AdaFM's residual network",
    ),
)
_ADAIN = ModelSpec(
    name="adain",
    task="style",
    factory="models.adain:adain",
    inputs=(_NOISY,),
    outputs=(_CLEAN,),
    size=SizeRequirements(minimum=32, multiple_of=8),
    controls=(Control("alpha", "graph_input", 0.0, 1.0, 1.0),),
    student="adain_s",
    feature="encoder",
    fit={**_MUON, "learning_rate": 3e-4},
    source="Huang and Belongie 2017; naoto0804/pytorch-AdaIN",
)
_STYLE_ROWS = (_ADAIN, replace(_ADAIN, name="adain_s", defaults={"width": 16}, role="student", student=None))
_MODEL_ROWS = (
    *_COLORIZE_ROWS,
    *_OVERLAY_ROWS,
    *_OVERLAY_STUDENT_ROWS,
    *_LOW_LIGHT_ROWS,
    *_DENOISE_ROWS,
    *_STYLE_ROWS,
    *_BALANCE_ROWS,
)
_TASK_ROWS = (
    ("colorize", "models.tasks.colorize:Colorize"),
    ("image", "models.tasks.image:Image"),
    ("overlay", "models.tasks.overlay:Overlay"),
    ("overlay_variants", "models.tasks.overlay_variants:OverlayVariants"),
    ("balance", "models.tasks.balance:Balance"),
    ("low_light", "models.tasks.low_light:LowLight"),
    ("denoise", "models.tasks.denoise:Denoise"),
    ("style", "models.tasks.style:Style"),
)


def _table(rows: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, row in rows:
        if name in table:
            raise ConfigError(explain("registry", expected="each name once", got=f"{name!r} twice", fix="rename one"))
        table[name] = row
    return table


MODELS: Mapping[str, ModelSpec] = _table(tuple((row.name, row) for row in _MODEL_ROWS))
TASKS: Mapping[str, str] = _table(_TASK_ROWS)


def list_models() -> list[str]:
    """Return the names of all models, sorted."""
    return sorted(MODELS)


def list_tasks() -> list[str]:
    """Return the names of all tasks, sorted."""
    return sorted(TASKS)


def load_object(path: str) -> Any:
    """Import ``"package.module:attribute"``, or ``"path/to/file.py:attribute"`` relative to the working directory.

    Raises:
        UsageError: The text has another form, or the module or the attribute does not exist.
    """
    module_name, _, attribute = path.rpartition(":")
    if not module_name or not attribute:
        expected = "package.module:name or path/to/file.py:name"
        raise UsageError(explain("import path", expected=expected, got=repr(path), fix="add the part"))
    if module_name.endswith(".py"):
        module = _import_file(Path(module_name))
    else:
        with running_users_code(f"import of {module_name}", expected="a module"):
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                fix, got = "run where the module can be imported, or set PYTHONPATH", f"{path!r} ({error})"
                raise UsageError(explain("import path", expected="a module", got=got, fix=fix)) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        got = f"no {attribute!r} in {module_name!r}"
        raise UsageError(explain("import path", expected="an attribute", got=got, fix="check its name")) from error


def _import_file(path: Path) -> ModuleType:
    """Import a file of the user's once; modules that lie beside it can be imported by it.

    Raises:
        UsageError: No such file, or it cannot be imported.
    """
    whole = path.resolve()
    if not whole.is_file():
        fix = "run where the path leads to it, or pass the whole path"
        raise UsageError(explain("import path", expected="a file", got=f"{path} in {Path.cwd()}", fix=fix))
    name = f"{whole.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(whole.parent) not in sys.path:
        sys.path.append(str(whole.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file of the user's may raise anything
        del sys.modules[name]
        got = f"{type(error).__name__}: {error}"
        fix = f"make `python {path}` run"
        raise UsageError(explain(f"import of {path}", expected="a module", got=got, fix=fix)) from error
    return module


def get_task(name: str) -> Task:
    """Return the task ``name``, or the one built by ``"package.module:factory"``.

    Raises:
        UnknownNameError: No such task.
    """
    if name not in TASKS and ":" not in name:
        raise UnknownNameError("task", name, TASKS)
    factory = load_object(TASKS.get(name, name))
    with running_users_code(f"task {name}", expected="a task that is made without arguments"):
        task: Task = factory()
    return task


def get_spec(name: str, *, task: str | None = None) -> ModelSpec:
    """Return the row of ``name``. For ``"package.module:factory"`` a row is made from the task (default ``colorize``)
    and the factory's attribute ``size``, a ``SizeRequirements``; its attribute ``spec`` replaces the row.

    A registered network that is used for another ``task`` than its own gets the tensors of that task, and no shipped
    weights.

    Raises:
        UnknownNameError: No such model.
    """
    if name in MODELS:
        row = MODELS[name]
        if task in (None, row.task):
            return row
        other = get_task(task)
        return replace(
            row, task=task, inputs=other.inputs, outputs=other.outputs, controls=other.controls, weights=None
        )
    if ":" not in name:
        raise UnknownNameError("model", name, MODELS)
    owner = get_task(task or "colorize")
    factory = load_object(name)
    own, size = getattr(factory, "spec", None), getattr(factory, "size", None)
    if isinstance(own, ModelSpec):
        return own
    return ModelSpec(
        name=name,
        task=task or "colorize",
        factory=name,
        inputs=owner.inputs,
        outputs=owner.outputs,
        controls=owner.controls,
        size=size if isinstance(size, SizeRequirements) else SizeRequirements(minimum=32, multiple_of=32),
        student=owner.student,
        source="yours",
        licence="yours",
    )


def build_model(spec: ModelSpec, **kwargs: Any) -> nn.Module:
    """Build the network of a row with random weights; ``kwargs`` go over the row's defaults.

    Raises:
        UsageError: The factory needs arguments that nobody gave, or returns no network.
    """
    import torch
    from torch import nn

    from models.adopted import adopt
    from models.controls import with_controls

    factory, given = load_object(spec.factory), {**spec.defaults, **kwargs}
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        fix = f"write a function without arguments that returns the network, and pass it in place of {spec.factory!r}"
        expected = f"arguments that it takes: {', '.join(given) or 'none'}"
        raise UsageError(explain(f"factory {spec.factory}", expected=expected, got=error, fix=fix)) from error
    with running_users_code(f"factory {spec.factory}", expected="a network"):
        net = factory(**given)
    if not isinstance(net, nn.Module):
        expected, fix = "a torch.nn.Module", "return the network itself"
        raise UsageError(explain(f"factory {spec.factory}", expected=expected, got=type(net).__name__, fix=fix))
    scripted = [name for name, module in net.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:  # it can be neither watched nor changed
        got, fix = f"a ScriptModule at layer {scripted[0] or 'the network itself'}", "return what it was scripted from"
        raise UsageError(explain(f"factory {spec.factory}", expected="modules of Python", got=got, fix=fix))
    if spec.source == "yours":
        try:
            net.eval()
        except NotImplementedError as error:  # what torch.export gives
            expected, fix = "a module with modes", "return what it was exported from"
            got = first_line(error)
            raise UsageError(explain(f"factory {spec.factory}", expected=expected, got=got, fix=fix)) from error
        adopt(net)
    return with_controls(net.float(), spec)  # half precision is a matter of the artifacts


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    weights: str | Path | None = None,
    task: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network in eval mode.

    Args:
        name: Registry name, or ``"package.module:factory"``.
        pretrained: Load the weights that ship with Pare.
        weights: Load this file instead (safetensors, or a ``torch.save`` of tensors only).
        task: Another task than the model's own, whose controls it gets.
        kwargs: Keyword arguments of the factory, over the defaults of the row.

    Raises:
        UnknownNameError: No such model.
        UsageError: The factory of the user's cannot be imported or called.
        CheckpointError: The weights are missing, damaged, or of another architecture.
    """
    from models.artifact import load_network, load_weights

    spec = get_spec(name, task=task)
    if pretrained and weights is None:
        if spec.weights is None or not (WEIGHTS / spec.weights).exists():
            fix = "train it, or pass weights=FILE"
            raise CheckpointError(explain(f"weights of {name!r}", expected="a shipped file", got="none", fix=fix))
        if not kwargs:
            return load_network(WEIGHTS / spec.weights)
        weights = WEIGHTS / spec.weights
    net = build_model(spec, **kwargs)
    if weights is not None:
        load_weights(net, Path(weights))
    return net.eval()
