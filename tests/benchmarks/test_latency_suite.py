"""``pytest benchmarks --benchmark-only`` times each artifact of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).resolve().parents[2]


def test_each_artifact_of_a_run_is_timed(tiny_run: Path, tmp_path: Path) -> None:
    answer = tmp_path / "times.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-q", "-p", "no:cacheprovider"]
    command += ["--run", str(tiny_run / "artifacts"), "--threads", "1", "--input-size", "64", "64"]
    command += ["--benchmark-max-time=0.01", "--benchmark-min-rounds=2", f"--benchmark-json={answer}"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # no xdist worker
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(answer.read_text())["benchmarks"]
    names = {one["params"]["case"] if isinstance(one["params"]["case"], str) else one["param"] for one in found}
    assert len(found) == len(names) == 2
    assert {one["extra_info"]["target"] for one in found} == {"onnx", "openvino"}
    assert all(one["stats"]["median"] > 0 for one in found)
