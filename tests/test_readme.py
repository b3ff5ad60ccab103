"""What the documents say is run: every command of README.md, every Python block, every link."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.artifact import Artifact, sidecar_of

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/overlay.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Not run here: code of other platforms.
FOREIGN = ("swift", "cpp")
PACKAGES = ("optimize", "export", "benchmarks")

#: Small networks, few steps: a run of seconds instead of minutes.
RECIPE = """
stages: [distill, quantize]
distill:
  student_kwargs: {reduction: 2, widths: [8, 16], depths: [1, 1]}
  perceptual_weight: 0
  fit: {phases: [{size: 32, epochs: 1, batch_size: 4}], repeat: 1}
quantize: {max_lpips_drop: 10, calibration_samples: 4, sensitivity_photos: 1}
export: {targets: [onnx, openvino], precisions: [int8], reference_targets: []}
benchmark: {warmup: 1, iterations: 2, pictures: 1, probes: false}
gate: {max_lpips_drop: 10}
threads: 1
"""
_SMALL = "--weights teacher/resnet18_unet.safetensors --config small.yaml --quiet"
#: Start of a command -> what is added to make it small.
FASTER = {
    "optimize distill --teacher resnet18_unet": _SMALL,
    "optimize run --teacher resnet18_unet": _SMALL,
    "optimize run --teacher my_networks": "--config small.yaml --quiet --stage distill --target onnx --precision fp32",
    "optimize train": (
        "--teacher my_networks:colorizer --input-size 64 64 --set train.perceptual_weight=0 --quiet"
        " --set 'train.fit.phases=[{size: 32, epochs: 1, batch_size: 8}]'"
    ),
    "benchmarks run": "--warmup 1 --iterations 2 --no-probes --limit 1 --quiet",
    "benchmarks compare": "--max-latency-increase 1000 --max-lpips-increase 10",
}


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return FENCE.findall((ROOT / document).read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, comments removed, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ALL_COMMANDS = [
    words for name in DOCUMENTS for language, text in blocks(name) if language == "sh" for words in commands(text)
]


def test_there_is_something_to_run() -> None:
    assert len(ALL_COMMANDS) > 8
    assert {language for name in DOCUMENTS for language, _ in blocks(name)} <= {"sh", "python", *FOREIGN}


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_command_exists_with_its_flags(words: list[str]) -> None:
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    assert words[:2] == ["python", "-m"]
    assert words[2] in PACKAGES
    from typer.main import get_command

    group = get_command(import_module(f"{words[2]}.cli").app)
    verbs = group.commands  # type: ignore[attr-defined]
    assert words[3] in verbs
    with verbs[words[3]].make_context(words[3], list(words[4:])) as context:
        assert context.params


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    text = FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (ROOT / target).exists()] == []
    for path in re.findall(r"`((?:models|export|benchmarks|optimize|tests)/[\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), path


@pytest.fixture
def sandbox(tiny_teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with photos and a small teacher, which is the current one."""
    (tmp_path / "photos").mkdir()
    rows, columns = np.mgrid[0:64, 0:64] / 64
    for index in range(8):
        waves = [np.sin(rows * (index + 2) + phase) * np.cos(columns * (9 - index) - phase) for phase in (0, 1, 2)]
        Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8)).save(tmp_path / "photos" / f"{index}.png")
    Image.open(tmp_path / "photos" / "0.png").save(tmp_path / "photo.jpg")
    (tmp_path / "small.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "teacher").mkdir()
    for path in (tiny_teacher.path, sidecar_of(tiny_teacher.path)):
        shutil.copy(path, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "downloads"))
    yield tmp_path
    sys.modules.pop("my_networks", None)


def run_command(words: list[str]) -> None:
    from torch import manual_seed

    manual_seed(0)
    text = " ".join(words[2:])
    extra = next((more for start, more in FASTER.items() if text.startswith(start)), "")
    main = import_module(f"{words[2]}.cli").main
    assert main([*words[3:], *shlex.split(extra)]) == 0, text


@pytest.mark.slow
def test_the_readme_runs_from_top_to_bottom(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    for language, text in blocks("README.md"):
        if language == "sh":
            for words in commands(text):
                if words[0] == "python":
                    run_command(words)
        elif language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            if name:
                (sandbox / name[1]).write_text(text, encoding="utf-8")
            else:
                exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
    for name in ("report.json", "report.md", "index.html", "front.svg"):
        assert (sandbox / "runs" / "mine" / "report" / name).is_file()
    for name in ("colorized.png", "colorizer.onnx", "colorizer.openvino", "rows.json", "runs/own/bundle/bundle.json"):
        assert (sandbox / name).exists(), name
    assert "Traceback" not in capsys.readouterr().err
