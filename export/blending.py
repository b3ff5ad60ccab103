"""Fixing a weight blend before an export: ``--set alpha=0.3`` makes the plain network of that level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.artifact import Artifact, load_network, read_tensors, save_network
from models.errors import UnsupportedError, UsageError, explain
from models.registry import get_spec


def blended(artifact: Artifact, values: Mapping[str, float], output: Path) -> Artifact:
    """Return the network of ``artifact`` blended at ``values``, written beside ``output``.

    Args:
        artifact: ``torch`` artifact whose sidecar names the two ends (``optimize train`` of a network that blends).
        values: {name of the control: its value}; one control.
        output: What will be exported; the blend is ``<stem>.<name>-<value>.safetensors`` beside it.

    Returns:
        The plain network; its factory arguments keep the value through all later stages and exports.

    Raises:
        UsageError: Not a weight blend of this network, or a value out of its range.
        UnsupportedError: The artifact has no ends: it was pruned or distilled after the blend.
    """
    blends = {c.name: c for c in get_spec(artifact.model, task=artifact.task).controls if c.kind == "weight_blend"}
    if len(values) != 1 or not set(values) <= set(blends):
        expected = " | ".join(blends) or f"nothing: {artifact.model} has no weight blend"
        fix = "leave it out; a run-time control is an input of the graph"
        raise UsageError(explain("--set", expected=expected, got=", ".join(values) or "nothing", fix=fix))
    ((name, value),) = values.items()
    control = blends[name]
    if not control.minimum <= value <= control.maximum:
        fix = "choose a value between"
        expected = f"{control.minimum:g} to {control.maximum:g}"
        raise UsageError(explain(f"--set {name}", expected=expected, got=f"{value:g}", fix=fix))
    note = artifact.metadata.get("blend")
    if not isinstance(note, dict):
        fix = "blend what `optimize train` wrote, and go on from there"
        got = "an artifact without them"
        raise UnsupportedError(explain(f"blend of {artifact.path.name}", expected="its two ends", got=got, fix=fix))
    from models.dni import blend

    start, end = (read_tensors(artifact.path.with_name(str(note[key]))) for key in ("start", "end"))
    net = load_network(artifact)
    net.load_state_dict(blend(start, end, value))
    return save_network(
        net,
        output.with_name(f"{output.stem}.{name}-{value:g}.safetensors"),
        model=artifact.model,
        task=artifact.task,
        stages=artifact.stages,
        parent=artifact,
        model_kwargs={**artifact.model_kwargs, name: value},
    )
