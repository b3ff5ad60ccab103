"""What an app developer receives: artifacts, colour contract, golden vectors, usage code, and a check of all of it.

::

    bundle.json     every artifact with hash, precision, tolerance and what was measured here
    contract.json   the colour contract of each golden file, in numbers and in words
    README.md       how to use each artifact, with code
    check.py        checks hashes and golden vectors with numpy and the runtime alone
    artifacts/      artifacts, each with its sidecar
    golden/         NAME.npz (inputs, expected outputs), NAME.photo.png and NAME.expected.png
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import export
from export.bundle_readme import check_script, readme
from export.collect import check_reference
from export.contract import Contract, contract_in
from export.files import companions, replacing
from export.golden import expected_of, feeds_of, photo_size, sample_photo
from export.parity import compare, limits, open_any, own_rounding
from export.receptive_field import describe, field_of, overlap_for
from export.registry import get_target
from export.target import Tolerance
from export.tiling import choose_tiling
from models.artifact import Artifact, installed_versions, sidecar_of, size_of, write_json
from models.errors import CheckpointError, PareError, UnsupportedError, UsageError, explain
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_spec, get_task
from models.spec import Precision

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "bundle.json"
SCHEMA = 1


@dataclass(frozen=True)
class Check:
    """What became of the golden vectors of one artifact.

    Attributes:
        artifact: Its name in the bundle.
        status: ``passed``, ``failed`` or ``not run``.
        emulated: Another runtime computed the same graph.
        runtime: What computed it, or None.
        max_abs: Largest error against PyTorch FP32, output units; None when it did not run.
        rms: Root mean square error, output units; None likewise.
        limit: Largest error allowed, output units.
        rms_limit: Largest root mean square error allowed, output units.
        reason: Why it failed, did not run or is emulated, else None.
    """

    artifact: str
    status: str
    emulated: bool = False
    runtime: str | None = None
    max_abs: float | None = None
    rms: float | None = None
    limit: float | None = None
    rms_limit: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def write_bundle(
    artifacts: Sequence[Artifact],
    output: Path,
    *,
    reference: Artifact,
    teacher: Artifact | None = None,
    photo: Tensor | None = None,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = NULL_PROGRESS,
) -> Path:
    """Write the bundle of exported artifacts of one network.

    Args:
        artifacts: What is shipped; distinct file names.
        output: Folder to write; replaced if it is a bundle already.
        reference: ``torch`` artifact that they were exported from; its FP32 answers are the golden ones.
        teacher: ``torch`` artifact that the network was made from; its hash is noted, so that ``benchmarks run`` finds
            a shipped one.
        photo: (1, 3, H, W) in [0, 1] for the golden vectors, resized to each artifact's size; None: an embedded one.
        scores: {artifact file name: {column: value}} of the report, shown in the README.
        progress: Where to report.

    Returns:
        ``output``.

    Raises:
        UsageError: No artifact, two of one name, one of another network, or ``output`` is some other folder.
        RunFolderError: The disk is full.
    """
    output = Path(output)
    _check_request(artifacts, reference, output)
    golden = _golden(artifacts, reference, photo)
    with progress.track("Bundle", total=len(artifacts)) as bar, replacing(output) as folder:
        (folder / "artifacts").mkdir(parents=True)
        (folder / "golden").mkdir()
        for name, item in golden.items():
            _write_golden(folder / "golden", name, item, reference.task)
        field, size = field_of(reference), get_spec(reference.model, task=reference.task).size
        rows = []
        for artifact in artifacts:
            moved = _copy(artifact, folder / "artifacts")
            contract = contract_in(artifact)
            name = _golden_name(contract)
            item = golden[name]
            check, own = _check(moved, item.feeds, item.expected), None
            if check.status == "failed" and artifact.precision is Precision.FP32:
                own = own_rounding(reference, contract, [item.rgb], [item.expected])
                check = _check(moved, item.feeds, item.expected, own)
            fixed = None if contract.dynamic else contract.input_size
            tiling = describe(field, choose_tiling(size, tile=fixed, overlap=overlap_for(field)))
            row = _row(artifact, name, check, (scores or {}).get(artifact.path.name, {}))
            rows.append({**row, "own_rounding": None if own is None else list(own), "tiling": tiling})
            bar.advance(1, artifact=artifact.path.name)
        _write_texts(folder, rows, golden, reference, teacher)
    return output


@dataclass(frozen=True)
class _Golden:
    contract: Contract
    rgb: Tensor
    feeds: dict[str, Any]
    expected: dict[str, Any]


def _check_request(artifacts: Sequence[Artifact], reference: Artifact, output: Path) -> None:
    names = [artifact.path.name for artifact in artifacts]
    if not artifacts or len(set(names)) < len(names):
        fix = "export an artifact first" if not artifacts else "rename one"
        raise UsageError(explain("bundle", expected="artifacts of distinct names", got=names, fix=fix))
    for artifact in artifacts:
        if artifact.format == "torch":
            fix = "export it first; the torch artifact is the reference"
            raise UsageError(explain("bundle", expected="exported artifacts", got=artifact.path.name, fix=fix))
        check_reference(artifact, reference)
    if output.exists() and not (output / MANIFEST).is_file() and (output.is_file() or any(output.iterdir())):
        fix = "choose an empty folder, or another --output"
        raise UsageError(
            explain(f"output {output}", expected="a new folder or a bundle", got="something else", fix=fix)
        )


def _golden_name(contract: Contract) -> str:
    """Artifacts of one size, precision aside, that take and give the same share their golden vectors."""
    height, width = contract.input_size
    spaces = [spec.color_space for spec in (contract.inputs[0], contract.outputs[0])]
    return "_".join([f"{height}x{width}", *(space.replace("/", "") for space in spaces)])


def _golden(artifacts: Sequence[Artifact], reference: Artifact, photo: Tensor | None) -> dict[str, _Golden]:
    from torch.nn import functional

    found: dict[str, _Golden] = {}
    with export.open_runner(reference.path) as runner:
        for artifact in artifacts:
            contract = contract_in(artifact)
            name = _golden_name(contract)
            if name in found:
                continue
            size = photo_size(contract)
            if photo is None:
                rgb = sample_photo(size)
            else:
                rgb = functional.interpolate(photo, size=size, mode="bilinear", antialias=True).clamp(0, 1)
            rgb = (rgb * 255).round() / 255  # what the PNG holds
            found[name] = _Golden(contract, rgb, feeds_of(rgb, contract), expected_of(rgb, contract, runner))
    return found


def _write_golden(folder: Path, name: str, item: _Golden, task_name: str) -> None:
    import torch

    task = get_task(task_name)
    inputs, _ = task.prepare(item.rgb)
    answer = torch.from_numpy(next(iter(item.expected.values())))
    rendered = answer if item.contract.outputs[0].color_space == "srgb" else task.render(inputs, answer)
    arrays = {**item.feeds, **{f"expected.{key}": value for key, value in item.expected.items()}}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    _write_png(item.rgb, folder / f"{name}.photo.png")
    _write_png(rendered, folder / f"{name}.expected.png")


def _write_png(rgb: Tensor, path: Path) -> None:
    from PIL import Image

    pixels = (rgb[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(path)


def _copy(artifact: Artifact, folder: Path) -> Artifact:
    for source in (artifact.path, sidecar_of(artifact.path), *companions(artifact.path)):
        if source.is_dir():
            shutil.copytree(source, folder / source.name)
        elif source.exists():
            shutil.copy2(source, folder / source.name)
    return artifact.moved_to(folder / artifact.path.name)


def _row(artifact: Artifact, golden: str, check: Check, scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "file": f"artifacts/{artifact.path.name}",
        "target": artifact.format,
        "precision": artifact.precision.value,
        "stages": list(artifact.stages),
        "sha256": artifact.sha256,
        "size_mb": round(size_of(artifact.path) / 1e6, 3),
        "package": artifact.metadata.get("package"),
        "golden": f"golden/{golden}.npz",
        "limit": check.limit,
        "rms_limit": check.rms_limit,
        "checked_here": check.to_json(),
        "scores": dict(scores),
    }


def _write_texts(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    golden: Mapping[str, _Golden],
    reference: Artifact,
    teacher: Artifact | None,
) -> None:
    contracts = {name: {**item.contract.to_json(), "words": item.contract.words()} for name, item in golden.items()}
    for content in contracts.values():
        del content["precision"], content["dynamic"]
    manifest = {
        "schema": SCHEMA,
        "model": reference.model,
        "task": reference.task,
        "reference_sha256": reference.sha256,
        "teacher_sha256": None if teacher is None else teacher.sha256,
        "versions": installed_versions(),
        "artifacts": list(rows),
    }
    write_json(folder / MANIFEST, manifest)
    write_json(folder / "contract.json", contracts)
    text = readme(manifest, {name: item.contract for name, item in golden.items()})
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "check.py").write_text(check_script(), encoding="utf-8")


def _check(
    artifact: Artifact,
    feeds: Mapping[str, Any],
    expected: Mapping[str, Any],
    own: Tolerance | None = None,
    **how: Any,
) -> Check:
    """Run the golden vectors through ``artifact``."""
    name = artifact.path.name
    low, high = min(float(a.min()) for a in expected.values()), max(float(a.max()) for a in expected.values())
    limit, rms_limit = limits(artifact, low, high, own)
    runner, reason = open_any(artifact.path, **how)
    if runner is None:
        return Check(name, "not run", limit=limit, rms_limit=rms_limit, reason=reason)
    try:
        with runner:
            answers = runner.infer(dict(feeds))
    except UnsupportedError as error:
        return Check(name, "failed", runner.emulated, runner.runtime, None, None, limit, rms_limit, str(error))
    result = compare(artifact, runner, [dict(expected)], [answers], reason, own)
    status, why = "passed", reason
    if not result.passed:
        status = "failed"
        why = explain(name, expected=result.allowed(), got=result.found(), fix="export it again")
    return Check(name, status, runner.emulated, runner.runtime, result.max_abs, result.rms, limit, rms_limit, why)


def verify_bundle(
    folder: Path, *, device: str | None = None, threads: int | None = None, progress: Progress = NULL_PROGRESS
) -> list[Check]:
    """Check hashes and golden vectors of every artifact of a bundle, each through the runner that runs here.

    Args:
        folder: Bundle.
        device: One device for all, ``not run`` on targets that know no such device; None takes each target's first one.
        threads: Threads of each runtime.
        progress: Where to report.

    Raises:
        CheckpointError: No bundle, or its manifest is damaged.
        UnsupportedError: No artifact of it runs here.
    """
    rows = _manifest(folder)
    checks = []
    with progress.track("Verify", total=len(rows)) as bar:
        for row in rows:
            checks.append(_verify(folder, row, device, threads))
            bar.advance(1, artifact=row["file"])
    if all(check.status == "not run" for check in checks):
        expected = "an artifact that runs" + (f" on device {device}" if device else "")
        got = "; ".join(f"{check.artifact}: {check.reason}" for check in checks) or "none"
        fix = "choose another --device" if device else "verify it on a machine that has the runtime"
        raise UnsupportedError(explain(f"bundle {folder}", expected=expected, got=got, fix=fix))
    return checks


def failures(folder: Path) -> list[str]:
    """Return the artifacts of a bundle that failed on their golden vectors where it was written."""
    rows = _manifest(folder)
    return [Path(row["file"]).name for row in rows if row["checked_here"]["status"] == "failed"]


def _manifest(folder: Path) -> list[dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        fix = "pass the folder that `python -m export bundle` wrote"
        raise CheckpointError(explain("bundle", expected=f"file {path}", got="no such file", fix=fix))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = content["artifacts"]
        if not all({"file", "golden", "sha256"} <= row.keys() for row in rows):
            raise KeyError("file, golden, sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "write the bundle again"
        raise CheckpointError(explain(f"{path}", expected="a bundle manifest", got=repr(error), fix=fix)) from error
    return rows


def _verify(folder: Path, row: Mapping[str, Any], device: str | None, threads: int | None) -> Check:
    path = folder / str(row["file"])
    try:
        artifact = Artifact.load(path)
        if artifact.sha256 != row["sha256"]:
            fix = "copy the bundle again; an artifact was exchanged"
            got = artifact.sha256[:12]
            raise CheckpointError(explain(f"{path}", expected=f"sha256 {row['sha256'][:12]}", got=got, fix=fix))
        feeds, expected = _read_golden(folder / str(row["golden"]))
        target = get_target(artifact.format)
        if device is not None and device not in target.devices:
            return Check(path.name, "not run", reason=f"{target.name} has the devices {', '.join(target.devices)}")
        own = Tolerance(*row["own_rounding"]) if row.get("own_rounding") else None
        return _check(artifact, feeds, expected, own, device=device, threads=threads)
    except PareError as error:
        return Check(path.name, "failed", reason=str(error))


def _read_golden(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
    except (OSError, ValueError, EOFError) as error:
        fix = "copy the bundle again"
        raise CheckpointError(explain(f"{path}", expected="golden vectors", got=error, fix=fix)) from error
    start = "expected."
    feeds = {key: value for key, value in arrays.items() if not key.startswith(start)}
    return feeds, {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}
