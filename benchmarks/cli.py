"""``python -m benchmarks``: measure artifacts, join and compare reports. Everything heavy is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.console import make_progress, print_json, run_app
from models.errors import PareError, UnknownNameError
from models.spec import MAX_THREADS

if TYPE_CHECKING:
    from benchmarks.run import Benchmark

app = typer.Typer(
    help="Measure artifacts: LPIPS against latency, on the machine that they will run on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
InputSize = Annotated[
    tuple[int, int], typer.Option("--input-size", metavar="H W", help="Height and width of the input, pixels.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_THREADS, help="Threads of each engine, pinned. Default: one a physical core."),
]
Reports = Annotated[list[Path], typer.Argument(help="report.json, its folder, or rows that `run` wrote.")]


@app.command("run")
def run_command(
    paths: Annotated[list[Path], typer.Argument(metavar="BUNDLE|FOLDER|ARTIFACT...", help="What to measure.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .json file for the rows, or a folder for a whole report.")
    ] = Path("rows.json"),
    teacher: Annotated[
        Path | None,
        typer.Option(help="The reference, a .safetensors artifact. Default: that of the folder, or shipped."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of photos that nothing was trained on. Default: sample photos.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many photos.")] = None,
    device: Annotated[
        str, typer.Option(help="auto (each target's own), or one device: cpu, cuda, gpu, npu, ane, all.")
    ] = "auto",
    threads: Threads = None,
    warmup: Annotated[int, typer.Option(help="Unrecorded calls of each artifact.")] = 10,
    iterations: Annotated[int, typer.Option(help="Recorded calls of each artifact.")] = 50,
    max_seconds: Annotated[float, typer.Option(help="Leave an artifact at fewer calls after so long.")] = 30.0,
    input_size: Annotated[
        tuple[int, int] | None,
        typer.Option("--input-size", metavar="H W", help="Pixels. Default: what the artifacts were made for."),
    ] = None,
    lpips_net: Annotated[str, typer.Option(help="lite, squeeze, alex or vgg.")] = "lite",
    lpips_weights: Annotated[Path | None, typer.Option(help="Folder with the official weights.")] = None,
    pictures: Annotated[int, typer.Option(help="Photos shown side by side in a report.")] = 4,
    probes: Annotated[bool, typer.Option(help="Load time and memory in a fresh process each.")] = True,
    seed: Annotated[int, typer.Option(help="Of the order of measuring.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every artifact of a bundle, a run folder or a list on this machine."""
    from benchmarks.collect import exported_size, find_artifacts, shipped_teacher
    from benchmarks.report import check_report_folder
    from benchmarks.run import benchmark
    from benchmarks.settings import Settings
    from models.artifact import Artifact
    from models.paired_photos import open_for
    from models.photos import embedded_photos
    from models.registry import get_task

    settings = Settings(
        device=device,
        threads=threads,
        warmup=warmup,
        iterations=iterations,
        max_seconds=max_seconds,
        lpips_net=lpips_net,
        lpips_weights=lpips_weights,
        photo_limit=limit,
        pictures=pictures,
        probes=probes,
        seed=seed,
    )
    if output.suffix != ".json":
        check_report_folder(output)
    with ExitStack() as stack:
        artifacts, root = find_artifacts(paths, stack)
        settings = replace(settings, input_size=input_size or exported_size(artifacts) or settings.input_size)
        reference = Artifact.load(teacher) if teacher is not None else shipped_teacher(artifacts, root)
        task = get_task(artifacts[0].task)
        photos = open_for(data, task=task) if data is not None else embedded_photos("eval")
        progress = make_progress(quiet=quiet)
        result = benchmark(artifacts, photos, teacher=reference, settings=settings, root=root, progress=progress)
    written = _save(result, output)
    _show([row.to_json() for row in result.rows], written, as_json=as_json)


