"""From a recipe to what stages work on: the photos of each kind, and the teacher as an artifact."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import METRICS
from models.artifact import Artifact, load_network, read_tensors, save_network, sha256_of, sidecar_of
from models.errors import (
    ConfigError,
    DataError,
    InputSizeError,
    PareError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
    explain,
    first_line,
    running_users_code,
    unforeseen,
)
from models.paired_photos import open_for
from models.photos import PhotoSet, centre_crop, embedded_photos, to_batch
from models.progress import NULL_PROGRESS, Progress
from models.registry import WEIGHTS, create_model, get_spec, get_task
from optimize.photo_sets import resolve
from optimize.stage import StageContext

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.tasks.base import Task
    from optimize.recipe import DataRecipe, Recipe, TeacherRecipe

TEACHER_STAGES = ("teacher",)
_SLACK = 1e-3
#: Operators that draw random numbers.
_DRAWS = (
    *("randn", "randn_like", "normal", "rand", "rand_like", "uniform", "bernoulli", "native_dropout", "dropout"),
    *("randint", "randint_like", "randperm", "multinomial", "poisson"),
)


@dataclass(frozen=True)
class Photos:
    """The photos of a run; training and evaluation never share one.

    Attributes:
        train: To learn from.
        eval: To measure with.
        calibration: For the value ranges of INT8.
    """

    train: PhotoSet
    eval: PhotoSet
    calibration: PhotoSet

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints by kind."""
        return {name: getattr(self, name).fingerprint for name in ("train", "eval", "calibration")}

    def describe(self) -> str:
        """Say how many there are, for example ``24 to train, 4 to measure; 3 skipped (2 grey, 1 corrupt)``."""
        text = f"{len(self.train)} to train, {len(self.eval)} to measure, {len(self.calibration)} to calibrate"
        distinct = {id(part.skipped): part for part in (self.train, self.eval, self.calibration)}
        notes = [part.describe_skipped() for part in distinct.values() if part.skipped]
        return "; ".join([text, *notes])

    def skipped(self) -> list[dict[str, str]]:
        """List what was skipped, with reasons, as JSON values."""
        distinct = {id(part.skipped): part.skipped for part in (self.train, self.eval, self.calibration)}
        return [{"photo": str(s.path), "reason": s.reason} for part in distinct.values() for s in part]


def open_recipe_photos(recipe: DataRecipe, *, seed: int, task: Task, progress: Progress = NULL_PROGRESS) -> Photos:
    """Open the photos of a recipe; a photo set on the network is downloaded first.

    Args:
        recipe: Which.
        seed: Of the photos that are held out.
        task: Where it takes pairs, folders with ``input/`` and ``target/`` are opened as such.
        progress: Where to report.

    Raises:
        DataError: A folder without usable photos, or one that serves two purposes.
    """
    if recipe.source is None:
        train, held = embedded_photos("train"), embedded_photos("eval")
    elif recipe.eval is not None:
        train, held = (_open(source, recipe, task, progress) for source in (recipe.source, recipe.eval))
        _check_apart(train, held, "--data and --eval-data")
    else:
        train, held = _open(recipe.source, recipe, task, progress).split(recipe.eval_fraction, seed=seed)
    held = held.sample(recipe.eval_photos, seed=seed, verify=True)
    if recipe.train_photos is not None:
        train = train.sample(recipe.train_photos, seed=seed)
    calibration = train
    if recipe.calibration is not None:
        calibration = _open(recipe.calibration, recipe, task, progress)
        _check_apart(calibration, held, "--calibration-data and the evaluation photos")
    return Photos(train, held, calibration)


def _open(source: str, recipe: DataRecipe, task: Task, progress: Progress) -> PhotoSet:
    return open_for(resolve(source, progress=progress), task=task, keep_grey=recipe.keep_grey)


def _check_apart(one: PhotoSet, other: PhotoSet, what: str) -> None:
    shared = {path.resolve() for path in one.paths} & {path.resolve() for path in other.paths}
    if shared:
        fix = "pass two folders that share no photo, or leave out --eval-data: a tenth of --data is held out then"
        got = f"{len(shared)} photos in both, for example {min(shared).name}"
        raise DataError(explain(what, expected="different photos", got=got, fix=fix))


