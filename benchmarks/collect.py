"""Finding the artifacts of a run folder, a bundle (folder or zip), or a single file."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from export.bundle import MANIFEST
from export.contract import contract_in
from models.artifact import FORMATS, Artifact
from models.errors import CheckpointError, DataError, explain
from models.registry import MODELS, WEIGHTS

_FIELDS = frozenset(("schema", "format", "sha256", "model", "task"))


def find_artifacts(paths: Sequence[Path], stack: ExitStack) -> tuple[list[Artifact], Path]:
    """Find every artifact below ``paths``, checked against its hash.

    Args:
        paths: Artifacts, folders, or zip files (unpacked to a temporary folder that ``stack`` removes).
        stack: Closes what was opened.

    Returns:
        The artifacts, teacher and stages first, then by name; and the folder that their names are relative to.

    Raises:
        CheckpointError: A path does not exist, or an artifact is not what its sidecar says.
        DataError: No artifact at all.
    """
    found: list[Artifact] = []
    roots = []
    for path in paths:
        if not path.exists():
            fix = "pass an artifact, a run folder or a bundle"
            raise CheckpointError(explain("artifact", expected=f"{path}", got="no such file", fix=fix))
        root = _unpacked(path, stack) if path.suffix == ".zip" else path if path.name else path.resolve()
        roots.append(root if root.is_dir() and not _is_sidecar_of(root) else root.parent)
        found += [Artifact.load(one) for one in _below(root)]
    if not found:
        fix = "pass a folder that `python -m optimize run` or `python -m export` wrote"
        got = f"none below {', '.join(str(path) for path in paths)}"
        raise DataError(explain("artifacts", expected="at least one with its .json sidecar", got=got, fix=fix))
    unique = {(artifact.sha256, artifact.format): artifact for artifact in reversed(found)}
    chosen = [artifact for artifact in found if unique[artifact.sha256, artifact.format] is artifact]
    return sorted(chosen, key=_rank), roots[0]


def shipped_teacher(artifacts: Sequence[Artifact], root: Path) -> Artifact | None:
    """Return the teacher that ships with Pare, where ``artifacts`` or the bundle ``root`` were made from it.

    A run on it holds no copy of its weights, nor does a bundle.
    """
    made_from = {artifact.parent_sha256 for artifact in artifacts}
    for bundle in (root / MANIFEST, *root.glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError, AttributeError):
            made_from.add(json.loads(bundle.read_text(encoding="utf-8")).get("teacher_sha256"))
    files = [WEIGHTS / row.weights for row in MODELS.values() if row.role == "teacher" and row.weights]
    shipped = (Artifact.load(path) for path in files if path.exists())
    return next((teacher for teacher in shipped if teacher.sha256 in made_from), None)


def exported_size(artifacts: Sequence[Artifact]) -> tuple[int, int] | None:
    """Return the height and width that the first exported one of ``artifacts`` was made for; None: there is none."""
    exported = (artifact for artifact in artifacts if artifact.metadata.get("contract"))
    return next((contract_in(artifact).input_size for artifact in exported), None)


def _rank(artifact: Artifact) -> tuple[int, int, str]:
    return FORMATS.index(artifact.format), len(artifact.stages), str(artifact.path)


def _is_sidecar_of(path: Path) -> bool:
    return path.with_name(path.name + ".json").is_file()


def _below(root: Path) -> list[Path]:
    """List the artifacts at or below ``root``, outside of hidden folders: whatever has a sidecar."""
    if root.is_file() or _is_sidecar_of(root):
        return [root]
    paths = []
    for sidecar in sorted(root.rglob("*.json")):
        path = sidecar.with_name(sidecar.name.removesuffix(".json"))
        folders = sidecar.relative_to(root).parent.parts
        inside = any(name.startswith(".") or Path(name).suffix in (".mlpackage", ".openvino") for name in folders)
        if path.exists() and path.suffix and not inside and _looks_right(sidecar):
            paths.append(path)
    return paths


def _looks_right(sidecar: Path) -> bool:
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= _FIELDS


def _unpacked(path: Path, stack: ExitStack) -> Path:
    """Unpack a zip into a temporary folder; names that would leave it are refused."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pare-bundle-")))
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    fix = "do not use this file"
                    raise CheckpointError(explain(f"{path}", expected="names inside of the zip", got=name, fix=fix))
            archive.extractall(folder)
    except (zipfile.BadZipFile, OSError) as error:
        fix = "copy it again; it looks truncated"
        raise CheckpointError(explain(f"{path}", expected="a zip file", got=error, fix=fix)) from error
    return folder
