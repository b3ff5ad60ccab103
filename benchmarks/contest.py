"""Opening every artifact that is to be compared: runner, probe, and for what cannot run here the reason."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.probe import Probe, example, probe_in_subprocess
from benchmarks.row import Status
from benchmarks.settings import AUTO
from benchmarks.subject import Subject
from export import can_run, get_target, open_emulated, open_runner
from export.contract import is_picture
from models.artifact import Artifact
from models.controls import graph_feeds
from models.errors import InputSizeError, PareError, UnsupportedError, UsageError, explain
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_spec, get_task
from models.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.target import Runner

_NO_INT8 = "PyTorch eager computes in FP32 only; its INT8 numbers are those of the artifacts exported from it"
_NOT_PROBED = "not asked for"


@dataclass
class Contestant:
    """One artifact on one device.

    Attributes:
        artifact: What is compared.
        device: Where it was asked to run.
        runner: Open runner, or None where there is none.
        probe: Answers of a fresh process, or None.
        status: ``measured`` until something speaks against it.
        reasons: What is missing -> why.
    """

    artifact: Artifact
    device: str
    runner: Runner | None = None
    probe: Probe | None = None
    status: Status = "measured"
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in a contest."""
        return name_of(self.artifact, self.device)

    @property
    def can_be_timed(self) -> bool:
        """Whether its latency means something here."""
        return self.status == "measured" and self.runner is not None

    @property
    def subject(self) -> Subject:
        """What is judged, with the pictures that its graph takes and gives; it needs an open runner."""
        if self.runner is None:
            raise UsageError(explain(self.name, expected="an open runner", got="none", fix="check can_be_timed"))
        task = get_task(self.artifact.task)
        takes = is_picture(self.runner.inputs[0], task.inputs[0])
        return Subject(self.infer, takes, is_picture(self.runner.outputs[0], task.outputs[0]))

    def drop(self, status: Status, error: BaseException) -> None:
        """Take it out of the contest and remember why."""
        self.status, self.runner = status, None
        self.reasons = {"latency, quality": say(error)}

    def infer(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the first output of ``inputs`` (1, C, H, W); controls as packed there, else at their defaults."""
        if self.runner is None:
            raise UsageError(explain(self.name, expected="an open runner", got="none", fix="check can_be_timed"))
        knobs: dict[str, float] = {}
        if len(self.runner.inputs) > 1:
            row = get_spec(self.artifact.model, task=self.artifact.task)
            knobs = {knob.name: knob.default for knob in row.controls}
        feeds = graph_feeds(inputs, self.runner.inputs, knobs)
        return self.runner.infer(feeds)[self.runner.outputs[0].name]


def name_of(artifact: Artifact, device: str) -> str:
    """Return the name of an artifact on a device within a contest."""
    return f"{artifact.path}#{artifact.sha256}@{device}"


def say(error: BaseException) -> str:
    """Return the text of an error in one line; the class is named where Pare did not raise it itself."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PareError) else f"{type(error).__name__}: {text}"


def open_contestants(
    artifacts: Sequence[Artifact],
    stack: ExitStack,
    *,
    device: str = AUTO,
    threads: int | None = None,
    input_size: tuple[int, int] = (256, 256),
    probes: bool = True,
    progress: Progress = NULL_PROGRESS,
) -> list[Contestant]:
    """Probe and open every artifact; whatever goes wrong with one is written down and the others go on.

    Args:
        artifacts: What is compared.
        stack: Closes the runners.
        device: ``auto``: each target's own first device; else this one, and targets that do not know it say so.
        threads: Threads of each engine.
        input_size: Height and width, pixels.
        probes: Measure load time and memory in a fresh process each.
        progress: Where to report.
    """
    contestants = []
    with progress.track("Opening artifacts", total=len(artifacts)) as bar:
        for artifact in artifacts:
            chosen = get_target(artifact.format).devices[0] if device == AUTO else device
            contestant = Contestant(artifact, chosen)
            try:
                _open(contestant, stack, threads=threads, input_size=input_size, probes=probes)
            except (InputSizeError, UnsupportedError) as error:
                contestant.drop("unsupported", error)
            except Exception as error:  # a third-party runtime may raise anything; the other artifacts go on
                contestant.drop("failed", error)
            contestants.append(contestant)
            bar.advance()
    return contestants


def _open(
    contestant: Contestant, stack: ExitStack, *, threads: int | None, input_size: tuple[int, int], probes: bool
) -> None:
    artifact, device = contestant.artifact, contestant.device
    target = get_target(artifact.format)
    if artifact.format == "torch" and artifact.precision is Precision.INT8:
        contestant.status, contestant.reasons = "built", {"latency, quality": _NO_INT8}
        return
    blocked = _why_not(artifact, device)
    if blocked is not None:
        contestant.status, contestant.reasons["latency"] = "built", blocked
        try:
            contestant.runner = stack.enter_context(open_emulated(artifact.path, threads=threads))
        except PareError as error:
            contestant.reasons["quality"] = say(error) if target.name in ("tensorrt", "coreml") else "it did not run"
            return
    else:
        if probes:
            contestant.probe = probe_in_subprocess(
                artifact.path, target=target.name, device=device, threads=threads, input_size=input_size
            )
        else:
            contestant.reasons["load, memory"] = _NOT_PROBED
        contestant.runner = stack.enter_context(open_runner(artifact.path, device=device, threads=threads))
    contestant.runner.infer({spec.name: example(spec, input_size) for spec in contestant.runner.inputs})


def _why_not(artifact: Artifact, device: str) -> str | None:
    """Return why the artifact cannot run on ``device`` here, or None."""
    devices = get_target(artifact.format).devices
    if device not in devices:
        return f"{artifact.format} runs on {' | '.join(devices)}, not on {device}"
    try:
        return can_run(artifact.path, device)
    except (UnsupportedError, ImportError) as error:
        return say(error)
    except PareError as error:
        if type(error).__name__ == "MissingExtraError":
            return say(error)
        raise
