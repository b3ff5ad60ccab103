"""What goes in and comes out, in numbers and in words."""

from __future__ import annotations

import json

import pytest

from export.contract import COLOR_WORDS, PREFIX, Contract, contract_in, contract_of, embedded
from models.artifact import Artifact
from models.errors import CheckpointError, InputSizeError
from models.registry import MODELS
from models.spec import Precision


def contract(artifact: Artifact, *, dynamic: bool) -> Contract:
    return contract_of(artifact, precision=Precision.FP16, input_size=(64, 96), dynamic=dynamic)


def test_fixed_and_open_shapes(tiny_student: Artifact) -> None:
    assert contract(tiny_student, dynamic=False).inputs[0].shape == (1, 1, 64, 96)
    assert contract(tiny_student, dynamic=False).outputs[0].shape == (1, 2, 64, 96)
    assert contract(tiny_student, dynamic=True).inputs[0].shape == ("N", 1, "H", "W")
    with pytest.raises(InputSizeError, match="got 64x97"):
        contract_of(tiny_student, precision=Precision.FP32, input_size=(64, 97), dynamic=False)


@pytest.mark.parametrize("dynamic", [False, True])
def test_json_round_trip(dynamic: bool, tiny_student: Artifact) -> None:
    made = contract(tiny_student, dynamic=dynamic)
    assert Contract.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_words_say_range_colour_and_size(tiny_student: Artifact) -> None:
    first, second, third = contract(tiny_student, dynamic=False).words()
    assert first.startswith(
        "It takes `input`: float32, N x C x H x W = 1 x 1 x 64 x 96, values in [0, 1]. CIELab lightness"
    )
    assert "chroma a then b" in second
    assert third == "Height and width are fixed at 64 x 96."
    assert (
        contract(tiny_student, dynamic=True).words()[2] == "Height and width are open: at least 32, a multiple of 32."
    )


def test_every_colour_space_of_the_models_has_words() -> None:
    spaces = {spec.color_space for row in MODELS.values() for spec in (*row.inputs, *row.outputs)}
    assert spaces <= set(COLOR_WORDS)


def test_metadata_inside_of_files_is_text(tiny_student: Artifact) -> None:
    inside = embedded(contract(tiny_student, dynamic=False), tiny_student)
    assert all(isinstance(value, str) and key.startswith(PREFIX) for key, value in inside.items())
    assert inside["pare.parent_sha256"] == tiny_student.sha256
    assert "torch" in json.loads(inside["pare.versions"])


def test_artifact_without_contract_is_refused(tiny_student: Artifact) -> None:
    with pytest.raises(CheckpointError, match=r"contract: expected the contract of a Pare artifact, got KeyError"):
        contract_in(tiny_student)
