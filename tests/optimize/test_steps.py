"""Stages under a launcher: one process writes, the others read."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.artifact import Artifact
from optimize import steps
from optimize.steps import is_main_process, wait_for_all, written_once


def test_the_first_process_writes(tiny_student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    assert written_once(lambda: tiny_student, Path("never read")) is tiny_student


def test_the_others_wait_and_read(tiny_student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(steps, "wait_for_all", lambda: waited.append(True))

    def write() -> Artifact:
        raise AssertionError("a second process must not write")

    assert written_once(write, tiny_student.path) == tiny_student
    assert waited == [True]


def test_alone_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("accelerate.state.PartialState.wait_for_everyone", lambda self: waited.append(True))
    wait_for_all()
    assert waited == []
