"""The folder of a run: who may write into it, what is finished in it, and what is left when something goes wrong.

A stage's folder holds ``stage.json`` with a fingerprint of everything that its result depends on. A finished stage of
the same fingerprint is not run again; one that was interrupted goes on from its checkpoint; one of another fingerprint
is cleared and run again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from export.files import remove
from models.artifact import Artifact, write_json
from models.errors import CheckpointError, RunFolderError, explain
from optimize.config import flatten

MARK = "run.json"
LOCK = ".lock"
#: Raised when what stages write changes in a way that old results cannot be mixed with.
SCHEMA = 2
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}

Policy = Literal["same", "resume", "overwrite"]


def fingerprint(*parts: Any) -> str:
    """Hash JSON values, the minor version of Pare and the schema of this module: 16 hexadecimal digits."""
    content = json.dumps([SCHEMA, _version(), *parts], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _version() -> str:
    try:
        return ".".join(metadata.version("pare").split(".")[:2])
    except metadata.PackageNotFoundError:
        return "0"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a RunFolderError that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        fix = "free disk space or choose another --output; run the same command again to go on"
        raise RunFolderError(explain(f"writing {path}", expected="room to write", got=error, fix=fix)) from error


def check_space(path: Path, megabytes: float) -> None:
    """Raise RunFolderError when the disk of ``path`` has less than ``megabytes`` left."""
    home = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(home).free / 1e6
    if free < megabytes:
        fix = "free disk space or choose another --output"
        got = f"{free:.0f} MB free"
        raise RunFolderError(explain(f"disk of {home}", expected=f"{megabytes:.0f} MB", got=got, fix=fix))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; empty when there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class RunFolder:
    """A folder that one run owns.

    Args:
        root: The folder.
        entries: Names or patterns inside that runs of this kind write; only these are ever removed.
    """

    def __init__(self, root: Path, entries: tuple[str, ...]) -> None:
        self.root, self.entries = root, entries

    def claim(self, recipe: Mapping[str, Any], *, policy: Policy = "same") -> bool:
        """Take the folder for a run of ``recipe`` (plain values); say whether a run of it is gone on with.

        Args:
            recipe: What the folder is to hold.
            policy: ``same`` goes on with a run of the same recipe only; ``resume`` keeps of another recipe's run what
                is unchanged; ``overwrite`` removes another run first.

        Raises:
            RunFolderError: The folder holds another run or other files, or cannot be written.
        """
        with disk_errors(self.root):
            self._check_is_folder()
            old = self._mark()
            others = self._foreign()
            if old is None and others:
                got = f"{others[0]!r} and {len(others) - 1} more" if len(others) > 1 else f"{others[0]!r}"
                fix = "choose another --output"
                raise RunFolderError(explain(f"{self.root}", expected="an empty folder or a run", got=got, fix=fix))
            known = old is not None and old.get("recipe") == json.loads(json.dumps(recipe))
            if old is not None and not known:
                self._replace(old, recipe, policy if self._has_stages() else "overwrite")
            elif policy == "overwrite":
                self._clear()
            going_on = self._has_stages()
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / MARK, {"schema": SCHEMA, "recipe": recipe})
        return going_on

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second process.

        Raises:
            RunFolderError: Another process is writing into it.
        """
        import psutil

        path = self.root / LOCK
        try:
            other = int(path.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            other = 0
        if other and other != os.getpid() and psutil.pid_exists(other):
            fix = f"wait for it, or remove {path} if that process is something else"
            got = f"process {other} at work in it"
            raise RunFolderError(explain(f"{self.root}", expected="one run at a time", got=got, fix=fix))
        with disk_errors(path):
            path.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def _check_is_folder(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise RunFolderError(
                explain(f"{self.root}", expected="a folder", got="a file", fix="choose another --output")
            )

    def _mark(self) -> dict[str, Any] | None:
        path = self.root / MARK
        return read_json(path) if path.exists() else None

    def _has_stages(self) -> bool:
        """Say whether a stage was begun here: a run that ended before that is worth nothing."""
        return any(path.is_file() for pattern in ("stage.json", "*/*/stage.json") for path in self.root.glob(pattern))

    def _foreign(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.name != LOCK)

    def _replace(self, old: Mapping[str, Any], recipe: Mapping[str, Any], policy: Policy) -> None:
        if policy == "overwrite":
            self._clear()
        elif policy == "same":
            got = "a run of another recipe: " + describe_difference(old.get("recipe") or {}, recipe)
            fix = "choose another --output, or pass --resume to run only what changed, or --overwrite to start anew"
            raise RunFolderError(explain(f"{self.root}", expected="an empty folder", got=got, fix=fix))

    def _clear(self) -> None:
        clear(self.root, (*self.entries, MARK))


def clear(folder: Path, patterns: tuple[str, ...]) -> None:
    """Remove the files and folders directly in ``folder`` that match one of ``patterns``."""
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            remove(path)


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any], *, limit: int = 3) -> str:
    """Name the keys in which two recipes differ, for example ``seed (0, now 1)``."""
    before, after = flatten(old), flatten(json.loads(json.dumps(new)))
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    parts = [f"{key} ({before.get(key)}, now {after.get(key)})" for key in changed[:limit]]
    more = f" and {len(changed) - limit} more" if len(changed) > limit else ""
    return ", ".join(parts) + more if parts else "unreadable run.json"


@dataclass(frozen=True)
class StageRecord:
    """What is known of one stage; ``stage.json`` in its folder.

    Attributes:
        name: Stage.
        fingerprint: Of everything that its result depends on.
        status: ``running`` (or interrupted), ``finished`` or ``failed``.
        artifact: File name of the result in the stage's folder.
        seconds: Wall time, all sessions together.
        accepted: Whether the next stage works on the result.
        reason: Why not, or why it failed.
        scores: Quality on the evaluation photos.
    """

    name: str
    fingerprint: str
    status: Literal["running", "finished", "failed"] = "running"
    artifact: str | None = None
    seconds: float = 0.0
    accepted: bool = False
    reason: str | None = None
    scores: Mapping[str, Any] | None = None


class StageFolder:
    """The folder of one stage in a run.

    Args:
        path: Folder.
        name: Stage.
        key: Fingerprint that its result must have.
        entries: Names or patterns of what stages write; what is removed when another fingerprint comes.
    """

    def __init__(self, path: Path, name: str, key: str, *, entries: tuple[str, ...] = ("*",)) -> None:
        self.path, self.name, self.key, self.entries = path, name, key, entries

    @property
    def file(self) -> Path:
        """Where the record lies."""
        return self.path / "stage.json"

    def read(self) -> StageRecord | None:
        """Return the record of this fingerprint, or None when there is none or it is of another one."""
        try:
            record = StageRecord(**json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.fingerprint == self.key else None

    def finished(self) -> tuple[StageRecord, Artifact] | None:
        """Return the record and the artifact of a finished stage whose file is whole, else None."""
        record = self.read()
        if record is None or record.status != "finished" or record.artifact is None:
            return None
        try:
            return record, Artifact.load(self.path / record.artifact)
        except CheckpointError:
            return None

    def begin(self) -> StageRecord:
        """Make the folder ready: kept when a run of this fingerprint was interrupted, else emptied."""
        record = self.read()
        if record is None or record.status == "finished":
            clear(self.path, self.entries)
            record = StageRecord(self.name, self.key)
        return self.write(replace(record, status="running", reason=None))

    def write(self, record: StageRecord) -> StageRecord:
        """Write the record and return it."""
        write_json(self.file, asdict(record))
        return record
