"""What all three command lines keep to: quick help without torch, statuses, JSON on stdout, no import of a model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PACKAGES = ("export", "benchmarks", "optimize")
LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "coremltools", "tensorrt_rtx", "matplotlib", "skimage")


def run_and_list_modules(package: str, *argv: str) -> tuple[int, str, list[str]]:
    """Run ``python -m package argv`` and return the status, stdout and which heavy libraries it imported."""
    code = (
        "import sys, importlib\n"
        f"main = importlib.import_module('{package}.cli').main\n"
        f"status = main({list(argv)!r})\n"
        f"print('\\n@', *[name for name in {LIBRARIES!r} if name in sys.modules])\n"
        "sys.exit(status)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    out, _, loaded = result.stdout.rpartition("\n@")
    return result.returncode, out, loaded.split()


@pytest.mark.parametrize("package", PACKAGES)
def test_help_needs_no_heavy_library(package: str) -> None:
    status, out, loaded = run_and_list_modules(package, "--help")
    assert status == 0
    assert f"python -m {package}" in out
    assert loaded == []


def test_list_needs_no_heavy_library() -> None:
    status, out, loaded = run_and_list_modules("optimize", "list", "--json")
    assert status == 0
    assert sorted(json.loads(out)) == ["metrics", "models", "stages", "targets", "tasks"]
    assert loaded == []


@pytest.mark.parametrize("verb", ["train", "distill", "prune", "quantize", "run", "list"])
def test_help_of_every_verb_names_its_flags(verb: str) -> None:
    status, out, loaded = run_and_list_modules("optimize", verb, "--help")
    assert status == 0
    assert "--json" in out
    assert loaded == []


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_verbs_and_flags_exit_with_2(package: str) -> None:
    for argv in (["no-such-verb"], ["--no-such-flag"]):
        result = subprocess.run([sys.executable, "-m", package, *argv], capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
