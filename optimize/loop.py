"""One resumable training loop, through Hugging Face Accelerate: processes, GPUs and precision are launcher flags."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from accelerate.accelerator import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.operations import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import cpu_flags
from models.artifact import read_tensors, save_tensors
from models.errors import CheckpointError, ConfigError, InputSizeError, TrainingError, explain
from models.layers import detach_computed_weights
from models.progress import NULL_PROGRESS, Bar, Progress
from optimize.losses import check_gradient
from optimize.muon import Muon
from optimize.strided import slice_strided

if TYPE_CHECKING:
    from models.spec import ModelSpec
    from models.tasks.base import Task

#: Instructions that multiply in BF16: Intel and AMD, ARM.
_BF16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
#: What PyTorch says of a value that a backward needs and that is no longer what it was.
_OVERWRITTEN = "needed for gradient computation has been modified by an inplace operation"
#: What PyTorch says of a view that the order of a tensor's values in memory does not allow.
_UNVIEWABLE = "view size is not compatible with input tensor's size and stride"
#: (batch, fraction of the training) -> losses, ``loss`` among them.
Step = Callable[[Any, float], Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Phase:
    """A part of a training at one crop size.

    Attributes:
        size: Side of the crops, pixels.
        epochs: Passes over the photos.
        batch_size: Crops a step.
    """

    size: int
    epochs: int
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.size < 32 or self.epochs < 1 or self.batch_size < 1:
            got = f"size {self.size}, epochs {self.epochs}, batch_size {self.batch_size}"
            expected = "size >= 32, epochs >= 1, batch_size >= 1"
            raise ConfigError(explain("phase", expected=expected, got=got, fix="change the recipe"))


@dataclass(frozen=True)
class FitConfig:
    """How to optimize.

    Attributes:
        phases: Crop sizes in turn, small to large.
        optimizer: ``adamw``, or ``muon`` (``optimize.muon``), which takes many networks further in the same minutes.
        learning_rate: Peak of AdamW's rate; 5% warm-up, cosine to 1%.
        weight_decay: AdamW's decay.
        ema_decay: Decay of the moving average of the weights, which is what is kept.
        clip_norm: Largest gradient norm.
        mixed_precision: ``no``, ``bf16`` or ``fp16``, as Accelerate names them; ``auto`` is ``bf16`` where the device
            has instructions for it, else ``no``.
        max_minutes: End after this many minutes of training, the schedule shortened to fit; None: no limit.
        checkpoint_seconds: Time between two checkpoints.
        seed: Start of all random numbers.
        min_area: Smallest share of a photo's central square that a crop covers.
        tone_jitter: Half-width of the random gamma of a crop, in log2.
        repeat: Crops of each photo in an epoch.
    """

    phases: tuple[Phase, ...]
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    max_minutes: float | None = None
    checkpoint_seconds: float = 120.0
    seed: int = 0
    min_area: float = 0.4
    tone_jitter: float = 0.15
    repeat: int = 1

    def __post_init__(self) -> None:
        if not self.phases:
            raise ConfigError(explain("phases", expected="one or more", got="none", fix="add a phase to the recipe"))
        if not self.learning_rate > 0 or not 0 <= self.ema_decay < 1:
            got = f"learning_rate {self.learning_rate}, ema_decay {self.ema_decay}"
            expected = "learning_rate > 0, ema_decay in [0, 1)"
            raise ConfigError(explain("optimizer", expected=expected, got=got, fix="change the recipe"))
        if not self.weight_decay >= 0 or not self.clip_norm > 0 or not self.checkpoint_seconds >= 0:
            got = f"{self.weight_decay}, {self.clip_norm}, {self.checkpoint_seconds}"
            expected = "weight_decay >= 0, clip_norm > 0, checkpoint_seconds >= 0"
            raise ConfigError(explain("optimizer", expected=expected, got=got, fix="change the recipe"))
        if not 0 < self.min_area <= 1 or not self.tone_jitter >= 0 or self.repeat < 1:
            got = f"min_area {self.min_area}, tone_jitter {self.tone_jitter}, repeat {self.repeat}"
            expected = "min_area in (0, 1], tone_jitter >= 0, repeat >= 1"
            raise ConfigError(explain("crops", expected=expected, got=got, fix="change the recipe"))
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ConfigError(explain("max_minutes", expected="above 0", got=self.max_minutes, fix="leave it out"))


def check_crops(config: FitConfig, spec: ModelSpec, task: Task) -> None:
    """Raise InputSizeError when the network of ``spec`` cannot take the crops of a phase."""
    factor = task.photo_size((1, 1))[0]
    for phase in config.phases:
        try:
            spec.size.check(phase.size // factor, phase.size // factor)
        except InputSizeError as error:
            side = factor * spec.size.fit(phase.size // factor, phase.size // factor)[0]
            least, step = factor * spec.size.minimum, factor * spec.size.multiple_of
            expected = f"at least {least} pixels and a multiple of {step}"
            fix = f"write size: {side} in fit.phases"
            what = f"crops that {spec.name} learns from"
            raise InputSizeError(explain(what, expected=expected, got=phase.size, fix=fix)) from error


class Ema:
    """Moving average of a network's floating tensors (weights and BatchNorm statistics)."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        detach_computed_weights(net)
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move towards ``net``; early steps move faster."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, value in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)


