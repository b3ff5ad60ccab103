"""Fixtures that every test may use: real data where it is, tiny networks as artifacts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """A network with a run-time control (``tests/two_inputs.py``), a torch artifact on disk."""
    import torch

    import models

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        torch.manual_seed(3)
        net = models.create_model("two_inputs:controlled", width=16)
        net.norm.running_mean.normal_(0, 0.1)
        net.norm.running_var.uniform_(0.5, 1.5)
        path = tmp_path_factory.mktemp("controlled") / "controlled.safetensors"
        yield models.save_network(
            net, path, model="two_inputs:controlled", task="two_inputs:Darken", model_kwargs={"width": 16}
        )


#: Registry name -> (factory arguments, input size) of networks small enough for a test of every step.
TINY_NETWORKS: dict[str, tuple[dict[str, object], tuple[int, int]]] = {
    "unet": ({"width": 8, "levels": 2}, (16, 24)),
    "nafnet_w32": ({"width": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}, (16, 32)),
    "unet_convnext": ({"channels": [8, 12, 16, 16], "depths": [1, 1, 1, 1], "width": 8}, (32, 64)),
    "unet_efficientnet_b4": ({"width": 0.25, "depth": 0.3, "head_width": 8}, (32, 64)),
    "restormer_lite": ({"width": 8, "blocks": [1, 1, 1, 1], "refinement": 1, "heads": [1, 2, 2, 4]}, (16, 24)),
    "hdrnet": ({"low": 32, "cells": 8, "depth": 4}, (40, 56)),
    "scunet": ({"width": 16, "blocks": [2, 1, 1, 1, 1, 1, 1], "head_channels": 4, "window": 4}, (64, 64)),
    "swinir": ({"width": 12, "depths": [2], "heads": [2], "window": 4}, (16, 24)),
    "pix2pix": ({"width": 4}, (256, 256)),
}


def make_tiny_network(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """Return a tiny network of the table in eval mode, nothing of it zero, and the input size to run it at."""
    import torch

    import models

    kwargs, size = TINY_NETWORKS[name]
    torch.manual_seed(0)
    net = models.create_model(name, **kwargs)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.4)
    return net, size


@pytest.fixture(scope="session")
def tiny_network() -> Callable[[str], tuple[nn.Module, tuple[int, int]]]:
    """Build a tiny network of ``TINY_NETWORKS`` by its registry name."""
    return make_tiny_network


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """Save a tiny network of ``TINY_NETWORKS`` as a torch artifact, once a session."""
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
