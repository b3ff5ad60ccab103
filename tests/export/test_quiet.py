"""Tests that converters are silent, on the terminal and on the network."""

import os
import warnings
from pathlib import Path

import pytest

from export.quiet import quiet
from export.to_openvino import export
from models.artifact import Artifact


def test_usage_data_is_not_sent(tiny_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = pytest.importorskip("openvino_telemetry", reason="comes with openvino; without it nothing is sent")
    sender = pytest.importorskip("openvino_telemetry.utils.sender", reason="comes with openvino")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(telemetry.Telemetry, "_SingletonMetaClass__single_instance", None)
    sent: list[object] = []
    monkeypatch.setattr(sender.TelemetrySender, "send", lambda self, backend, message: sent.append(message))
    export(tiny_student, tmp_path / "net.openvino", input_size=(32, 32))
    assert telemetry.Telemetry().consent is False
    assert not sent
    assert "CI" not in os.environ


def test_environment_and_warnings_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "no")
    with quiet():
        assert os.environ["CI"] == "true"
        warnings.warn("hidden", stacklevel=1)
    assert os.environ["CI"] == "no"
    with pytest.warns(UserWarning, match="shown"):
        warnings.warn("shown", stacklevel=1)