class Fit:
    """State of a running optimization: network, average, optimizer, position.

    Args:
        net: Network to train, in place.
        config: How.
        extras: Other trained parts that belong to a checkpoint (projections); optimized together with ``net``.
        adversaries: Parts with an optimizer of their own (a discriminator), stepped by the caller.
        checkpoint: File of the resumable state.
    """

    def __init__(
        self,
        net: nn.Module,
        config: FitConfig,
        *,
        checkpoint: Path,
        extras: nn.Module | None = None,
        adversary: nn.Module | None = None,
        adversary_learning_rate: float = 2e-4,
    ) -> None:
        torch.manual_seed(config.seed)
        on_gpu = torch.cuda.is_available()
        self.accelerator = _accelerator(settled_precision(config.mixed_precision), cpu=not on_gpu)
        self.config, self.checkpoint = config, checkpoint
        parts = nn.ModuleDict({"net": net, **({"extras": extras} if extras is not None else {})})
        _lay_out(parts, torch.channels_last)
        slice_strided(parts)
        kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
        optimizer = kind(parts.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.ema = Ema(net, config.ema_decay)
        self.ema.net.to(self.accelerator.device)
        self.net, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.extras = self.accelerator.prepare(extras) if extras is not None else None
        self.adversary, self.adversary_optimizer = None, None
        if adversary is not None:
            rival = torch.optim.AdamW(adversary.parameters(), lr=adversary_learning_rate, betas=(0.5, 0.99))
            self.adversary, self.adversary_optimizer = self.accelerator.prepare(adversary, rival)
        self.step, self.seconds = 0, 0.0
        self._channels_last, self._keeps_overwritten = True, False

    @property
    def raw_net(self) -> nn.Module:
        """The network without the launcher's wrapper."""
        net: nn.Module = self.accelerator.unwrap_model(self.net)
        return net

    @property
    def account(self) -> dict[str, Any]:
        """What the training took: steps, seconds, and the precision that it was computed in."""
        precision = self.accelerator.mixed_precision
        return {"steps": self.step, "seconds": round(self.seconds, 1), "mixed_precision": precision}

    def _parts(self) -> dict[str, nn.Module]:
        parts = {"net": self.raw_net, "ema": self.ema.net}
        if self.extras is not None:
            parts["extras"] = self.accelerator.unwrap_model(self.extras)
        if self.adversary is not None:
            parts["adversary"] = self.accelerator.unwrap_model(self.adversary)
        return parts

    def save(self) -> None:
        """Write the resumable state as safetensors, in one step (main process only)."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"{part}/{key}": value for part, net in self._parts().items() for key, value in _state(net).items()}
        for name, optimizer in (("adam", self.optimizer), ("rival", self.adversary_optimizer)):
            for index, state in (optimizer.state_dict()["state"] if optimizer is not None else {}).items():
                tensors.update({f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()})
        tensors["position"] = torch.tensor([self.step, self.seconds, self.ema.steps], dtype=torch.float64)
        save_tensors(tensors, self.checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one of this network; say whether."""
        if not self.checkpoint.exists():
            return False
        tensors = read_tensors(self.checkpoint)
        try:
            for part, net in self._parts().items():
                net.load_state_dict(_under(tensors, part))
            self._load_optimizer(self.optimizer, _under(tensors, "adam"))
            if self.adversary_optimizer is not None:
                self._load_optimizer(self.adversary_optimizer, _under(tensors, "rival"))
            step, self.seconds, ema_steps = tensors["position"].tolist()
        except (RuntimeError, KeyError) as error:
            fix = "remove it, or resume with the recipe that it was written by"
            got = " ".join(str(error).split())[:300]
            message = explain(f"{self.checkpoint}", expected="a checkpoint of this training", got=got, fix=fix)
            raise CheckpointError(message) from error
        self.step, self.ema.steps = int(step), int(ema_steps)
        return True

    @staticmethod
    def _load_optimizer(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
        content = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, _, field = key.partition("/")
            state.setdefault(int(index), {})[field] = value
        content["state"] = state
        optimizer.load_state_dict(content)

    def agree(self) -> None:
        """Let all processes of a launcher take the first one's time, so that they end together."""
        if self.accelerator.num_processes > 1:
            seconds = torch.tensor([self.seconds], dtype=torch.float32, device=self.accelerator.device)
            self.seconds = float(broadcast(seconds)[0])

    def fraction(self, total: int) -> float:
        """Return how much of the training is over, by steps or by time, in [0, 1]."""
        done = self.step / max(total, 1)
        if self.config.max_minutes is not None:
            done = max(done, self.seconds / (60 * self.config.max_minutes))
        return min(done, 1.0)

    def shown(self, total: int) -> float:
        """Return how much is done: steps, or percent where the time is limited."""
        return self.step if self.config.max_minutes is None else 100 * self.fraction(total)

    def set_rate(self, fraction: float) -> None:
        """Set the learning rate of ``fraction``: 5% warm-up, then cosine to 1%."""
        warm = min(1.0, (fraction + 1e-3) / 0.05)
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warm * cosine

    def descend(self, loss: Tensor) -> None:
        """Backward, clip, step, average.

        Raises:
            TrainingError: The loss or its gradient is NaN or infinite; the weights are as before, and so is the last
                checkpoint.
            UnsupportedError: The network lets no gradient through.
        """
        if not torch.isfinite(loss):
            raise self._diverged("loss", float(loss.detach()))
        check_gradient(loss)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.net.parameters(), self.config.clip_norm)
        if self.config.mixed_precision != "fp16" and norm is not None and not torch.isfinite(norm):
            raise self._diverged("gradient", float(norm))  # in fp16 the loss scale is lowered instead
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.raw_net)

    def concede(self, error: RuntimeError) -> bool:
        """Give up what ``error`` says that the network does not go with; say whether a step is worth another try.

        Tensors are stored with channels last, which is faster on a CPU; a network that views them as only the usual
        order allows (``x.view(len(x), -1)``) gets that. What its backward needs is not copied, unless it writes over
        it (``x[:, :8] = self.conv(x[:, :8])``).
        """
        if self._channels_last and _UNVIEWABLE in str(error):
            self._channels_last = False
            for net in self._parts().values():
                _lay_out(net, torch.contiguous_format)
        elif not self._keeps_overwritten and _OVERWRITTEN in str(error):
            self._keeps_overwritten = True
        else:
            return False
        self.optimizer.zero_grad()
        return True

    def keeping(self) -> AbstractContextManager[Any]:
        """Keep what a backward needs in a step from forward to descent, where the network writes over it."""
        return torch.autograd.graph.allow_mutation_on_saved_tensors() if self._keeps_overwritten else nullcontext()

    def _diverged(self, what: str, value: float) -> TrainingError:
        fix = f"lower --learning-rate (now {self.config.learning_rate:g})"
        if self.checkpoint.exists():
            fix += f"; {self.checkpoint} resumes before it"
        return TrainingError(explain(what, expected="finite numbers", got=f"{value} at step {self.step}", fix=fix))


