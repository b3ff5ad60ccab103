"""Imports point one way, and what is installed is the whole of the four packages."""

from __future__ import annotations

import ast
import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("models", "export", "benchmarks", "optimize")
DATA = ("*.typed", "*.safetensors", "*.json", "*.md", "*.html", "*.css", "*.js")
BIG = 200_000


def modules() -> list[Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def listed_packages() -> list[str]:
    """What pyproject.toml lists. setuptools reads it, because Python 3.10 has no TOML reader."""
    from setuptools.config.pyprojecttoml import read_configuration

    content: dict[str, Any] = read_configuration(ROOT / "pyproject.toml", expand=False)
    packages = content["tool"]["setuptools"]["packages"]
    assert isinstance(packages, list)
    return packages


def test_import_linter_finds_no_broken_contract() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_no_module_imports_a_layer_above(layer: str) -> None:
    """The same by hand, so that a contract that was loosened is seen."""
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    found = []
    for path in (ROOT / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [(path.name, name) for name in names if name.split(".")[0] in above]
    assert found == []


def test_every_package_is_listed() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in modules() if path.name == "__init__.py"}
    assert sorted(listed_packages()) == sorted(found)


def test_every_module_lies_in_a_package() -> None:
    lost = [path for path in modules() if not (path.parent / "__init__.py").exists()]
    assert lost == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy; large files are empty in it, only their names matter."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*"):
            target = copy / path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in path.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch() if path.stat().st_size > BIG else shutil.copy(path, target)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [path for layer in LAYERS for pattern in ("*.py", *DATA) for path in (ROOT / layer).rglob(pattern)]
    missing = [str(path.relative_to(ROOT)) for path in wanted if path.relative_to(ROOT).as_posix() not in names]
    assert missing == []
    assert {f"{layer}/py.typed" for layer in LAYERS} <= names
    assert {"benchmarks/page.html", "benchmarks/page.css", "benchmarks/page.js"} <= names


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(LAYERS)


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        info = next(name for name in content.namelist() if name.endswith("/METADATA"))
        about = email.message_from_string(content.read(info).decode())
        assert any(name.endswith("licenses/LICENSE") for name in content.namelist())
    assert about["Name"] == "pare"
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == "<3.14,>=3.10"
    assert set(about.get_all("Provides-Extra") or ()) == {"onnx", "openvino", "tensorrt", "coreml", "raw", "all", "dev"}
