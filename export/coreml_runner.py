"""Runs Core ML packages: with Core ML on macOS, elsewhere with the evaluator of ``export.mil``, clearly labelled."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.contract import PREFIX, Contract
from export.mil.program import Feature, MilModel, load_model
from export.mil.proto import EXTRA, coremltools, quiet_coremltools
from export.target import CheckedRunner, timed_load
from models.errors import CheckpointError, InputSizeError, UnsupportedError, explain, require
from models.spec import SizeRequirements, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_HERE = (
    "Core ML runs on macOS and iOS only; these numbers come from evaluating the saved program operation by operation"
)
_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
_PIXEL = 255.0


def why_not(device: str) -> str | None:
    """Return None where Core ML runs on ``device`` here, else the reason why not."""
    if sys.platform != "darwin":
        return f"Core ML runs on macOS and iOS only; this is {sys.platform}"
    if device not in _UNITS:
        return f"Core ML knows the devices {', '.join(_UNITS)}, not {device!r}"
    return None


class _PackageRunner(CheckedRunner):
    """What both runners share: the contract of the package, and image features as arrays."""

    def __init__(self, model: MilModel, *, device: str, runtime: str, threads: int | None, reason: str | None) -> None:
        inputs, outputs, size = _contract(model)
        super().__init__(
            inputs=inputs,
            outputs=outputs,
            size=size,
            device=device,
            runtime=runtime,
            threads=threads,
            emulated=reason is not None,
            reason=reason,
        )
        self.model = model

    def _check_shapes(self, feeds: Mapping[str, NDArray[np.float32]]) -> None:
        for feature in self.model.inputs:
            shape = tuple(feeds[feature.name].shape)
            if not feature.accepts(shape):
                fix = "resize, crop or pad the input, or export it with --dynamic and other sizes"
                raise InputSizeError(
                    explain(f"input {feature.name!r}", expected=_accepted(feature), got=shape, fix=fix)
                )


class EvaluatorRunner(_PackageRunner):
    """Computes a package's ML Program operation by operation; see ``export.mil``. Right for quality, not for speed.

    Args:
        path: An ``.mlpackage``.
        threads: Torch threads; None leaves them as they are.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        import torch

        from export.mil.evaluate import Evaluator

        model = load_model(path)
        runtime = f"mil-evaluator (torch {torch.__version__})"
        super().__init__(model, device="mil-evaluator", runtime=runtime, threads=threads, reason=NOT_HERE)
        self.evaluator = Evaluator(model)

    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        import torch

        self._check_shapes(feeds)
        values = {}
        for feature in self.model.inputs:
            array = torch.from_numpy(np.ascontiguousarray(feeds[feature.name]))
            values[feature.name] = (array * _PIXEL).round().clamp(0, _PIXEL) if feature.kind == "image" else array
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            results = self.evaluator(values)
        finally:
            torch.set_num_threads(before)
        found = {}
        for feature in self.model.outputs:
            value = results[feature.name].float()
            value = value.round().clamp(0, _PIXEL) / _PIXEL if feature.kind == "image" else value
            found[feature.name] = np.array(value.numpy(), dtype=np.float32)
        return found


class CoreMLRunner(_PackageRunner):
    """Runs a package with Core ML; macOS only.

    Args:
        path: An ``.mlpackage``.
        device: ``all``, ``cpu``, ``gpu`` or ``ane`` (CPU beside the GPU or the Neural Engine).
    """

    def __init__(self, path: Path, *, device: str) -> None:
        tools = coremltools()
        runtime = f"Core ML (coremltools {tools.__version__})"
        super().__init__(load_model(path), device=device, runtime=runtime, threads=None, reason=None)
        unit = getattr(tools.ComputeUnit, _UNITS[device])
        with quiet_coremltools():
            self._session, self.load_ms = timed_load(lambda: tools.models.MLModel(str(path), compute_units=unit))

    def _run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        self._check_shapes(feeds)
        values = {
            feature.name: _to_picture(feeds[feature.name], feature) if feature.kind == "image" else feeds[feature.name]
            for feature in self.model.inputs
        }
        results = self._session.predict(values)
        return {
            feature.name: _from_picture(results[feature.name]) if feature.kind == "image" else _array(results, feature)
            for feature in self.model.outputs
        }


def open_package(path: Path, *, device: str, threads: int | None = None) -> CheckedRunner:
    """Open a package with Core ML on macOS; elsewhere ``all`` and ``cpu`` give the labelled evaluator.

    Raises:
        UnsupportedError: A GPU or the Neural Engine is asked for where there is no Core ML.
        CheckpointError: Not a package, or damaged.
        MissingExtraError: coremltools is not installed.
    """
    reason = why_not(device)
    if reason is None:
        return CoreMLRunner(path, device=device)
    if device not in ("all", "cpu"):
        fix = "use a Mac, or device cpu: it evaluates the program here, for quality and not for latency"
        raise UnsupportedError(explain(f"Core ML on {device}", expected="macOS", got=reason, fix=fix))
    return EvaluatorRunner(path, threads=threads)


def _contract(model: MilModel) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], SizeRequirements]:
    """The contract inside of the package; one made from the features where Pare has not written it."""
    text = model.metadata.get(PREFIX + "contract")
    if text:
        import json

        try:
            contract = Contract.from_json(json.loads(text))
        except ValueError as error:
            fix = "export it again"
            raise CheckpointError(explain("contract", expected="JSON in the package", got=error, fix=fix)) from error
        return contract.inputs, contract.outputs, contract.size
    return tuple(map(_spec, model.inputs)), tuple(map(_spec, model.outputs)), SizeRequirements()


def _spec(feature: Feature) -> TensorSpec:
    flexible = bool(feature.ranges or feature.choices)
    names = ("N", "C", "H", "W")
    shape: tuple[int | str, ...] = feature.shape
    if flexible or not shape:
        shape = (*feature.shape[:-2], "H", "W") if shape else names
    spec = TensorSpec(feature.name, shape)
    return replace(spec, value_range=(0.0, 1.0)) if feature.kind == "image" else spec


def _accepted(feature: Feature) -> str:
    if feature.choices:
        return "one of " + ", ".join(str(choice) for choice in feature.choices)
    if feature.ranges:
        sides = [
            str(low) if low == high else f"{low}-{'any' if high is None else high}" for low, high in feature.ranges
        ]
        return "shape (" + ", ".join(sides) + ")"
    return f"shape {feature.shape}"


def _to_picture(array: NDArray[np.float32], feature: Feature) -> Any:
    image = require("PIL.Image", EXTRA)
    levels = np.clip(np.rint(array[0] * _PIXEL), 0, _PIXEL).astype(np.uint8)
    return image.fromarray(levels[0] if feature.color == "gray" else levels.transpose(1, 2, 0))


def _from_picture(picture: Any) -> NDArray[np.float32]:
    levels = np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(_PIXEL)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)[None])


def _array(results: Mapping[str, Any], feature: Feature) -> NDArray[np.float32]:
    return np.array(results[feature.name], dtype=np.float32)
