"""The machine: nothing guessed, identity stable, pinning undone."""

from __future__ import annotations

import json
import os
import platform
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.machine import Interference, describe_machine, pinned
from models.errors import ConfigError


def test_the_description_is_json_and_the_same_each_time() -> None:
    first, second = replace(describe_machine(threads=2), pinned_to_cpus=(0, 1)), describe_machine(threads=1)
    assert first.id == second.id
    assert first.id.startswith(platform.machine().lower())
    content = json.loads(json.dumps(first.to_json()))
    assert content["threads"] == 2
    assert content["pinned_to_cpus"] == [0, 1]
    assert content["python"] == platform.python_version()
    assert content["versions"]["numpy"]
    assert content["cores_available"] >= 1


def test_flags_and_name_come_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model name\t: Fast One\nflags\t\t: fpu sse2 avx512_vnni amx_int8 mmx\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.sys, "platform", "linux")
    machine._cpu.cache_clear()
    try:
        assert machine._cpu() == ("Fast One", ("amx_int8", "avx512_vnni"))
    finally:
        machine._cpu.cache_clear()


def test_the_governor_is_unknown_where_it_is_not_exposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SYSFS", tmp_path)
    assert describe_machine().governor is None
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "scaling_governor").write_text("performance\n")
    assert describe_machine().governor == "performance"


def test_cores_come_before_their_siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(machine, "_SYSFS", tmp_path)
    assert machine._spread([0, 1, 2, 3]) == [0, 1, 2, 3]
    assert machine._spread([0, 2, 1, 3]) == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes")
def test_pinning_holds_inside_and_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cpus:
        assert cpus is not None
        assert os.sched_getaffinity(0) == set(cpus)
        assert len(cpus) == 1
    assert os.sched_getaffinity(0) == before


def test_more_threads_than_processors_are_not_pinned() -> None:
    with pinned(4096) as cpus:
        assert cpus is None
    with pinned(None) as cpus:
        assert cpus is None


def test_no_thread_is_refused() -> None:
    with pytest.raises(ConfigError, match="--threads: expected 1 or more, got 0"), pinned(0):
        pass


CpuTimes = namedtuple("CpuTimes", "user nice system idle iowait irq softirq steal guest")
OwnTimes = namedtuple("OwnTimes", "user system")


def test_what_others_used_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    before, after = CpuTimes(*[0.0] * 9), CpuTimes(6.0, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0, 0.5, 9.0)  # 10 s, 2 s idle
    readings = iter([[before, before], [after, before]])
    own = iter([OwnTimes(1.0, 0.0), OwnTimes(6.0, 0.5)])
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(readings))
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: next(own))
    with Interference((0,)) as others:
        assert others.share is None
    assert others.share == pytest.approx((8.0 - 5.5) / 10.0)


def test_a_block_too_short_to_tell_is_unknown_or_a_share() -> None:
    with Interference() as others:
        pass
    assert others.share is None or 0.0 <= others.share <= 1.0