def _save(result: Benchmark, output: Path) -> Path:
    """Write a report folder, or the rows alone where ``output`` is a .json file."""
    from benchmarks.report import SCHEMA, write_report
    from models.artifact import write_json

    if output.suffix == ".json":
        rows = [row.to_json() for row in result.rows]
        machine = result.machine.to_json()
        write_json(output, {"schema": SCHEMA, "machine": machine, "recipe": {}, "rows": rows, **result.details})
        return output
    return write_report(
        output,
        machine=result.machine,
        recipe={},
        rows=result.rows,
        pictures=result.pictures,
        details=result.details,
    )


@app.command("levels")
def levels_command(
    paths: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifacts of a task with a control.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of levels.md, levels.json and levels.svg.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of photos, or of pairs. Default: sample photos."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many photos.")] = 12,
    count: Annotated[int, typer.Option(min=2, help="Levels, the ends among them.")] = 5,
    input_size: Annotated[tuple[int, int], typer.Option("--input-size", metavar="H W", help="Pixels.")] = (256, 256),
    lpips_net: Annotated[str, typer.Option("--lpips-net", help="lite, squeeze, alex or vgg.")] = "lite",
    lpips_weights: Annotated[Path | None, typer.Option("--lpips-weights", help="Weights of an official net.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=MAX_THREADS, help="Threads of each runtime.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="What the others are compared with where the task has no ground truth (style).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Plot PSNR and LPIPS against the level of a run-time control, and how smooth the way is."""
    from benchmarks.levels import measure_levels, write_levels
    from models.artifact import Artifact
    from models.paired_photos import open_for
    from models.photos import centre_crop, embedded_photos, to_batch
    from models.registry import get_task

    artifacts = [Artifact.load(path) for path in paths]
    task = get_task(artifacts[0].task)
    photos = open_for(data, task=task) if data is not None else embedded_photos("eval")
    size = task.photo_size(input_size)
    rgb = to_batch([centre_crop(photos.load(index), *size) for index in range(min(limit, len(photos)))])
    curves = measure_levels(
        artifacts,
        rgb,
        count=count,
        lpips_net=lpips_net,
        lpips_weights=lpips_weights,
        threads=threads,
        teacher=Artifact.load(teacher) if teacher is not None else None,
        progress=make_progress(quiet=quiet),
    )
    print(write_levels(output, curves, control=task.controls[0].name, lpips_net=lpips_net))


@app.command("networks")
def networks_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of networks.md, networks.json and the artifacts.")
    ] = Path("runs/networks"),
    models: Annotated[
        list[str] | None, typer.Option(help="Networks, with commas or again for more. Default: all of --task.")
    ] = None,
    task: Annotated[str, typer.Option(help="Task whose teachers are compared.")] = "overlay",
    weights: Annotated[
        Path | None, typer.Option(help="Folder with NAME.safetensors of trained networks, such as a zoo.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Photos to calibrate on. Default: sample photos.")] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Targets, with commas or again for more. Default: all.")
    ] = None,
    precisions: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8, with commas or again. Default: all of each target.")
    ] = None,
    input_size: InputSize = (512, 512),
    threads: Threads = None,
    warmup: Annotated[int, typer.Option(help="Unrecorded calls of each engine.")] = 1,
    iterations: Annotated[int, typer.Option(help="Recorded calls of each engine.")] = 10,
    max_seconds: Annotated[float, typer.Option(help="Leave an engine at fewer calls after so long.")] = 20.0,
    quiet: Quiet = False,
) -> None:
    """Time networks at full width before they are trained: parameters, MACs, ms by target and precision."""
    from benchmarks.networks import PRECISIONS, measure_networks
    from benchmarks.settings import Settings
    from export.registry import list_targets
    from models.paired_photos import open_for
    from models.photos import embedded_photos
    from models.registry import MODELS, get_task, list_tasks

    if task not in list_tasks():
        raise UnknownNameError("task", task, list_tasks())
    chosen = _names(models) or tuple(
        name for name, spec in MODELS.items() if spec.role == "teacher" and spec.task == task
    )
    known = [str(kind) for kind in PRECISIONS]
    wanted = _names(precisions) or known
    if unknown := set(wanted) - set(known):
        raise UnknownNameError("precision", min(unknown), known)
    measure_networks(
        chosen,
        open_for(data, task=get_task(task)) if data is not None else embedded_photos("train"),
        output,
        targets=_names(targets) or list_targets(),
        settings=Settings(
            input_size=input_size, threads=threads, warmup=warmup, iterations=iterations, max_seconds=max_seconds
        ),
        precisions=[kind for kind in PRECISIONS if str(kind) in wanted],
        weights=weights,
        progress=make_progress(quiet=quiet),
    )
    print((output / "networks.md").read_text(encoding="utf-8"))


