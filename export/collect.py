"""Finding exported artifacts and the network that they came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from models.artifact import FORMATS, Artifact, sidecar_of
from models.errors import CheckpointError, UsageError, explain
from models.spec import Precision

#: Folders of a run that hold what is not shipped.
_ASIDE = ("reference", "rejected", "bundle")


def exported_artifacts(paths: Sequence[Path]) -> list[Artifact]:
    """Return the exported artifacts among ``paths``; of a run folder, what it ships.

    Raises:
        CheckpointError: A path does not exist, or an artifact is not what its sidecar says.
        UsageError: Nothing exported among them.
    """
    found = []
    for path in paths:
        if not path.exists() or sidecar_of(path).is_file():
            found.append(Artifact.load(path))
            continue
        folder = path / "artifacts" if (path / "artifacts").is_dir() else path
        found += [Artifact.load(one) for one in _below(folder)]
    exported = [artifact for artifact in found if artifact.format != "torch"]
    if not exported:
        fix = "run `python -m export onnx ...` first, or pass a run folder"
        got = f"none in {', '.join(str(path) for path in paths)}"
        raise UsageError(explain("bundle", expected="exported artifacts", got=got, fix=fix))
    order = {name: index for index, name in enumerate(FORMATS)}
    return sorted(exported, key=lambda artifact: (order[artifact.format], artifact.path.name))


def reference_of(artifacts: Sequence[Artifact], near: Iterable[Path]) -> Artifact:
    """Return the ``torch`` artifact that ``artifacts`` were exported from, found by its hash below ``near``.

    Where they came from several (a quantized one keeps its float weights), the one of the most artifacts is taken.

    Raises:
        CheckpointError: It is not there.
    """
    wanted = [artifact.parent_sha256 for artifact in artifacts]
    folders = list(
        dict.fromkeys(folder.resolve() for path in near for folder in (path, path.parent) if folder.is_dir())
    )
    for folder in folders:
        hashes = {}
        for sidecar in sorted(folder.rglob("*.safetensors.json")):
            try:
                hashes[json.loads(sidecar.read_text(encoding="utf-8"))["sha256"]] = sidecar
            except (OSError, ValueError, KeyError, TypeError):
                continue
        known = [sha256 for sha256 in wanted if sha256 in hashes]
        if known:
            best = max(dict.fromkeys(known), key=known.count)
            return Artifact.load(Path(str(hashes[best]).removesuffix(".json")))
    fix = "pass it with --reference"
    got = "none near the artifacts"
    raise CheckpointError(explain("reference", expected="the .safetensors they were exported from", got=got, fix=fix))


def check_reference(artifact: Artifact, reference: Artifact) -> None:
    """Raise UsageError where ``artifact`` was not exported from the network of ``reference``.

    A quantized network keeps the weights of the float one: both stand for each other. Where only an INT8 artifact is at
    hand, whose quantized network is not ``reference``, the architecture and the stages before INT8 must be the same.
    """
    ours, theirs = _identity(artifact), _identity(reference)
    known = {reference.sha256, reference.parent_sha256} if _is_quantized(reference) else {reference.sha256}
    if ours == theirs and (artifact.parent_sha256 in known or _is_quantized(artifact)):
        return
    fix = "pass the .safetensors that it was exported from, or leave --reference out where a run folder holds it"
    if ours != theirs:
        expected, got = (" ".join(str(part) for part in parts) for parts in (ours, theirs))
    else:
        expected, got = f"sha256 {(artifact.parent_sha256 or 'unknown')[:12]}", reference.sha256[:12]
    raise UsageError(explain(f"reference of {artifact.path.name}", expected=expected, got=got, fix=fix))


def _is_quantized(artifact: Artifact) -> bool:
    return artifact.precision is Precision.INT8


def _identity(artifact: Artifact) -> tuple[object, ...]:
    """Architecture, task and what was done to the weights; INT8 leaves them as they are."""
    stages = [stage for stage in artifact.stages if stage != "quantize"]
    done = "/".join(stages) or "no stage"
    return artifact.model, dict(artifact.model_kwargs), "of task", artifact.task, "after", done


def _below(folder: Path) -> list[Path]:
    found = []
    for sidecar in sorted(folder.rglob("*.json")):
        path = sidecar.with_name(sidecar.name.removesuffix(".json"))
        inside = sidecar.relative_to(folder).parts[:-1]
        aside = any(part in _ASIDE or part.startswith(".") for part in inside)
        packed = any(Path(part).suffix in (".openvino", ".mlpackage") for part in inside)
        if path.suffix and path.exists() and not aside and not packed and _is_artifact(sidecar):
            found.append(path)
    return found


def _is_artifact(sidecar: Path) -> bool:
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") in FORMATS and "sha256" in content
