"""Which sizes of crops a teacher and its student take: some networks run at one size alone, or want large multiples."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.artifact import Artifact, load_network
from models.errors import UnsupportedError, explain, first_line
from models.modes import in_eval_mode
from models.photos import centre_crop, to_batch
from models.registry import get_spec, get_task
from optimize.loop import FitConfig

if TYPE_CHECKING:
    from models.spec import TensorSpec
    from optimize.stage import StageContext


def refusal(net: nn.Module, inputs: Tensor, made: TensorSpec) -> str | None:
    """Return why ``net`` cannot take ``inputs`` (N, C, H, W), or gives another shape than ``made`` says, or None."""
    device = next((parameter.device for parameter in net.parameters()), inputs.device)
    try:
        with torch.no_grad(), in_eval_mode(net):
            answer = net(inputs.to(device))
    except Exception as error:  # code of the user's may raise anything
        return first_line(error)
    want = made.at(N=len(inputs), H=inputs.shape[2], W=inputs.shape[3]).shape
    got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    return None if got == want else f"output {got} in place of {want}"


def check_student(student: nn.Module, name: str, teacher: Artifact, data: StageContext) -> None:
    """Raise UnsupportedError when ``student``, called ``name``, cannot do at the run's size what ``teacher`` does."""
    task, made = get_task(teacher.task), get_spec(teacher.model, task=teacher.task).outputs[0]
    inputs = task.inputs_of(to_batch([centre_crop(data.train.load(0), *task.photo_size(data.input_size))]))
    if (reason := refusal(student, inputs, made)) is not None:
        height, width = data.input_size
        fix = "pass another --student (teacher: itself narrowed), its student_kwargs, or another --input-size"
        expected = f"an answer at {height}x{width}"
        raise UnsupportedError(explain(f"student {name}", expected=expected, got=reason, fix=fix))


def fitting(config: FitConfig, teacher: Artifact, student: nn.Module, data: StageContext) -> FitConfig:
    """Return ``config`` with crops that both networks take: those asked for, else larger ones, else the run's own size.

    Raises:
        UnsupportedError: There is none.
    """
    task, spec = get_task(teacher.task), get_spec(teacher.model, task=teacher.task)
    networks = {"the teacher": load_network(teacher), "the student": student}

    def objection(size: int) -> str | None:
        inputs = task.inputs_of(to_batch([centre_crop(data.train.load(0), size, size)]))
        found = ((name, refusal(net, inputs, spec.outputs[0])) for name, net in networks.items())
        return next((f"{name}: {why}" for name, why in found if why is not None), None)

    def best(size: int) -> int:
        if (reason := objection(size)) is None:
            return size
        side = size // task.photo_scale
        others = (spec.size.fit(side, side)[0] * task.photo_scale, *task.photo_size(data.input_size))
        other = next((other for other in others if other != size and objection(other) is None), None)
        if other is None:
            fix = "set the sizes of fit.phases, or pass another --student or --input-size"
            raise UnsupportedError(explain(f"crops of {size}x{size}", expected="an answer", got=reason, fix=fix))
        data.progress.note(f"Crops of {other}x{other}, not {size}x{size} ({reason})")
        return other

    sizes = {size: best(size) for size in dict.fromkeys(phase.size for phase in config.phases)}
    return replace(config, phases=tuple(replace(phase, size=sizes[phase.size]) for phase in config.phases))
