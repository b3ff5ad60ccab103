"""ONNX Runtime sessions: ONNX artifacts, and the graphs that stand in for engines that cannot run here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.contract import PREFIX, Contract
from export.target import CheckedRunner, timed_load
from models.errors import CheckpointError, UnsupportedError, explain, require
from models.spec import SizeRequirements, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OrtRunner(CheckedRunner):
    """A graph in ONNX Runtime: float32 in, float32 out.

    Args:
        graph: ``.onnx`` or ``.ort`` file, or a serialized ONNX graph.
        device: ``cpu`` or ``cuda``.
        threads: Threads of one operator (operators run one after the other); None leaves it to the runtime.
        reason: Why this graph stands in for another artifact, or None when it is the artifact itself.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        UnsupportedError: This machine or build has no such device.
        CheckpointError: The file is not a graph that ONNX Runtime loads.
    """

    def __init__(
        self, graph: Path | bytes, *, device: str = "cpu", threads: int | None = None, reason: str | None = None
    ) -> None:
        if absent := why_not(device):
            fix = "use --device cpu"
            raise UnsupportedError(explain("onnxruntime", expected=f"device {device}", got=absent, fix=fix))
        ort = require("onnxruntime", "onnx")
        session, load_ms = timed_load(lambda: _session(ort, graph, device, threads, exact=reason is not None))
        contract = _contract(session)
        super().__init__(
            inputs=contract.inputs if contract else _specs(session.get_inputs()),
            outputs=contract.outputs if contract else _specs(session.get_outputs()),
            size=contract.size if contract else SizeRequirements(),
            device=device,
            runtime=f"onnxruntime {ort.__version__}",
            threads=threads,
            emulated=reason is not None,
            reason=reason,
        )
        self.load_ms = load_ms
        self._session: Any = session
        self._names = [spec.name for spec in self.outputs]

    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None
        super().close()


def why_not(device: str) -> str | None:
    """Return None where ONNX Runtime has ``device`` here, else the reason why not."""
    ort = require("onnxruntime", "onnx")
    if device in _PROVIDERS and _PROVIDERS[device] not in ort.get_available_providers():
        return f"this build of onnxruntime has no {_PROVIDERS[device]} (pip install onnxruntime-gpu)"
    return None


def _session(ort: Any, graph: Path | bytes, device: str, threads: int | None, *, exact: bool) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.inter_op_num_threads = 1
    # It would reserve a pattern of the first call's tensors beside what that call left in the arena: twice the memory
    # (restormer_lite 138 -> 252 MB, swinir at 512x512 7 -> 14 GB), to save 0 to 1% of the time of small networks.
    settings.enable_mem_pattern = False
    # Its threads otherwise spin on after a call and take the cores from whatever else is measured or runs.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if exact:  # integer kernels may saturate on processors without VNNI; the Q/DQ arithmetic as written does not
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if threads:
        settings.intra_op_num_threads = threads
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        return ort.InferenceSession(source, settings, providers=[_PROVIDERS[device]])
    except Exception as error:  # onnxruntime raises its own exceptions, which share no base class
        fix = "export the artifact again"
        got = str(error).splitlines()[0]
        what = "graph" if isinstance(graph, bytes) else str(graph)
        raise CheckpointError(explain(what, expected="a graph for ONNX Runtime", got=got, fix=fix)) from error


def _contract(session: Any) -> Contract | None:
    embedded = session.get_modelmeta().custom_metadata_map.get(PREFIX + "contract")
    return None if embedded is None else Contract.from_json(json.loads(embedded))


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item.name, tuple(item.shape), color_space="unknown") for item in values)
