"""The contract of an exported artifact: what goes in and comes out, in numbers and in words, kept inside the file.

Every target writes ``embedded(...)`` into the metadata of its format (where that has any), and ``Contract`` as JSON
into the sidecar, so that a runner needs neither the network's code nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from models.artifact import Artifact, installed_versions
from models.errors import CheckpointError, explain
from models.registry import get_spec
from models.spec import Precision, SizeRequirements, TensorSpec

PREFIX = "pare."

COLOR_WORDS: Mapping[str, str] = {
    "srgb": "sRGB with its transfer curve, red, green, blue, in [0, 1] (8-bit values divided by 255)",
    "linear-rgb": "linear light with sRGB primaries, red, green, blue, in [0, 1]",
    "cielab-l/100": (
        "CIELab lightness L of the sRGB photo (D65 white, 2 degree observer) divided by 100: 0 is black, 1 is white"
    ),
    "overlay-soft-light": (
        "grey overlay composited over the photo in Photoshop's Soft Light: 0.5 changes nothing, less darkens, more "
        "lightens"
    ),
    "bayer-rgbg": (
        "raw sensor values of an RGGB mosaic as planes red, green, blue, green: (raw - black) / (white - black), "
        "not amplified, not white-balanced"
    ),
    "control": "A strength that the app sets at run time, one value",
    "cielab-ab/255": "CIELab chroma a then b (D65 white, 2 degree observer) divided by 255: 0 is neutral grey",
}


@dataclass(frozen=True)
class Contract:
    """What an artifact takes and gives.

    Attributes:
        model: Registry name or import path of the network.
        task: Task that prepares the input and renders the output.
        precision: Arithmetic it computes in.
        inputs: Tensors in; a named dimension is open.
        outputs: Tensors out.
        size: Heights and widths that the network can take.
        input_size: Height and width that it was exported at (the optimum of a dynamic one).
        dynamic: Batch, height and width may change at run time.
    """

    model: str
    task: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size: SizeRequirements
    input_size: tuple[int, int]
    dynamic: bool

    def to_json(self) -> dict[str, Any]:
        """Return the contract as JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Contract:
        """Rebuild the contract that ``to_json`` wrote.

        Raises:
            CheckpointError: A key is missing or has another type.
        """
        try:
            return cls(
                model=content["model"],
                task=content["task"],
                precision=Precision(content["precision"]),
                inputs=tuple(_spec(item) for item in content["inputs"]),
                outputs=tuple(_spec(item) for item in content["outputs"]),
                size=SizeRequirements(**content["size"]),
                input_size=(int(content["input_size"][0]), int(content["input_size"][1])),
                dynamic=bool(content["dynamic"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            fix = "export the artifact again"
            raise CheckpointError(
                explain("contract", expected="the contract of a Pare artifact", got=repr(error), fix=fix)
            ) from error

    def words(self) -> list[str]:
        """Return the contract as sentences for an app developer."""
        lines = []
        for verb, specs in (("takes", self.inputs), ("returns", self.outputs)):
            for spec in specs:
                shape = "N x C x H x W = " * (len(spec.shape) == 4) + " x ".join(str(side) for side in spec.shape)
                color = COLOR_WORDS.get(spec.color_space, spec.color_space)
                limits = f", values in [{spec.value_range[0]:g}, {spec.value_range[1]:g}]" if spec.value_range else ""
                lines.append(f"It {verb} `{spec.name}`: {spec.dtype}, {shape}{limits}. {color}.")
        if self.dynamic:
            lines.append(
                f"Height and width are open: at least {self.size.minimum}, a multiple of {self.size.multiple_of}."
            )
        else:
            lines.append(f"Height and width are fixed at {self.input_size[0]} x {self.input_size[1]}.")
        return lines


def _spec(content: Mapping[str, Any]) -> TensorSpec:
    limits = content["value_range"]
    return TensorSpec(
        name=content["name"],
        shape=tuple(content["shape"]),
        dtype=content["dtype"],
        value_range=None if limits is None else (float(limits[0]), float(limits[1])),
        color_space=content["color_space"],
    )


def contract_of(artifact: Artifact, *, precision: Precision, input_size: tuple[int, int], dynamic: bool) -> Contract:
    """Build the contract of an export of ``artifact``; static tensors are 1 x C x H x W.

    Raises:
        InputSizeError: The network cannot take ``input_size``.
    """
    row = get_spec(artifact.model, task=artifact.task)
    row.size.check(*input_size)
    sides: dict[str, int] = {} if dynamic else {"N": 1, "H": input_size[0], "W": input_size[1]}
    return Contract(
        model=artifact.model,
        task=artifact.task,
        precision=precision,
        inputs=tuple(spec.at(**sides) for spec in row.graph_inputs),
        outputs=tuple(spec.at(**sides) for spec in row.outputs),
        size=row.size,
        input_size=input_size,
        dynamic=dynamic,
    )


def is_picture(spec: TensorSpec, own: TensorSpec) -> bool:
    """Say whether ``spec`` of an artifact is an RGB picture in the place of ``own``, the tensor of its task."""
    return spec.color_space == "srgb" != own.color_space


def embedded(contract: Contract, artifact: Artifact) -> dict[str, str]:
    """Return the metadata that goes inside of the file, text to text: contract, origin and versions."""
    return {
        PREFIX + "model": contract.model,
        PREFIX + "task": contract.task,
        PREFIX + "precision": contract.precision.value,
        PREFIX + "stages": ",".join(artifact.stages),
        PREFIX + "color_contract": " ".join(contract.words()),
        PREFIX + "contract": json.dumps(contract.to_json()),
        PREFIX + "input_size": f"{contract.input_size[0]}x{contract.input_size[1]}",
        PREFIX + "parent_sha256": artifact.sha256,
        PREFIX + "versions": json.dumps(installed_versions()),
    }


def contract_in(artifact: Artifact) -> Contract:
    """Return the contract in the sidecar of an exported artifact.

    Raises:
        CheckpointError: It has none.
    """
    return Contract.from_json(artifact.metadata.get("contract") or {})
