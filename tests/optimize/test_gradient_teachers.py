"""Teachers whose forward pass computes a gradient: they teach and are judged, and no target takes them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_networks import Descending, save_own

from export.registry import get_target
from models.errors import ExportError
from models.registry import get_spec, get_task
from models.spec import Precision
from optimize.crop_sizes import refusal
from optimize.evaluate import render_all
from optimize.teacher_answers import fastest_predict


def test_it_answers_wherever_a_teacher_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_own(Descending, tmp_path, monkeypatch)
    x, net, spec = torch.rand(2, 3, 32, 32), Descending().eval(), get_spec(source.model, task="image")
    assert refusal(net, x, spec.outputs[0]) is None
    rendered = render_all(net, get_task("image"), x)
    torch.testing.assert_close(rendered, net(x).detach().clamp(0, 1))
    name, predict = fastest_predict(source, x, feature=None)
    assert name == "torch fp32"
    assert torch.isfinite(predict(x)[0]).all()


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_its_layer_and_the_gradient_are_named(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"coreml": "coremltools"}.get(target, target))
    row, source = get_target(target), save_own(Descending, tmp_path, monkeypatch)
    with pytest.raises(ExportError, match=r"layer the network itself: .*the forward pass computes a gradient"):
        row.load().export(source, tmp_path / f"n{row.suffix}", precision=Precision.FP32, input_size=(32, 32))