def recipe_task(recipe: Recipe, given: Artifact | None = None) -> Task:
    """Return the task of a recipe, or of the artifact that a stage was given."""
    section = {} if recipe.stages else recipe.options.get("train", {})  # no stages: a training
    model, task = section.get("model", recipe.teacher.model), section.get("task", recipe.teacher.task)
    return get_task(given.task if given else get_spec(model, task=task).task)


def open_teacher(recipe: TeacherRecipe, folder: Path) -> Artifact:
    """Return the teacher as a ``torch`` artifact.

    The shipped weights are used where they lie; an artifact of Pare likewise; other weights are loaded into the
    network and saved to ``folder``.

    Raises:
        UnknownNameError: No such model.
        CheckpointError: Weights missing, damaged, or of another architecture.
    """
    from models.layers import bake_weights

    spec = get_spec(recipe.model, task=recipe.task)
    if recipe.weights is not None and sidecar_of(recipe.weights).exists():
        return _known_artifact(recipe, spec.task)
    if recipe.weights is None and recipe.model == spec.name and spec.weights and (WEIGHTS / spec.weights).exists():
        return Artifact.load(WEIGHTS / spec.weights)
    own = ":" in recipe.model
    net = create_model(
        recipe.model, pretrained=recipe.weights is None and not own, weights=recipe.weights, task=recipe.task
    )
    bake_weights(net)
    path = folder / "teacher.safetensors"
    known = _same_as_before(net, path, recipe.model, spec.task)
    if known is not None:
        return known
    artifact = save_network(net, path, model=recipe.model, task=spec.task, stages=TEACHER_STAGES)
    load_network(artifact)  # a factory that answers differently each time is found here, not after hours
    return artifact


def _same_as_before(net: nn.Module, path: Path, model: str, task: str) -> Artifact | None:
    """Return the artifact at ``path`` when an earlier run saved these very weights there."""
    import torch

    try:
        artifact = Artifact.load(path)
        stored = read_tensors(path)
    except PareError:
        return None
    own = net.state_dict()
    same = own.keys() == stored.keys() and all(torch.equal(own[key], stored[key]) for key in own)
    return artifact if same and (artifact.model, artifact.task) == (model, task) else None


def _known_artifact(recipe: TeacherRecipe, task: str) -> Artifact:
    assert recipe.weights is not None
    artifact = Artifact.load(recipe.weights)
    if artifact.model != recipe.model or artifact.task != task:
        fix = f"pass --teacher {artifact.model}"
        got = f"{artifact.model} ({artifact.task})"
        expected = f"{recipe.model} ({task})"
        raise UsageError(explain(f"{recipe.weights}", expected=expected, got=got, fix=fix))
    return artifact


def check_size(artifact: Artifact, input_size: tuple[int, int]) -> None:
    """Run ``artifact`` on noise of ``input_size`` and look at what comes out.

    Raises:
        InputSizeError: The network cannot take this size, or answers with another shape.
        UnsupportedError: It gives another answer each time, or values that are not finite.
    """
    import torch

    spec = get_spec(artifact.model, task=artifact.task)
    try:
        spec.size.check(*input_size)
    except InputSizeError as error:
        if spec.source != "yours":
            raise
        raise InputSizeError(
            f"{error}, or say what it takes: FACTORY.size = models.spec.SizeRequirements(...)"
        ) from error
    height, width = input_size
    want = spec.outputs[0].at(N=1, H=height, W=width).shape
    given = torch.rand((1, spec.packed_channels, height, width), generator=torch.Generator().manual_seed(0))
    net, fix = load_network(artifact), None
    _check_copy(net, artifact.model)
    try:
        with torch.no_grad():
            answer, again = net(given), net(given)
    except PareError:
        raise
    except Exception as error:  # code of the user's may raise anything
        got: object = first_line(error)
    else:
        got = tuple(answer.shape) if isinstance(answer, torch.Tensor) else _several(answer)
        if isinstance(got, str):
            fix = "write a small module around it whose forward returns the one to keep"
    what = f"{artifact.model} on input {tuple(given.shape)}"
    if got != want:
        fix = fix or _way_out(got, want, height)
        raise InputSizeError(explain(what, expected=f"output {want}", got=got, fix=fix))
    _check_answer(net, given, answer, again, what)


