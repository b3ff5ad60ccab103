"""Options of ``pytest benchmarks --benchmark-only``: which run is timed, with how many threads, at which size."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models.artifact import Artifact

if TYPE_CHECKING:
    from collections.abc import Iterator

# What is timed without --run: role and target of an artifact that is made on the spot.
DEFAULT_CASES = ("teacher-torch", "student-torch", "student-onnx", "student-openvino")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("pare")
    group.addoption("--run", default=os.environ.get("PARE_RUN"), help="run folder or bundle (default: PARE_RUN)")
    group.addoption("--threads", type=int, default=None, help="threads of each engine (default: physical cores)")
    group.addoption("--input-size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="pixels")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test an artifact of the run, or one a default case."""
    if "case" not in metafunc.fixturenames:
        return
    run = metafunc.config.getoption("--run")
    if not run:
        metafunc.parametrize("case", DEFAULT_CASES)
        return
    from benchmarks.assemble import relative_name
    from benchmarks.collect import find_artifacts

    stack = ExitStack()
    metafunc.config.add_cleanup(stack.close)
    artifacts, root = find_artifacts([Path(run)], stack)
    metafunc.parametrize("case", artifacts, ids=[relative_name(artifact.path, root) for artifact in artifacts])


@pytest.fixture(scope="session")
def threads(pytestconfig: pytest.Config) -> Iterator[int]:
    """Threads of each engine; the process is pinned to as many processors."""
    from benchmarks.machine import pinned
    from benchmarks.run import default_threads

    count = pytestconfig.getoption("--threads") or default_threads()
    with pinned(count):
        yield count


@pytest.fixture(scope="session")
def input_size(pytestconfig: pytest.Config) -> tuple[int, int]:
    """Height and width, pixels."""
    height, width = pytestconfig.getoption("--input-size")
    return int(height), int(width)


@pytest.fixture
def artifact(case: Artifact | str, tmp_path_factory: pytest.TempPathFactory, input_size: tuple[int, int]) -> Artifact:
    """The artifact of this test; a default case is built once a session."""
    if isinstance(case, Artifact):
        return case
    folder = tmp_path_factory.getbasetemp() / "default"
    return build_default(case, folder, input_size)


def build_default(case: str, folder: Path, input_size: tuple[int, int]) -> Artifact:
    """Build a default case: the shipped weights where they are there, else random ones (the time is the same)."""
    import models
    from export import get_target
    from models.errors import CheckpointError

    role, _, target = case.partition("-")
    name = {"teacher": "resnet18_unet", "student": "chroma_unet"}[role]
    path = folder / f"{name}.safetensors"
    if not path.exists():
        try:
            net = models.create_model(name, pretrained=True)
        except CheckpointError:
            net = models.create_model(name)
        models.save_network(net, path, model=name, task=models.get_spec(name).task, stages=(role,))
    source = Artifact.load(path)
    if target == "torch":
        return source
    row = get_target(target)
    output = folder / f"{name}{row.suffix}"
    if output.exists():
        return Artifact.load(output)
    return row.load().export(source, output, precision=models.Precision.FP32, input_size=input_size)
