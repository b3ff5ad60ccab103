"""The reference: the network in PyTorch, eager FP32, as it was trained; in FP64 to see what FP32 itself rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from export.registry import list_targets
from export.target import CheckedRunner, timed_load
from models.artifact import Artifact, load_network
from models.errors import UnsupportedError, explain
from models.registry import get_spec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TorchRunner(CheckedRunner):
    """A ``torch`` artifact in eager mode. ``threads`` is set for the whole process and put back on close.

    Args:
        path: The artifact.
        device: Where it computes.
        threads: None: as the process has them.
        dtype: In which it computes, FP32 or FP64; what goes in and comes out is FP32.
    """

    def __init__(
        self, path: Path, *, device: str = "cpu", threads: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        artifact = Artifact.load(path)
        spec = get_spec(artifact.model, task=artifact.task)
        runtime = f"torch {torch.__version__}"
        super().__init__(
            inputs=spec.graph_inputs,
            outputs=spec.outputs,
            size=spec.size,
            device=device,
            runtime=runtime,
            threads=threads or torch.get_num_threads(),
        )
        self._before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        cast = nn.Module.double if dtype is torch.float64 else nn.Module.float  # ``to`` would drop imaginary parts
        self._net, self.load_ms = timed_load(lambda: cast(load_network(artifact).to(device)))
        self._dtype = dtype

    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs]
        before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)  # of the tensors that the network makes
        try:
            with torch.no_grad():
                answer = self._net(*(torch.from_numpy(array).to(self.device, self._dtype) for array in arrays))
        finally:
            torch.set_default_dtype(before)
        answers = answer if isinstance(answer, (tuple, list)) else (answer,)
        return {spec.name: value.float().cpu().numpy() for spec, value in zip(self.outputs, answers, strict=True)}

    def close(self) -> None:
        """Drop the network and put the process's number of threads back."""
        if self._is_open:
            torch.set_num_threads(self._before)
            del self._net
        super().close()


def open_runner(path: Path, *, device: str = "cpu", threads: int | None = None) -> TorchRunner:
    """Load a ``torch`` artifact; see ``export.open_runner``."""
    if reason := can_run(device):
        fix = "use --device cpu"
        raise UnsupportedError(explain("torch", expected=f"device {device}", got=reason, fix=fix))
    return TorchRunner(path, device=device, threads=threads)


def can_run(device: str) -> str | None:
    """Return None where PyTorch runs on ``device`` here, else the reason why not."""
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA GPU, or a CPU build of torch"
    return None


def export(artifact: Artifact, output: Path, **_: Any) -> Artifact:
    """Refuse: a ``torch`` artifact is where exports start.

    Raises:
        UnsupportedError: Always.
    """
    fix = "the .safetensors is the torch artifact already"
    raise UnsupportedError(explain("export", expected=" | ".join(list_targets()), got="torch", fix=fix))