def _check_copy(net: nn.Module, model: str) -> None:
    """Copy the network as pruning and quantizing do."""
    try:
        copy.deepcopy(net)
    except Exception as error:  # code of the user's may raise anything
        fix = "keep out of its attributes what copy.deepcopy refuses: Python modules, open files, locks"
        got = unforeseen(error)
        raise UnsupportedError(explain(model, expected="a network that can be copied", got=got, fix=fix)) from error


def _check_answer(net: nn.Module, given: Tensor, answer: Tensor, again: Tensor, what: str) -> None:
    import torch

    from export.refusal import layer_of

    if not bool(torch.isfinite(answer).all()):
        fix = "load weights that it was trained to, and bound what it divides by or takes roots of"
        raise UnsupportedError(explain(what, expected="finite values", got="nan or infinity", fix=fix))
    if torch.allclose(answer, again, rtol=1e-3, atol=1e-5):
        return
    drawn = ((operator, layer_of(net, (given,), operator)) for operator in _DRAWS)
    operator, layer = next(((name, where) for name, where in drawn if where is not None), ("unknown", "unknown"))
    got = f"answers that differ by up to {float((answer - again).abs().max()):.3g}: layer {layer}: operator {operator}"
    fix = "keep what it draws in a buffer, or leave it out in eval mode"
    raise UnsupportedError(explain(what, expected="the same answer each time", got=got, fix=fix))


def _way_out(got: object, want: tuple[int | str, ...], height: int) -> str:
    """Say what to do about a network that answers an input of ``height`` with ``got``."""
    if isinstance(got, str) and "required positional argument" in got:
        return "write a small module around it whose forward takes one tensor"
    alike = isinstance(got, tuple) and len(got) == 4 and got[:2] == want[:2]
    if isinstance(got, tuple) and alike and got[2] % height == 0 and got[2] * int(want[3]) == got[3] * int(want[2]):
        sides = ", ".join(f'"{got[2] // height}{side}"' for side in "HW")
        return f'pass a --task of your own that says so in its outputs: ("N", {want[1]}, {sides})'
    return "pass another --input-size, or the --task whose tensors this network takes and gives"


def check_input(artifact: Artifact, photos: PhotoSet, input_size: tuple[int, int]) -> None:
    """Prepare one photo as the task of ``artifact`` does and compare it with what the task says of its input.

    A network without a graph input for a control of its task (DNI) gets the packed level all the same, and ignores it.

    Raises:
        ConfigError: Shape or range is another one: the task file is wrong, which should not show at the end of a run.
        UnknownNameError: The task names a metric that does not exist.
    """
    task = get_task(artifact.task)
    if unknown := [name for name in task.metrics if isinstance(name, str) and name not in METRICS]:
        raise UnknownNameError(f"metric of task {artifact.task}", unknown[0], METRICS)
    spec = get_spec(artifact.model, task=artifact.task)
    with running_users_code(f"task {artifact.task}", expected="a prepare that takes a photo"):
        inputs = task.inputs_of(to_batch([centre_crop(photos.load(0), *task.photo_size(input_size))]))
    controls = sum(control.kind == "graph_input" for control in task.controls)
    want = (1, int(spec.inputs[0].shape[1]) + controls, *input_size)
    what = f"input that task {artifact.task} makes"
    if tuple(inputs.shape) != want:
        fix = "correct its prepare, or the shape in its inputs"
        raise ConfigError(explain(what, expected=f"shape {want}", got=tuple(inputs.shape), fix=fix))
    limits = spec.inputs[0].value_range
    image = inputs[:, : int(spec.inputs[0].shape[1])]
    low, high = float(image.min()), float(image.max())
    if limits is not None and not (low >= limits[0] - _SLACK and high <= limits[1] + _SLACK):
        fix = "correct its prepare, or widen value_range in its inputs (None: any value)"
        expected, got = f"values in [{limits[0]:g}, {limits[1]:g}]", f"{low:.3g} to {high:.3g}"
        raise ConfigError(explain(what, expected=expected, got=got, fix=fix))
    _check_picture(task, inputs, artifact.task)


