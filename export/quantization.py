"""One calibration, lowered to each target's own dialect of INT8.

A quantized artifact keeps its weights in FP32 and carries a ``Quantization``: which layers stay in higher precision,
which range each of the others resolves, and what its bias gains. ``export.qdq_lowering`` (onnxruntime, TensorRT),
``export.nncf_lowering`` (OpenVINO) and ``export.coreml_int8`` write it down, because no dialect suits two engines
(measured).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.artifact import Artifact, load_network, read_tensors, save_network, save_tensors, sha256_of
from models.errors import CheckpointError, ConfigError, explain
from models.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

METADATA_KEY = "quantization"
METHODS = ("ptq",)
TENSOR = "input"
CORRECTION = "correction."


@dataclass(frozen=True)
class Quantization:
    """How to quantize a network after training.

    Attributes:
        calibration: Safetensors file with the tensor ``"input"`` (n, C, H, W), floating, in network units; run-time
            controls are packed behind the channels of the image (``models.controls``). And a tensor
            ``"correction.NAME"`` (channels,) a layer: what is added to its bias in INT8, so that rounding does not
            shift its mean. A layer without one gets nothing.
        samples: Number n of calibration inputs.
        sha256: Hash of the calibration file, or "" where it is not checked.
        float_layers: Torch module names that stay in higher precision.
        ranges: Smallest and largest input value of each layer (torch module name) that INT8 resolves.
        coverage: What the calibration photos cover, JSON values.
        noise: How far rounding takes the outputs from those of FP32, root mean square in output units, simulated; the
            larger of rounding the inputs of layers asymmetrically and symmetrically. None: not measured.
        method: ``ptq``: post-training.
    """

    calibration: Path
    samples: int
    sha256: str = ""
    float_layers: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    coverage: Mapping[str, Any] = field(default_factory=dict)
    noise: float | None = None
    method: Literal["ptq"] = "ptq"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            fix = "choose one of these"
            raise ConfigError(
                explain("quantization method", expected=" | ".join(METHODS), got=repr(self.method), fix=fix)
            )
        if self.samples < 1:
            fix = "calibrate on at least one photo"
            raise ConfigError(explain("calibration samples", expected="1 or more", got=self.samples, fix=fix))

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return JSON values; the calibration file is written relative to ``folder``, where the artifact lies."""
        return {
            "method": self.method,
            "calibration": Path(os.path.relpath(self.calibration.resolve(), folder.resolve())).as_posix(),
            "samples": self.samples,
            "sha256": self.sha256,
            "float_layers": list(self.float_layers),
            "ranges": {name: [float(low), float(high)] for name, (low, high) in self.ranges.items()},
            "coverage": dict(self.coverage),
            "noise": self.noise,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], folder: Path) -> Quantization:
        """Read what ``to_json`` wrote.

        Raises:
            CheckpointError: The record lacks a field or holds another type.
        """
        try:
            return cls(
                calibration=folder / str(content["calibration"]),
                samples=int(content["samples"]),
                sha256=str(content.get("sha256", "")),
                float_layers=tuple(str(name) for name in content.get("float_layers", ())),
                ranges={name: (float(low), float(high)) for name, (low, high) in content.get("ranges", {}).items()},
                coverage=dict(content.get("coverage", {})),
                noise=None if content.get("noise") is None else float(content["noise"]),
                method=content.get("method", "ptq"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            fix = "run `python -m optimize quantize` again"
            raise CheckpointError(
                explain("quantization record", expected="calibration, samples, float_layers", got=repr(error), fix=fix)
            ) from error

    def inputs(self) -> np.ndarray[Any, Any]:
        """Read the calibration inputs, float32 (n, C, H, W).

        Raises:
            CheckpointError: The file is missing, damaged, altered, or holds no tensor ``"input"``.
        """
        tensors = self.tensors()
        if TENSOR not in tensors or tensors[TENSOR].ndim != 4:
            shapes = {name: tuple(value.shape) for name, value in tensors.items()}
            expected = f"tensor {TENSOR!r} (n, C, H, W)"
            fix = "run `python -m optimize quantize` again"
            raise CheckpointError(explain(f"{self.calibration}", expected=expected, got=shapes, fix=fix))
        array: np.ndarray[Any, Any] = tensors[TENSOR].float().numpy()
        return array

    def bias_corrections(self) -> dict[str, np.ndarray[Any, Any]]:
        """Read what is added to the bias of each layer in INT8, float32 (channels,); none of the float layers.

        Raises:
            CheckpointError: The file is missing, damaged or altered.
        """
        return {
            layer: value.float().numpy()
            for name, value in self.tensors().items()
            if name.startswith(CORRECTION) and (layer := name.removeprefix(CORRECTION)) not in self.float_layers
        }

    def tensors(self) -> dict[str, Tensor]:
        """Read everything in the calibration file.

        Raises:
            CheckpointError: The file is missing, damaged or altered.
        """
        if not self.calibration.is_file():
            fix = "keep it beside the artifact: INT8 export calibrates on it"
            expected = f"file {self.calibration}"
            raise CheckpointError(explain("calibration inputs", expected=expected, got="no such file", fix=fix))
        if self.sha256 and (got := sha256_of(self.calibration)) != self.sha256:
            fix = "copy the run folder again, or run `python -m optimize quantize` again"
            expected = f"sha256 {self.sha256[:12]}"
            raise CheckpointError(explain(f"{self.calibration}", expected=expected, got=got[:12], fix=fix))
        return read_tensors(self.calibration)


def quantization_of(artifact: Artifact) -> Quantization | None:
    """Return the record that ``artifact`` carries, or None where it is not quantized."""
    content = artifact.metadata.get(METADATA_KEY)
    return None if content is None else Quantization.from_json(content, artifact.path.parent)


def save_calibrated(network: Artifact, folder: Path, inputs: Tensor, *, float_layers: tuple[str, ...] = ()) -> Artifact:
    """Save ``network`` as the INT8 stage artifact ``folder/int8.safetensors``, with a record of its calibration inputs.

    Ranges are those that the inputs show and biases stay as they are: ``optimize.quantize`` fits both.

    Args:
        network: A torch artifact.
        folder: An existing folder; ``calibration.safetensors`` goes there too.
        inputs: Calibration inputs (n, C, H, W) in network units, controls packed behind the channels of the image.
        float_layers: Torch module names that stay in higher precision.
    """
    path = folder / "calibration.safetensors"
    save_tensors({TENSOR: inputs}, path)
    record = Quantization(calibration=path, samples=len(inputs), sha256=sha256_of(path), float_layers=float_layers)
    return save_network(
        load_network(network),
        folder / "int8.safetensors",
        model=network.model,
        task=network.task,
        precision=Precision.INT8,
        parent=network,
        model_kwargs=network.model_kwargs,
        metadata={METADATA_KEY: record.to_json(folder)},
    )
