"""``python -m export``: artifacts for each target, bundles, checks. Everything heavy is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from export.registry import get_target, list_targets
from models.console import make_progress, print_json, run_app
from models.errors import CheckpointError, ParityError, UnsupportedError, UsageError, explain
from models.spec import MAX_THREADS, Precision

if TYPE_CHECKING:
    from export.bundle import Check
    from export.parity import ParityResult
    from export.target import Target
    from models.artifact import Artifact

app = typer.Typer(
    help="Export a torch artifact to a target, bundle artifacts for an app developer, check them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=MAX_THREADS, help="Threads of each runtime. Default: its own choice.")
]
Device = Annotated[
    str | None, typer.Option(help="Where to run it: cpu, cuda, gpu, npu, ane, all. Default: the target's.")
]
Source = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A .safetensors artifact, or the folder that holds it.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Artifact to write; its suffix is the target's.")]
Arithmetic = Annotated[Precision, typer.Option(help="Arithmetic; int8 needs an artifact of `optimize quantize`.")]
InputSize = Annotated[tuple[int, int], typer.Option("--input-size", metavar="H W", help="Height and width, pixels.")]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="Leave batch, height and width open.")]
Option = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the target; again for more.")
]
Check_ = Annotated[bool, typer.Option("--check/--no-check", help="Compare with PyTorch, and fail where it differs.")]


Blend = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Fix a strength before the export: alpha=0.3 (DNI), level=0.3 (AdaFM, FTN)."
    ),
]


def _values(given: Sequence[str]) -> dict[str, float]:
    """Turn ``NAME=VALUE`` into {name: number}."""
    values: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            values[name] = float(value)
        except ValueError as error:
            fix = "write --set alpha=0.3; an option of the target is --option NAME=VALUE"
            raise UsageError(explain("--set", expected="NAME=NUMBER", got=repr(text), fix=fix)) from error
    return values


def _add(name: str) -> None:
    target = get_target(name)
    precisions = ", ".join(str(precision) for precision in target.precisions)
    options = "  ".join(f"{option}: {text}." for option, text in target.options.items())

    @app.command(
        name,
        short_help=f"Write {target.suffix}: {precisions}.",
        help=f"Write {target.suffix}. Precisions: {precisions}.  Options: {options}",
    )
    def command(
        artifact: Source,
        output: Output,
        precision: Arithmetic = Precision.FP32,
        input_size: InputSize = (256, 256),
        dynamic: Dynamic = False,
        option: Option = None,
        blend: Blend = None,
        device: Device = None,
        threads: Threads = None,
        check: Check_ = True,
        as_json: AsJson = False,
        quiet: Quiet = False,
    ) -> None:
        source = _source(artifact)
        if blend:
            from export.blending import blended

            source = blended(source, _values(blend), output)
        if device is not None:
            _check_device(target, device, check=check)
        made = target.load().export(
            source,
            output,
            precision=precision,
            input_size=input_size,
            dynamic=dynamic,
            options=_options(option or ()),
            progress=make_progress(quiet=quiet or as_json),
        )
        _report(source, made, device=device, threads=threads, check=check, as_json=as_json)


for _name in list_targets():
    _add(_name)


def _check_device(target: Target, device: str, *, check: bool) -> None:
    """Raise UnsupportedError before anything is written where the artifact cannot be checked on ``device``."""
    target.check_device(device)
    if check and (reason := target.load().can_run(device)):
        fix = "leave --device out, or pass --no-check"
        expected = f"a device that {target.name} runs on here"
        raise UnsupportedError(explain(f"--device {device}", expected=expected, got=reason, fix=fix))


def _source(path: Path) -> Artifact:
    """Return the torch artifact at ``path``; of a folder, the only one in it, or the last stage of a run."""
    from models.artifact import Artifact

    if not path.is_dir() or path.suffix:
        return Artifact.load(path)
    found = _torch_artifacts(path)
    if not found:
        fix = "pass a .safetensors with its .json, or the folder that holds it"
        raise CheckpointError(explain("artifact", expected=f"a .safetensors in {path}", got="none", fix=fix))
    longest = max(len(one.stages) for one in found)
    last = [one for one in found if len(one.stages) == longest]
    if len(last) > 1:
        fix = "name one of these"
        names = ", ".join(str(one.path) for one in last)
        raise UsageError(explain(f"artifact in {path}", expected="one", got=names, fix=fix))
    return last[0]


def _torch_artifacts(folder: Path) -> list[Artifact]:
    from models.artifact import Artifact, sidecar_of

    files = sorted(path for path in folder.rglob("*.safetensors") if sidecar_of(path).is_file())
    return [Artifact.load(path) for path in files]


def _options(given: Sequence[str]) -> dict[str, Any]:
    """Turn ``NAME=VALUE`` into a dict; ``true`` and ``false`` become booleans, a name given twice a list."""
    options: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            fix = "write --option ort=true"
            raise UsageError(explain("option", expected="NAME=VALUE", got=repr(text), fix=fix))
        parsed: Any = {"true": True, "false": False}.get(value.lower(), value)
        key = name.replace("-", "_")
        if key in options:
            before = options[key]
            parsed = [*(before if isinstance(before, list) else [before]), parsed]
        options[key] = parsed
    return options


def _report(
    source: Artifact, made: Artifact, *, device: str | None, threads: int | None, check: bool, as_json: bool
) -> ParityResult | None:
    """Print what was written and how far it is from PyTorch, and return it; raise ParityError where it is too far."""
    from export.parity import parity
    from export.screens import words_of
    from models.artifact import size_of

    result = parity(source, made, device=device, threads=threads) if check else None
    content = {
        "path": str(made.path),
        "target": made.format,
        "precision": made.precision.value,
        "sha256": made.sha256,
        "size_mb": round(size_of(made.path) / 1e6, 3),
        "parity": result.to_json() if result else None,
        "screens": made.metadata.get("screens"),
    }
    if as_json:
        print_json(content)
    else:
        print(f"{made.path}  {made.precision}  {content['size_mb']} MB")
        if result and result.max_abs is not None:
            print(f"error against PyTorch {result.found()}; allowed: {result.allowed()}; by {result.runtime}")
        if result and result.reason:
            print(f"note: {result.reason}")
        for line in words_of(made.metadata.get("screens") or {}):
            print(f"screen: {line}")
    if result and result.passed is False:
        fix = "keep the layers that differ in higher precision, or look at it with --no-check"
        raise ParityError(explain(f"{made.path.name}", expected=result.allowed(), got=result.found(), fix=fix))
    return result


@app.command("bundle")
def bundle_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FOLDER|ARTIFACT...", help="Exported artifacts, or a run folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    reference: Annotated[
        Path | None, typer.Option(help="The .safetensors they were exported from. Default: found by its hash.")
    ] = None,
    photo: Annotated[Path | None, typer.Option(help="Photo of the golden vectors. Default: a sample photo.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write what an app developer receives: artifacts, colour contract, golden vectors, usage code, a check."""
    from export.bundle import failures, write_bundle
    from export.collect import exported_artifacts, reference_of
    from models.artifact import Artifact

    artifacts = exported_artifacts(paths)
    origin = Artifact.load(reference) if reference else reference_of(artifacts, paths)
    rgb = _photo(photo) if photo else None
    progress = make_progress(quiet=quiet or as_json)
    written = write_bundle(artifacts, output, reference=origin, photo=rgb, progress=progress)
    if as_json:
        print_json({"path": written, "artifacts": [artifact.path.name for artifact in artifacts]})
    else:
        print(f"{written}  {len(artifacts)} artifacts; start with {written / 'README.md'}")
    _refuse(failures(written), fix="pass the --reference that they were exported from, or export these again")