def _check_picture(task: Task, inputs: Tensor, name: str) -> None:
    """Render what doing nothing gives for one photo: it has to be a picture, for every metric takes it."""
    with running_users_code(f"task {name}", expected="a baseline and a render that take what its prepare makes"):
        picture = task.render(inputs, task.baseline(inputs))
    what, fix = f"picture that task {name} renders", "correct its render: RGB, clamp(0, 1)"
    if picture.ndim != 4 or picture.shape[:2] != (1, 3):
        raise ConfigError(explain(what, expected="shape (1, 3, H, W)", got=tuple(picture.shape), fix=fix))
    low, high = float(picture.min()), float(picture.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise ConfigError(explain(what, expected="values in [0, 1]", got=f"{low:.3g} to {high:.3g}", fix=fix))
    _check_own_metrics(task, picture, name)


def _check_own_metrics(task: Task, picture: Tensor, name: str) -> None:
    """Call each metric of the task's own on a picture (1, 3, H, W) and itself."""
    import torch

    own = task.own_metrics()
    expected = "names of their own, of letters, digits and _"
    fix = "name each function, and none as a metric or score of Pare's"
    if len(own) < sum(not isinstance(metric, str) for metric in task.metrics):
        raise ConfigError(explain(f"metrics of task {name}", expected=expected, got="one name twice", fix=fix))
    for title, metric in own.items():
        what = f"metric {title} of task {name}"
        if not title.isidentifier() or title in METRICS or title.startswith(("lpips", "psnr", "colourfulness")):
            raise ConfigError(explain(what, expected=expected, got=repr(title), fix=fix))
        with running_users_code(what, expected="a function (preds, target) of RGB (N, 3, H, W) in [0, 1]"):
            value = metric(picture, picture)
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        if got != (1,):
            fix = "return a number a picture, for example (preds - target).abs().mean((1, 2, 3))"
            raise ConfigError(explain(what, expected="a tensor of shape (1,) for one picture", got=got, fix=fix))


def _several(answer: object) -> str:
    """Say what a network returned in place of one tensor."""
    from optimize.channel_trace import flatten

    shapes = [tuple(part.shape) for part in flatten(answer)]
    keys = f" ({', '.join(map(str, answer))})" if isinstance(answer, dict) else ""
    return f"a {type(answer).__name__} of {len(shapes)} tensors {shapes}{keys}"


def check_lpips(recipe: Recipe, configs: Iterable[Any]) -> None:
    """Load every LPIPS net that a run measures and trains with: weights that are missing show before hours of work.

    Raises:
        UnknownNameError: No such net.
        MissingWeightsError: Its weights are nowhere.
        CheckpointError: They are damaged, or those of another net.
    """
    from benchmarks.metrics import load_lpips

    nets = [getattr(config, "lpips_net", None) for config in configs if getattr(config, "perceptual_weight", 0)]
    for net in dict.fromkeys([recipe.lpips_net, *nets]):
        if net is not None:
            load_lpips(net, recipe.lpips_weights)


def check_device(device: str) -> None:
    """Raise UnsupportedError when PyTorch does not see ``device`` here."""
    import torch

    is_absent = (device == "cuda" and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    )
    if is_absent:
        expected = f"{'a CUDA' if device == 'cuda' else 'an Apple'} GPU that PyTorch sees"
        fix = "pass --device cpu, or leave it out"
        raise UnsupportedError(explain("device", expected=expected, got="none", fix=fix))


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch compute with ``threads`` threads inside of the block; None leaves their number as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_context(
    recipe: Recipe, photos: Photos, teacher: Artifact | None, *, cache: Path, progress: Progress
) -> StageContext:
    """Gather what stages need."""
    return StageContext(
        train=photos.train,
        eval=photos.eval,
        calibration=photos.calibration,
        input_size=recipe.input_size,
        seed=recipe.seed,
        device=recipe.device,
        threads=recipe.threads,
        lpips_net=recipe.lpips_net,
        lpips_weights=recipe.lpips_weights,
        teacher=teacher,
        cache=cache,
        progress=progress,
    )


def weights_fingerprint(path: Path | None) -> str | None:
    """Hash the LPIPS weights that a recipe names; None where it names none."""
    return sha256_of(path)[:16] if path is not None and path.exists() else None
