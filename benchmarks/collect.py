"""Finding the artifacts of a run folder, a bundle (folder or zip), or a single file."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from models.artifact import FORMATS, Artifact
from models.errors import CheckpointError, DataError, explain

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
        root = _unpacked(path, stack) if path.suffix == ".zip" else path
        roots.append(root if root.is_dir() and not _is_sidecar_of(root) else root.parent)
        found += [Artifact.load(one) for one in _below(root)]
    if not found:
        fix = "pass a folder that `python -m optimize run` or `python -m export` wrote"
        got = f"none below {', '.join(str(path) for path in paths)}"
        raise DataError(explain("artifacts", expected="at least one with its .json sidecar", got=got, fix=fix))
    unique = {(artifact.sha256, artifact.format): artifact for artifact in reversed(found)}
    chosen = [artifact for artifact in found if unique[artifact.sha256, artifact.format] is artifact]
    return sorted(chosen, key=_rank), roots[0]


def _rank(artifact: Artifact) -> tuple[int, int, str]:
    return FORMATS.index(artifact.format), len(artifact.stages), str(artifact.path)


def _is_sidecar_of(path: Path) -> bool:
    return path.with_name(path.name + ".json").is_file()


def _below(root: Path) -> list[Path]:
    """List the artifacts at or below ``root``: whatever has a sidecar."""
    if root.is_file() or _is_sidecar_of(root):
        return [root]
    paths = []
    for sidecar in sorted(root.rglob("*.json")):
        path = sidecar.with_name(sidecar.name.removesuffix(".json"))
        inside = any(parent.suffix in (".mlpackage", ".openvino") for parent in sidecar.relative_to(root).parents)
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
