"""Networks, tasks, colour and artifacts: the ground layer of Pare. Imports nothing of the other packages."""

from __future__ import annotations

from models.artifact import Artifact, load_network, save_network
from models.registry import create_model, get_spec, get_task, list_models, list_tasks
from models.spec import Control, ModelSpec, Precision, SizeRequirements, TensorSpec

__all__ = [
    "Artifact",
    "Control",
    "ModelSpec",
    "Precision",
    "SizeRequirements",
    "TensorSpec",
    "create_model",
    "get_spec",
    "get_task",
    "list_models",
    "list_tasks",
    "load_network",
    "save_network",
]