def _photo(path: Path) -> Any:
    from models.photos import to_batch

    return to_batch([_decoded(path)])


def _decoded(path: Path) -> Any:
    from models.errors import DataError
    from models.photo_decode import Rejected, decode

    try:
        return decode(path)
    except (Rejected, OSError) as error:
        fix = "pass a colour photo: JPEG, PNG or another common format"
        raise DataError(explain(f"{path}", expected="a photo", got=error, fix=fix)) from error


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE|ARTIFACT", help="A bundle, or one exported artifact.")],
    reference: Annotated[
        Path | None, typer.Option(help="Of one artifact: the .safetensors it was exported from. Default: by its hash.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check hashes and golden vectors of a bundle through each runtime that runs here."""
    from export.bundle import verify_bundle
    from models.artifact import Artifact, sidecar_of

    if path.is_dir() and not sidecar_of(path).is_file():
        progress = make_progress(quiet=quiet or as_json)
        checks = verify_bundle(path, device=device, threads=threads, progress=progress)
        _show_checks(checks, as_json=as_json)
        return
    from export.collect import check_reference, exported_artifacts, reference_of

    (made,) = exported_artifacts([path])
    origin = Artifact.load(reference) if reference else reference_of([made], [path.parent])
    check_reference(made, origin)
    result = _report(origin, made, device=device, threads=threads, check=True, as_json=as_json)
    if result is None or result.passed is None:
        fix = "verify it on a machine that has the runtime"
        got = None if result is None else result.reason
        raise UnsupportedError(explain(f"{made.path.name}", expected="a runtime that runs it here", got=got, fix=fix))


@app.command("tile")
def tile_command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A .safetensors, or an exported artifact.")],
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="A photo of any size.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png, .jpg, .tif, .webp.")],
    map_output: Annotated[
        Path | None, typer.Option("--map", help="Write the network's one-channel output too, as a grey picture.")
    ] = None,
    tile: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Size of a tile. Default: the artifact's, else 512 512.", show_default=False),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Pixels that neighbours share. Default: from the receptive field, 64 at least.", min=0),
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option("--control", metavar="NAME=VALUE", help="A run-time control; again for more.")
    ] = None,
    seams: Annotated[
        bool, typer.Option("--seams", help="Compute the whole photo at once too, and say how much the tiles show.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run an artifact over a photo of any size, in overlapping tiles, and write the rendered picture."""
    from export.tile_photo import tile_photo, write_map, write_picture

    rgb = _decoded(photo)
    controls = {name: _number(name, value) for name, value in _options(control or ()).items()}
    progress = make_progress(quiet=quiet or as_json)
    options: dict[str, Any] = {"tile": tile, "overlap": overlap, "device": device, "threads": threads, "seams": seams}
    made = tile_photo(artifact, rgb, controls=controls, progress=progress, **options)
    write_picture(made.picture, output)
    if map_output is not None:
        write_map(made.output, map_output)
    content = {**made.tiling.to_json(), "path": str(output), "tiles": made.tiles, "runtime": made.runtime}
    if as_json:
        print_json({**content, "seams": asdict(made.seams) if made.seams else None})
    else:
        height, width = made.tiling.tile
        print(f"{output}  {made.tiles} tiles of {height}x{width}, overlap {made.tiling.overlap}, by {made.runtime}")
        if made.seams:
            found = f"{made.seams.max_abs:.2g} at most, {made.seams.mean_abs:.2g} on average"
            print(f"seams {made.seams.seam:.4f} (1: none); against the whole photo at once {found}")


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        fix = f"write --control {name}=0.5"
        raise UsageError(explain(f"control {name}", expected="a number", got=repr(value), fix=fix)) from None


def _show_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    if as_json:
        print_json([check.to_json() for check in checks])
    else:
        for check in checks:
            error = "" if check.max_abs is None else f"  error {check.max_abs:.3g}, limit {check.limit:.3g}"
            print(f"{check.status:8} {check.artifact}{error}" + (f"  ({check.reason})" if check.reason else ""))
    failed = [check.artifact for check in checks if check.status == "failed"]
    _refuse(failed, fix="see above; copy or export these again")


def _refuse(failed: Sequence[str], *, fix: str) -> None:
    if failed:
        raise ParityError(explain("bundle", expected="every artifact to pass", got=", ".join(failed), fix=fix))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_app(app, argv, prog="python -m export")
