"""Fixtures that every test may use: real data where it is, tiny networks as artifacts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_networks import TINY_NETWORKS, make_tiny_network

if TYPE_CHECKING:
    from torch import nn

    from models.artifact import Artifact

TINY_TEACHER = {"width": 8}
TINY_STUDENT = {"reduction": 2, "widths": [8, 16], "depths": [1, 1]}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run on shared cores: one torch thread each."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Every test starts from the same random state."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code under test still draws from the global state


@pytest.fixture(scope="session")
def pare_data() -> Path:
    """The folder of real photos that ``PARE_DATA`` names."""
    folder = os.environ.get("PARE_DATA")
    if not folder:
        pytest.skip("PARE_DATA is unset: set it to the folder of real photos to run this test")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"PARE_DATA={folder} is not a folder")
    return path


def save_tiny(folder: Path, model: str, kwargs: dict[str, object], seed: int) -> Artifact:
    """Save a tiny network whose BatchNorm statistics are not the trivial ones, as a torch artifact."""
    import torch

    import models

    torch.manual_seed(seed)
    net = models.create_model(model, **kwargs)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    return models.save_network(net, folder / f"{model}.safetensors", model=model, task="colorize", model_kwargs=kwargs)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """``resnet18_unet`` of width 8 with random weights, a torch artifact on disk."""
    return save_tiny(tmp_path_factory.mktemp("teacher"), "resnet18_unet", dict(TINY_TEACHER), 1)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """``chroma_unet`` of widths 8 and 16 with random weights, a torch artifact on disk."""
    return save_tiny(tmp_path_factory.mktemp("student"), "chroma_unet", dict(TINY_STUDENT), 2)


@pytest.fixture(scope="session")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network with a run-time control (``tests/two_inputs.py``), a torch artifact on disk."""
    import torch

    import models

    torch.manual_seed(3)
    net = models.create_model("two_inputs:controlled", width=16)
    net.norm.running_mean.normal_(0, 0.1)
    net.norm.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("controlled") / "controlled.safetensors"
    return models.save_network(
        net, path, model="two_inputs:controlled", task="two_inputs:Darken", model_kwargs={"width": 16}
    )


@pytest.fixture(scope="session")
def tiny_network() -> Callable[[str], tuple[nn.Module, tuple[int, int]]]:
    """Build a tiny network of ``tests/tiny_networks.py`` by its registry name."""
    return make_tiny_network


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """Save a tiny network of ``tests/tiny_networks.py`` as a torch artifact, once a session."""
    folder = tmp_path_factory.mktemp("networks")
    made: dict[str, Artifact] = {}

    def save(name: str) -> Artifact:
        import models

        if name not in made:
            kwargs, _ = TINY_NETWORKS[name]
            task = models.get_spec(name).task
            path = folder / f"{name}.safetensors"
            made[name] = models.save_network(
                make_tiny_network(name)[0], path, model=name, task=task, model_kwargs=kwargs
            )
        return made[name]

    return save
