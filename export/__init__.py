"""Targets: one module each converts a ``torch`` artifact and runs the result. Imports only ``models``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.registry import TARGETS, get_target, list_targets, target_of
from models.spec import check_threads

if TYPE_CHECKING:
    from export.target import Runner, Target

__all__ = ["TARGETS", "can_run", "get_target", "list_targets", "open_emulated", "open_runner", "target_of"]


def _target_for(path: Path) -> Target:
    """Return the target of an artifact: by its sidecar where there is one (checked), else by its suffix."""
    from models.artifact import Artifact, sidecar_of

    if not path.exists() or sidecar_of(path).exists():
        return get_target(Artifact.load(path).format)
    return target_of(path)


def open_runner(path: str | Path, device: str | None = None, threads: int | None = None) -> Runner:
    """Load an artifact of any target for inference.

    Args:
        path: Artifact; its target is read from the sidecar, or told by the suffix where there is none.
        device: One of the target's devices; None takes the target's first one.
        threads: Threads of the runtime; None leaves the choice to it.

    Raises:
        CheckpointError: The artifact is missing, or is not what its sidecar says.
        MissingExtraError: The runtime is not installed.
        ConfigError: No number of threads.
        UnsupportedError: It cannot run here; the message says why.
    """
    path = Path(path)
    check_threads(threads)
    target = _target_for(path)
    device = target.devices[0] if device is None else device
    target.check_device(device)
    return target.load().open_runner(path, device=device, threads=threads)


def open_emulated(path: str | Path, threads: int | None = None) -> Runner:
    """Open a runner that computes the artifact's graph with another runtime, where the target has one.

    Its answers are good for quality, its latency means nothing; ``emulated`` is True and ``reason`` says why.

    Raises:
        UnsupportedError: The target needs or has no emulation.
    """
    from models.errors import UnsupportedError, explain

    path = Path(path)
    check_threads(threads)
    target = _target_for(path)
    opener = getattr(target.load(), "open_emulated", None)
    if opener is None:
        fix = "use open_runner"
        raise UnsupportedError(explain("emulation", expected="tensorrt or coreml", got=target.name, fix=fix))
    runner: Runner = opener(path, threads=threads)
    return runner


def can_run(path: str | Path, device: str | None = None) -> str | None:
    """Return None where the artifact runs on ``device`` of this machine, else the reason why not."""
    target = _target_for(Path(path))
    device = target.devices[0] if device is None else device
    target.check_device(device)
    return target.load().can_run(device)