@app.command("zoo")
def zoo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the table; what is finished in it is not run again.")
    ] = Path("runs/zoo"),
    models: Annotated[
        list[str] | None, typer.Option(help="Teachers, with commas or again for more. Default: all.")
    ] = None,
    minutes: Annotated[
        str,
        typer.Option(
            metavar="MINUTES[,MODEL=MINUTES]",
            help="Training time of a model; half for the teacher. MODEL's own behind it.",
        ),
    ] = "2",
    data: Annotated[str | None, typer.Option(help="What optimize takes. Default: sample photos.")] = None,
    input_size: InputSize = (256, 256),
    targets: Annotated[
        list[str] | None, typer.Option(help="Targets, with commas or again for more. Default: all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=MAX_THREADS, help="Of training and of each engine.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train teachers that ship with weights too.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe. Again for more.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take every registered teacher through the whole path at a small budget; exit status 1 when none got through."""
    from benchmarks.zoo import ZooConfig, read_minutes, run_zoo

    usual, own = read_minutes(minutes)
    config = ZooConfig(
        models=_names(models),
        minutes=usual,
        own_minutes=own,
        data=data,
        input_size=input_size,
        targets=_names(targets),
        threads=threads,
        seed=seed,
        from_scratch=from_scratch,
        settings=tuple(settings or ()),
    )
    content = run_zoo(config, output, progress=make_progress(quiet=quiet))
    if as_json:
        print_json({"output": str(output / "index.html"), **content})
    else:
        from benchmarks.terminal import print_zoo

        print_zoo(content["rows"], output / "index.html")
    if all(row["status"] == "failed" for row in content["rows"]):
        raise typer.Exit(1)


def _names(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of an option that takes several, with commas or again."""
    return tuple(name.strip() for text in given or () for name in text.split(",") if name.strip())


@app.command("report")
def report_command(
    report: Annotated[Path, typer.Argument(help="report.json or its folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder. Default: in place.")] = None,
    as_json: AsJson = False,
) -> None:
    """Render report.md, index.html and front.svg again from report.json."""
    from benchmarks.report import check_report_folder, read_report, render_report, report_folder

    content = read_report(report)
    folder = report_folder(report)
    check_report_folder(output or folder)
    written = render_report(output or folder, content, pictures_from=folder)
    _show(content["rows"], written, as_json=as_json)


@app.command("merge")
def merge_command(
    report: Annotated[Path, typer.Argument(help="The report that is added to: report.json or its folder.")],
    rows: Reports,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder. Default: in place.")] = None,
    as_json: AsJson = False,
) -> None:
    """Join rows that were measured on other machines into a report."""
    from benchmarks.merge import merge
    from benchmarks.report import (
        REPORT,
        check_report_folder,
        copy_pictures,
        read_report,
        render_report,
        report_folder,
    )
    from models.artifact import write_json

    content = merge(read_report(report), [read_report(path) for path in rows])
    folder = report_folder(report)
    target = output or folder
    check_report_folder(target)
    copy_pictures(folder, target)
    write_json(target / REPORT, content)
    written = render_report(target, content)
    _show(content["rows"], written, as_json=as_json)


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="report.json or its folder.")],
    after: Annotated[Path, typer.Argument(help="report.json or its folder.")],
    max_lpips_increase: Annotated[float, typer.Option(help="Absolute, of each artifact.")] = 0.005,
    max_latency_increase: Annotated[float, typer.Option(help="Relative, of each artifact; 0.10 is 10%.")] = 0.10,
    as_json: AsJson = False,
) -> None:
    """Compare two reports; exit status 1 when an artifact got worse beyond the limits."""
    from benchmarks.merge import Limits, compare
    from benchmarks.report import read_report

    limits = Limits(max_lpips_increase, max_latency_increase)
    changes = compare(read_report(before), read_report(after), limits)
    worse = [change for change in changes if change.regressions]
    if as_json:
        print_json({"regressions": len(worse), "changes": [change.to_json() for change in changes]})
    else:
        from benchmarks.terminal import print_changes

        print_changes(changes)
    if worse:
        raise typer.Exit(1)


