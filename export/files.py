"""Writing artifacts in one step, and checking where they go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.target import Target
from models.errors import PareError, RunFolderError, UsageError, explain


def check_output(output: Path, target: Target) -> Path:
    """Return ``output`` as a Path whose suffix is the target's.

    Raises:
        UsageError: Another suffix.
    """
    output = Path(output)
    if output.suffix != target.suffix:
        fix = f"write to {output.with_suffix(target.suffix).name}"
        raise UsageError(
            explain(f"output of target {target.name}", expected=f"a name in {target.suffix}", got=output.name, fix=fix)
        )
    return output


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Give a temporary path beside ``output`` to write a file or folder to, then put it in place of ``output``.

    Whatever goes wrong, ``output`` is the old artifact or the new one, and nothing is left beside it.

    Raises:
        RunFolderError: The disk is full or the folder cannot be written.
    """
    temporary = output.with_name(f".part-{output.name}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        if output.is_dir() or temporary.is_dir():
            remove(output)
        temporary.replace(output)
    except PareError:
        remove(temporary)
        raise
    except OSError as error:
        remove(temporary)
        fix = "free disk space, or choose another --output"
        raise RunFolderError(explain(f"writing {output}", expected="a writable folder", got=error, fix=fix)) from error
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_bytes(output: Path, content: bytes) -> None:
    """Write ``content`` to ``output`` in one step; see ``replacing``."""
    with replacing(output) as temporary:
        temporary.write_bytes(content)


def companions(path: Path) -> list[Path]:
    """Return the files that belong beside an artifact: the graph of an engine, the mobile format of an ONNX graph."""
    from models.artifact import sidecar_of

    if path.suffix == ".engine":
        return [path.with_name(path.name + ".onnx")]
    if path.suffix == ".onnx":
        mobile = path.with_suffix(".ort")
        return [mobile, sidecar_of(mobile)]
    return []
