"""What the stages of a run did, in words and in JSON values: for the report and its notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.view import number
from models.artifact import Artifact

if TYPE_CHECKING:
    from optimize.run_state import Run

_KEPT_KEYS = ("start", "kept", "account", "speedup", "lpips_drop", "lpips_drop_symmetric", "warnings")
_STARTS = {"shipped": "the student that ships with Pare", "narrowed": "the teacher's channels", "scratch": "scratch"}


def stage_accounts(run: Run) -> list[dict[str, Any]]:
    """List what the stages did, JSON values.

    ``stage``, ``seconds``, ``accepted``, ``note``, ``scores``; where the student ``start``ed; of INT8 what the
    calibration photos cover (``coverage``), the layers in higher precision (``float_layers``) and ``warnings``.
    """
    accounts = []
    for result in run.stages:
        record, metadata = result.record, _metadata(result.artifact)
        taken = "taken" if record.accepted else f"not taken: {record.reason}"
        row = {"stage": record.name, "seconds": record.seconds, "accepted": record.accepted}
        row |= {"note": "; ".join([taken, *told(metadata)]), "scores": dict(record.scores or {})}
        row |= {name: metadata[name] for name in _KEPT_KEYS if name in metadata}
        quantized = metadata.get("quantization") or {}
        accounts.append(row | {name: quantized[name] for name in ("coverage", "float_layers") if name in quantized})
    return accounts


def told(metadata: Mapping[str, Any]) -> list[str]:
    """Say what a stage wrote down beside its result, in a few words each."""
    said = []
    if "start" in metadata:
        end = ", which was kept" if metadata.get("kept") == "start" else ""
        said.append(f"from {_STARTS[metadata['start']]}{end}")
    account = metadata.get("account") or {}
    if "steps" in account:
        crops = account.get("crops", "the")  # runs that were begun before these were counted
        said.append(f"{account['steps']} steps on {crops} answers of the teacher in {account['teacher_runtime']}")
    if "pruning_ratio" in metadata:
        said += _pruned(metadata)
    if "quantization" in metadata:
        said += _quantized(metadata)
    return said


def _pruned(metadata: Mapping[str, Any]) -> list[str]:
    said = [f"{metadata['pruning_ratio']:.0%} of the channels by {metadata['importance']}"]
    if len(params := metadata.get("params_m") or []) == 2:
        said.append(f"{params[0]:.3g} to {params[1]:.3g} M parameters")
    if metadata.get("speedup") is not None:
        said.append(f"{metadata['speedup']:.2f}x on {' and '.join(metadata['engines'])} when chosen")
    if not metadata.get("fine_tuning_used"):
        said.append("not fine-tuned" if "fine_tuning" not in metadata else "fine-tuning made it worse, left out")
    return said


def _quantized(metadata: Mapping[str, Any]) -> list[str]:
    from optimize.calibration import describe

    record = metadata["quantization"]
    floats = ", ".join(record["float_layers"]) or "none"
    said = [f"calibrated on {describe(record['coverage'])}", f"layers in higher precision: {floats}"]
    return [*said, f"LPIPS {number(metadata['lpips_drop'], 4, sign=True)}, simulated"]


def notes(run: Run) -> list[str]:
    """Say what a reader of the report must know."""
    said = []
    for result in run.stages:
        metadata = _metadata(result.artifact)
        if metadata.get("start") == "shipped":
            end = ", which was kept: training did not surely bring it closer" if metadata.get("kept") == "start" else ""
            said.append(f"The distillation started from the student that ships with Pare{end}.")
        elif metadata.get("start") == "narrowed":
            said.append("The student is the teacher itself with fewer channels, and started from its weights.")
        elif "start" in metadata:
            said.append("The distillation started from random weights.")
        if metadata.get("recipe", {}).get("fine_tune") is False:
            said.append(f"The stage {result.record.name} did not fine-tune: too few photos, or the recipe says so.")
        if not result.record.accepted:
            said.append(f"The stage {result.record.name} was not taken: {result.record.reason}.")
        said += [f"INT8: {warning}." for warning in metadata.get("warnings", ())]
    if run.recipe.data.source is None:
        said.append("Trained and measured on the few sample photos of scikit-image and scikit-learn: pass --data.")
    return said


def _metadata(artifact: Artifact | None) -> Mapping[str, Any]:
    return artifact.metadata if artifact else {}