@app.command("train-lite")
def train_lite_command(
    data: Annotated[list[Path], typer.Option(help="Folder of colour photos; may be given several times.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    lpips_weights: Annotated[
        Path | None,
        typer.Option(help="Folder with the official weights of LPIPS-squeeze. Default: the torch hub cache."),
    ] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Folder of photos for the figures of the card.")] = None,
    fit_groups: Annotated[int, typer.Option(help="Groups of four versions of a crop that the first fit takes.")] = 200,
    steps: Annotated[int, typer.Option(help="Optimizer steps after the first fit.")] = 4000,
    seed: Annotated[int, typer.Option(help="Of the first fit and the batches.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train `lite`, our own small LPIPS, to reproduce LPIPS-squeeze. Resumes from its checkpoint."""
    from benchmarks.metrics.lite_training import LiteConfig, train_lite

    where: dict[str, Any] = {"output": output, "lpips_weights": lpips_weights, "eval_data": eval_data}
    config = LiteConfig(data=tuple(data), **where, fit_groups=fit_groups, steps=steps, seed=seed)
    typer.echo(str(train_lite(config, progress=make_progress(quiet=quiet))))


@app.command("balance")
def balance_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures and a picture.")],
    data: Annotated[Path | None, typer.Option(help="Folder of photos. Default: sample photos.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many photos.")] = 2,
    size: Annotated[tuple[int, int], typer.Option(metavar="H W", help="Height and width, pixels.")] = (3000, 4000),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare the ways to balance the colours of a large photo: chain, look-up table, student."""
    from benchmarks.balance import compare_ways, table, to_json
    from models.artifact import write_json
    from models.photos import embedded_photos, open_photos

    photos = open_photos(data) if data is not None else embedded_photos("eval")
    rows = compare_ways(photos, output, size=size, limit=limit, progress=make_progress(quiet=quiet))
    answer = {"output": str(output), "height": size[0], "width": size[1], "rows": to_json(rows)}
    write_json(output / "balance.json", answer)
    print_json(answer) if as_json else typer.echo(table(rows))


@app.command("probe", hidden=True)
def probe_command(
    path: Path,
    target: Annotated[str, typer.Option()],
    device: Annotated[str, typer.Option()] = "cpu",
    threads: Threads = None,
    input_size: InputSize = (256, 256),
    as_json: AsJson = False,
) -> None:
    """Measure load time, first inference and memory of one artifact; meant for a fresh process."""
    from benchmarks.probe import probe

    try:
        answer = probe(path, target=target, device=device, threads=threads, input_size=input_size).to_json()
    except PareError as error:
        if not as_json:
            raise
        print_json({"error": str(error), "kind": type(error).__name__})
        raise typer.Exit(error.exit_status) from error
    if as_json:
        print_json(answer)
    else:
        typer.echo("\n".join(f"{name}: {value}" for name, value in answer.items()))


def _show(rows: Sequence[dict[str, Any]], written: Path, *, as_json: bool) -> None:
    """Print the rows (JSON) or a table of them, and where they were written."""
    if as_json:
        print_json({"output": str(written), "rows": rows})
        return
    from benchmarks.terminal import print_rows

    print_rows(rows, written)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_app(app, argv, prog="python -m benchmarks")
