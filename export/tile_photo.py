"""A photo of any size through an artifact of any target, in tiles, and rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.contract import Contract, contract_in, is_picture
from export.parity import open_any
from export.tiling import MINIMUM_OVERLAP, Seams, Tiling, choose_tiling, infer_with, measure_seams, run_tiled
from models.artifact import Artifact
from models.errors import RunFolderError, UnsupportedError, UsageError, explain
from models.photos import to_batch
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_spec, get_task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TiledPhoto:
    """What came out.

    Attributes:
        picture: Rendered photo, (H, W, 3) uint8.
        output: What the network gave, (1, C, H, W).
        tiling: How the photo was cut.
        tiles: How many tiles were computed.
        runtime: What computed them.
        seams: How much the tiles show, against the whole photo at once; None: not asked for.
    """

    picture: NDArray[np.uint8]
    output: NDArray[np.float32]
    tiling: Tiling
    tiles: int
    runtime: str
    seams: Seams | None = None


def tile_photo(
    path: Path,
    photo: NDArray[np.uint8],
    *,
    tile: tuple[int, int] | None = None,
    overlap: int | None = None,
    controls: Mapping[str, float] | None = None,
    seams: bool = False,
    device: str | None = None,
    threads: int | None = None,
    progress: Progress = NULL_PROGRESS,
) -> TiledPhoto:
    """Run the artifact at ``path`` over a photo (H, W, 3) uint8.

    Args:
        path: A ``torch`` artifact, or an exported one.
        photo: The photo.
        tile: Height and width of the tiles, where the artifact leaves them open; None: worked out.
        overlap: Pixels that neighbours share; None: of a ``torch`` artifact from its receptive field, else 64.
        controls: Values of run-time controls by name; the others keep what the task gives them.
        seams: Compute the whole photo at once too, and measure how much the tiles show.
        device: Where the artifact runs; None: its target's first device.
        threads: Of the runtime.
        progress: Where to report.

    Raises:
        UsageError: An unknown control, a tile size that the artifact does not take, or seams of one of fixed size.
        UnsupportedError: The artifact can run neither here nor emulated.
    """
    artifact = Artifact.load(path)
    contract = None if artifact.format == "torch" else contract_in(artifact)
    tiling = _tiling(artifact, contract, tile, overlap)
    if seams and contract is not None and not contract.dynamic:
        fix = "pass the .safetensors that it was exported from, or export with --dynamic"
        got = f"{contract.input_size[0]}x{contract.input_size[1]} alone"
        raise UsageError(explain("seams", expected="an artifact that takes the whole photo", got=got, fix=fix))
    rgb = to_batch([photo])
    task = get_task(artifact.task)
    packed = _with_controls(task.app_input(rgb), artifact, controls or {})
    takes_picture = contract is not None and is_picture(contract.inputs[0], task.inputs[0])
    gives_picture = contract is not None and is_picture(contract.outputs[0], task.outputs[0])
    runner, reason = open_any(path, device=device, threads=threads)
    if runner is None:
        fix = "tile another artifact of the same network"
        raise UnsupportedError(explain(path.name, expected="a runtime", got=reason, fix=fix))
    calls = 0
    with runner:
        infer = infer_with(runner)

        def counted(part: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal calls
            calls += 1
            return infer(part)

        source = rgb if takes_picture else packed
        output = run_tiled(source.numpy(), counted, tiling, progress=progress)
        whole = run_tiled(source.numpy(), infer, _one_tile(photo, tiling)) if seams else None
    picture = output if gives_picture else _render(task, packed, output)
    pixels: NDArray[np.uint8] = (255 * picture[0].transpose(1, 2, 0).clip(0, 1)).round().astype(np.uint8)
    measured = None if whole is None else measure_seams(output, whole, tiling)
    return TiledPhoto(pixels, output, tiling, calls, runner.runtime, measured)


def _one_tile(photo: NDArray[np.uint8], tiling: Tiling) -> Tiling:
    """Return a tiling that covers ``photo`` with one tile."""
    height, width = (-(-side // tiling.stride) * tiling.stride for side in photo.shape[:2])
    return Tiling((max(height, tiling.tile[0]), max(width, tiling.tile[1])), 0, tiling.stride)


def _tiling(artifact: Artifact, contract: Contract | None, tile: tuple[int, int] | None, overlap: int | None) -> Tiling:
    size = get_spec(artifact.model, task=artifact.task).size
    fixed = None if contract is None or contract.dynamic else contract.input_size
    if fixed is not None and tile not in (None, fixed):
        fix = "leave out --tile, or export with --dynamic"
        raise UsageError(explain("tile", expected=f"{fixed[0]}x{fixed[1]}, as exported", got=tile, fix=fix))
    wanted = tile or fixed
    if wanted is not None:
        size.check(*wanted)
    if overlap is not None:
        chosen = choose_tiling(size, tile=wanted, overlap=overlap)
        return Tiling(chosen.tile, overlap, chosen.stride)  # as asked for, or refused
    if contract is None:
        from export.receptive_field import field_of, overlap_for

        return choose_tiling(size, tile=wanted, overlap=overlap_for(field_of(artifact)))
    return choose_tiling(size, tile=wanted, overlap=MINIMUM_OVERLAP)


def _with_controls(packed: Tensor, artifact: Artifact, controls: Mapping[str, float]) -> Tensor:
    """Write control values into the channels behind the image."""
    row = get_spec(artifact.model, task=artifact.task)
    names = [control.name for control in row.graph_controls]
    first = packed.shape[1] - len(names)
    for name, value in controls.items():
        if name not in names:
            fix = "use one of these" if names else "leave out --control"
            expected = " | ".join(names) or "no control"
            raise UsageError(explain(f"control of {artifact.model}", expected=expected, got=repr(name), fix=fix))
        packed[:, first + names.index(name)] = value
    return packed


def _render(task: Any, packed: Tensor, output: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    rendered: NDArray[np.float32] = task.render(packed, torch.from_numpy(output)).numpy()
    return rendered


def write_picture(rgb: NDArray[np.uint8], path: Path) -> None:
    """Write (H, W, 3) uint8 in the format of the suffix.

    Raises:
        UsageError: No such format.
        RunFolderError: The folder cannot be written.
    """
    _write(Image.fromarray(rgb), path)


def write_map(output: NDArray[np.float32], path: Path) -> None:
    """Write a one-channel output (1, 1, H, W) in [0, 1] as a grey picture of 8 bits.

    Raises:
        UsageError: More channels, or no such format.
        RunFolderError: The folder cannot be written.
    """
    if output.shape[1] != 1:
        fix = "leave out --map"
        raise UsageError(explain("--map", expected="an output of one channel", got=output.shape[1], fix=fix))
    _write(Image.fromarray((255 * output[0, 0].clip(0, 1)).round().astype(np.uint8)), path)


def _write(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError as error:
        fix = "use a suffix like .png"
        raise UsageError(explain(f"{path}", expected="the suffix of a picture", got=path.suffix, fix=fix)) from error
    except OSError as error:
        fix = "choose another --output"
        raise RunFolderError(explain(f"writing {path}", expected="a writable folder", got=error, fix=fix)) from error
