"""Fixing a strength before an export: ``--set alpha=0.3`` makes the plain network of that level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.artifact import Artifact, load_network, read_tensors, save_network
from models.errors import UnsupportedError, UsageError, explain
from models.registry import get_spec

if TYPE_CHECKING:
    from torch import nn


def blended(artifact: Artifact, values: Mapping[str, float], output: Path) -> Artifact:
    """Return the network of ``artifact`` at ``values``, written beside ``output``.

    Args:
        artifact: ``torch`` artifact: one whose sidecar names the two ends of a blend (``optimize train`` of a network
            that blends), or one whose network folds a level into its weights (``models.fixed_level``).
        values: {name of the control: its value}; one control.
        output: What will be exported; the network is ``<stem>.<name>-<value>.safetensors`` beside it.

    Returns:
        The plain network; its factory arguments keep the value through all later stages and exports.

    Raises:
        UsageError: Not a control of this network that can be fixed, or a value out of its range.
        UnsupportedError: The artifact has no ends (it was pruned or distilled after the blend), or cannot be folded.
    """
    controls = {control.name: control for control in get_spec(artifact.model, task=artifact.task).controls}
    if len(values) != 1 or not set(values) <= set(controls):
        expected = " | ".join(controls) or f"nothing: {artifact.model} has no strength"
        got, fix = ", ".join(values) or "nothing", "name a control of this network"
        raise UsageError(explain("--set", expected=expected, got=got, fix=fix))
    ((name, value),) = values.items()
    control = controls[name]
    if not control.minimum <= value <= control.maximum:
        fix = "choose a value between"
        expected = f"{control.minimum:g} to {control.maximum:g}"
        raise UsageError(explain(f"--set {name}", expected=expected, got=f"{value:g}", fix=fix))
    make = _between if control.kind == "weight_blend" else _folded
    net, model, kwargs = make(artifact, name, value)
    return save_network(
        net,
        output.with_name(f"{output.stem}.{name}-{value:g}.safetensors"),
        model=model,
        task=artifact.task,
        stages=artifact.stages,
        parent=artifact,
        model_kwargs=kwargs,
    )


def _between(artifact: Artifact, name: str, value: float) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return the network between the two ends, its model and its factory arguments."""
    note = artifact.metadata.get("blend")
    if not isinstance(note, dict):
        fix = "blend what `optimize train` wrote, and go on from there"
        got = "an artifact without them"
        raise UnsupportedError(explain(f"blend of {artifact.path.name}", expected="its two ends", got=got, fix=fix))
    from models.two_ends import blend

    start, end = (read_tensors(artifact.path.with_name(str(note[key]))) for key in ("start", "end"))
    net = load_network(artifact)
    net.load_state_dict(blend(start, end, value))
    return net, artifact.model, {**artifact.model_kwargs, name: value}


def _folded(artifact: Artifact, name: str, value: float) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return the plain network of one level, its model and its factory arguments."""
    from models.fixed_level import fix_level

    return fix_level(load_network(artifact), value)
