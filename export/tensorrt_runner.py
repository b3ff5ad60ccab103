"""Engines on a GPU: buffers are torch CUDA tensors, one stream, host arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from export.contract import contract_in
from export.cuda import make_log
from export.target import CheckedRunner, timed_load
from models.artifact import Artifact
from models.errors import InputSizeError, UnsupportedError, explain, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class TensorRtRunner(CheckedRunner):
    """An engine on the first GPU. Times include the copies to and from the GPU.

    Raises:
        MissingExtraError: The package that built the engine is not installed.
        UnsupportedError: The engine was built for another GPU or another version.
    """

    def __init__(self, path: Path, *, memory: str = "cuda") -> None:
        artifact = Artifact.load(path)
        contract = contract_in(artifact)
        package = str(artifact.metadata["package"])
        trt = require(_MODULES[package], "tensorrt")
        super().__init__(
            inputs=contract.inputs,
            outputs=contract.outputs,
            size=contract.size,
            device="cuda",
            runtime=f"{package} {trt.__version__}",
        )
        self._log = make_log(trt)
        self._memory = torch.device(memory)
        self._profile = artifact.metadata.get("profile")
        self._engine, self.load_ms = timed_load(
            lambda: trt.Runtime(self._log).deserialize_cuda_engine(path.read_bytes())
        )
        if self._engine is None:
            built = ", ".join(artifact.metadata.get("compute_capability") or ["the GPU of the exporting machine"])
            fix = "export with --option compute_capability=smXX of this GPU"
            got = self._log.last() or "no message"
            raise UnsupportedError(explain(f"engine {path.name}", expected=f"a GPU of {built}", got=got, fix=fix))
        self._context: Any = self._engine.create_execution_context()
        on_gpu = self._memory.type == "cuda"
        self._stream = torch.cuda.Stream(self._memory) if on_gpu else None

    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        held = []
        for spec in self.inputs:
            array = np.ascontiguousarray(feeds[spec.name])
            if not self._context.set_input_shape(spec.name, array.shape):
                limits = self._profile[spec.name] if self._profile else [list(spec.shape)]
                fix = "export with a larger max_size"
                expected = f"a shape within {limits}"
                raise InputSizeError(explain(f"input {spec.name!r}", expected=expected, got=array.shape, fix=fix))
            held.append(torch.from_numpy(array).to(self._memory))
            self._context.set_tensor_address(spec.name, held[-1].data_ptr())
        outputs = {}
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            outputs[spec.name] = torch.empty(shape, dtype=torch.float32, device=self._memory)
            self._context.set_tensor_address(spec.name, outputs[spec.name].data_ptr())
        handle = 0
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._memory))
            handle = self._stream.cuda_stream
        self._context.execute_async_v3(handle)
        if self._stream is not None:
            self._stream.synchronize()
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def close(self) -> None:
        """Free the context and the engine."""
        self._context = self._engine = None
        super().close()
