"""Training in two steps: the network at the start level, then what tunes it, alone, at the end level.

A network says with ``tuning_parameters()`` what the second step changes, and with ``first_step_trains_all = True`` that
the first one trains that too; or with ``blends = True`` that the second changes everything and that the weights before
it are kept beside (deep network interpolation). Where a network has ``finished()``, what that returns is what is saved.

Source: He et al. 2019 (AdaFM), Lee et al. 2020 (FTN), Wang et al. 2019 (DNI).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from models.artifact import read_tensors, save_tensors

if TYPE_CHECKING:
    from models.tasks.base import Task
    from optimize.loop import Fit

SNAPSHOT = "train.start.safetensors"
_HALF_WAY = 0.5


def has_two_steps(net: nn.Module, task: Task) -> bool:
    """Return whether ``net`` is trained in two steps: it says so, and its task has a control to fix."""
    return bool(task.controls) and (hasattr(net, "tuning_parameters") or getattr(net, "blends", False))


class TwoSteps:
    """The schedule of one training.

    Args:
        fit: The training.
        task: Its control goes from its smallest value to its largest.
        second_from: Share of the training after which the second step begins, in (0, 1).
        out: Folder of the snapshot.
    """

    def __init__(self, fit: Fit, task: Task, second_from: float, out: Path) -> None:
        self.fit, self.task, self.second_from = fit, task, second_from
        self.snapshot = out / SNAPSHOT
        if fit.step == 0:
            self.snapshot.unlink(missing_ok=True)
        self._second: bool | None = None

    def prepare(self, rgb: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        """Return input and target of a batch at the level of this step; each step has a learning rate schedule."""
        second = fraction >= self.second_from
        if second != self._second:
            self._switch(second)
        begin, end = (self.second_from, 1.0) if second else (0.0, self.second_from)
        self.fit.set_rate((fraction - begin) / (end - begin))
        control = self.task.controls[0]
        return self.task.prepare_at(rgb, [control.maximum if second else control.minimum])

    def _switch(self, second: bool) -> None:
        """Freeze what this step does not change; keep the weights of the first step where they are blended later."""
        self._second, net = second, self.fit.raw_net
        if getattr(net, "blends", False):
            if second and not self.snapshot.exists() and self.fit.accelerator.is_main_process:
                save_tensors(self.fit.ema.net.state_dict(), self.snapshot)
            return
        tuning: Sequence[nn.Parameter] = net.tuning_parameters()  # type: ignore[operator]
        changed, all_first = {id(parameter) for parameter in tuning}, getattr(net, "first_step_trains_all", False)
        for parameter in net.parameters():
            parameter.requires_grad_((id(parameter) in changed) == second or (all_first and not second))


def finish(net: nn.Module, kwargs: Mapping[str, Any], path: Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Return the network to save at ``path``, its factory arguments, and what the sidecar says of its blend.

    Of a network that blends, both ends are written beside ``path``, and the network gets the weights half way.
    """
    if hasattr(net, "finished"):
        made, own = net.finished()  # type: ignore[operator]
        return made, {**kwargs, **own}, {}
    snapshot = path.with_name(SNAPSHOT)
    if not getattr(net, "blends", False) or not snapshot.exists():
        return net, dict(kwargs), {}
    from models.two_ends import blend

    ends = {"start": read_tensors(snapshot), "end": dict(net.state_dict())}
    files = {name: path.with_name(f"{path.stem}.{name}.safetensors") for name in ends}
    for name, state in ends.items():
        save_tensors(state, files[name])
    net.load_state_dict(blend(ends["start"], ends["end"], _HALF_WAY))
    note = {"alpha": _HALF_WAY, **{name: file.name for name, file in files.items()}}
    return net, {**kwargs, "alpha": _HALF_WAY}, {"blend": note}