def _lay_out(net: nn.Module, memory_format: torch.memory_format) -> None:
    """Store the images and filters of ``net`` in this order; tensors of another rank have but one."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.clone(memory_format=memory_format)  # contiguous() leaves 1x1 filters as they are


def settled_precision(mixed_precision: str) -> str:
    """Return what ``auto`` is on this machine; others stay.

    Without instructions for it ``bf16`` is emulated: a step of seven networks took 1.05 to 3.7 times as long as in FP32
    on a Xeon of that kind (docs/distillation.md), and half as long on an EPYC that has AVX512_BF16.
    """
    if mixed_precision != "auto":
        return mixed_precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if _BF16 & set(cpu_flags()) else "no"


def _accelerator(mixed_precision: str, *, cpu: bool) -> Accelerator:
    """Make an Accelerator; its shared state is renewed when an earlier training had another precision."""
    state: Any = AcceleratorState
    if state._shared_state and state().mixed_precision != mixed_precision:
        state._reset_state()
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu)


def _state(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.state_dict())


def _under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key[len(part) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{part}/")}


class EpochDataset(Protocol):
    """A map-style dataset whose random numbers depend on ``epoch``."""

    epoch: int

    def __len__(self) -> int:
        """Return the number of items in an epoch."""

    def __getitem__(self, index: int) -> Any:
        """Return one item."""


def total_steps(config: FitConfig, photos: int, processes: int = 1) -> int:
    """Return the optimization steps of all phases."""
    return sum(_steps_per_epoch(phase, photos * config.repeat, processes) * phase.epochs for phase in config.phases)


def _steps_per_epoch(phase: Phase, crops: int, processes: int) -> int:
    return max(crops // (phase.batch_size * processes), 1)


def _epochs(config: FitConfig) -> Iterator[tuple[int, Phase]]:
    epoch = 0
    for phase in config.phases:
        for _ in range(phase.epochs):
            yield epoch, phase
            epoch += 1


def run_fit(
    fit: Fit,
    dataset_of: Callable[[Phase], EpochDataset],
    step: Step,
    *,
    description: str,
    progress: Progress = NULL_PROGRESS,
    on_epoch: Callable[[int], None] | None = None,
) -> None:
    """Run all phases; ``step(batch, fraction)`` returns at least ``loss`` and is followed by one descent.

    A checkpoint is written every ``checkpoint_seconds``, at the end, and when interrupted.

    Raises:
        TrainingError: The loss or its gradient became NaN or infinite; the last checkpoint stays as it was.
        UnsupportedError: The network lets no gradient through.
        RunFolderError: The disk is full.
    """
    config = fit.config
    datasets: dict[int, EpochDataset] = {}
    for phase in config.phases:
        datasets[phase.size] = datasets.get(phase.size) or dataset_of(phase)
    crops, workers = len(datasets[config.phases[0].size]), fit.accelerator.num_processes
    total = sum(_steps_per_epoch(phase, crops, workers) for _, phase in _epochs(config))
    begun, saved, sound = 0, time.monotonic(), True
    fit.net.train()
    _take_shipped_path(fit.raw_net)
    with _bar_of(fit, total, description, progress) as bar:
        try:
            for epoch, phase in _epochs(config):
                count = _steps_per_epoch(phase, crops, workers)
                if fit.step >= begun + count:
                    begun += count
                    continue
                for batch in _loader(fit, datasets[phase.size], phase, epoch, skip=fit.step - begun):
                    start = time.monotonic()
                    fit.agree()
                    fraction = fit.fraction(total)
                    if fraction >= 1.0:
                        return
                    fit.set_rate(fraction)
                    shown = fit.shown(total)
                    values = _descended(fit, step, batch, fraction)
                    fit.step += 1
                    now = time.monotonic()
                    fit.seconds += now - start
                    losses = {key: float(value.detach()) for key, value in values.items()}
                    bar.advance(fit.shown(total) - shown, **losses, step=fit.step, size=phase.size)
                    if now - saved > config.checkpoint_seconds:
                        fit.save()
                        saved = time.monotonic()
                begun += count
                if on_epoch is not None:
                    on_epoch(epoch)
        except TrainingError:
            sound = False
            raise
        finally:
            if sound:
                fit.save()


def _take_shipped_path(net: nn.Module) -> None:
    """Train the layers of PyTorch (dropout, statistics); modules that only hold them go on as when they ship.

    A network with several outputs in training (deep supervision) has a loss on one here, and its other heads may no
    longer fit to what was pruned.
    """
    for module in net.modules():
        kinds = [kind for kind in type(module).__mro__ if kind is not nn.Module]
        module.training = any(kind.__module__.startswith("torch.nn.modules.") for kind in kinds)


def _descended(fit: Fit, step: Step, batch: Any, fraction: float) -> Mapping[str, Tensor]:
    """Compute the losses of a batch and descend."""
    try:
        with fit.keeping():
            values = step(batch, fraction)
            fit.descend(values["loss"])
    except RuntimeError as error:
        if not fit.concede(error):
            raise
        return _descended(fit, step, batch, fraction)
    return values


def _bar_of(fit: Fit, total: int, description: str, progress: Progress) -> AbstractContextManager[Bar]:
    """Open a bar of steps, or of percent where the time is limited: the ETA is that of what ends first."""
    if fit.config.max_minutes is None:
        return progress.track(description, total=total, completed=fit.step)
    return progress.track(f"{description} (%)", total=100, completed=fit.shown(total))


def _loader(fit: Fit, dataset: EpochDataset, phase: Phase, epoch: int, *, skip: int) -> Any:
    dataset.epoch = epoch
    generator = torch.Generator().manual_seed(fit.config.seed * 100_003 + epoch)
    full = len(dataset) >= phase.batch_size * fit.accelerator.num_processes
    loader: Any = DataLoader(
        cast("Dataset[Any]", dataset), phase.batch_size, shuffle=True, generator=generator, drop_last=full
    )
    loader = fit.accelerator.prepare(loader)
    return fit.accelerator.skip_first_batches(loader, skip) if skip else loader


def phases_from(sizes: Sequence[int], epochs: Sequence[int], batch_sizes: Sequence[int]) -> tuple[Phase, ...]:
    """Zip three lists of a command line into phases."""
    if not len(sizes) == len(epochs) == len(batch_sizes):
        got = f"{len(sizes)} sizes, {len(epochs)} epochs, {len(batch_sizes)} batch sizes"
        raise ConfigError(
            explain("phases", expected="three lists of one length", got=got, fix="repeat the flags alike")
        )
    return tuple(Phase(*row) for row in zip(sizes, epochs, batch_sizes, strict=True))
