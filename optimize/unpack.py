"""Unpack .zip and .tar archives of photos: regular files only, never outside the folder, whole or not at all."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from models.errors import DataError, explain


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into ``folder``, which appears only when everything is there; links and odd names are left out.

    Raises:
        DataError: Not an archive, damaged, or with no file inside.
        OSError: The disk is full.
    """
    temporary = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        count = 0
        for name, stream in _members(archive):
            target = temporary.joinpath(*PurePosixPath(name).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(stream, out)
            count += 1
        if not count:
            raise DataError(explain(f"{archive}", expected="an archive with files", got="none", fix="check the URL"))
        temporary.replace(folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
        fix = "pass the address of a .zip, .tar or .tgz of photos"
        raise DataError(explain(f"{archive}", expected="a readable archive", got=error, fix=fix)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                if not entry.is_dir() and _is_safe(entry.filename):
                    with content.open(entry) as stream:
                        yield entry.filename, stream
        return
    with tarfile.open(archive) as content:
        for member in content:
            if member.isfile() and _is_safe(member.name):
                extracted = content.extractfile(member)
                if extracted is not None:
                    yield member.name, extracted


def _is_safe(name: str) -> bool:
    """True for a relative path without ``..``, drive or backslash."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & set('\\:*?"<>|')
