"""What only a fresh process can tell of an artifact: load time, first inference, peak memory, and whether it crashes.

``python -m benchmarks probe`` runs ``probe``; ``probe_in_subprocess`` starts that and reads its answer. The runtime is
imported before the clock starts, so that load time is the artifact's own.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import errors
from models.errors import PareError, explain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.spec import TensorSpec

_RUNTIMES = {
    "torch": ("torch",),
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt_rtx"),
    "coreml": ("coremltools",),
}
_CALLS = 3
_TIMEOUT_S = 600
_NS_PER_MS = 1e6
_BYTES_PER_MB = 1e6


@dataclass(frozen=True)
class Probe:
    """Answers of one fresh process.

    Attributes:
        load_ms: From the file to a runner that is ready, ms.
        first_inference_ms: The first call, ms.
        peak_rss_mb: Highest resident memory of the process, MB (10^6 bytes).
        rss_idle_mb: Resident memory before the artifact was opened: Python and the runtime, MB.
        runtime: Name and version of what ran it.
        device: Where it ran.
    """

    load_ms: float
    first_inference_ms: float
    peak_rss_mb: float
    rss_idle_mb: float
    runtime: str
    device: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def probe(path: Path, *, target: str, device: str, threads: int | None, input_size: tuple[int, int]) -> Probe:
    """Open ``path`` and run it a few times on random input, in this process, which should have done nothing else.

    Raises:
        UnsupportedError: It cannot run here, or only emulated.
    """
    from export import open_runner

    for module in _RUNTIMES.get(target, ()):
        with suppress(ImportError):
            importlib.import_module(module)
    idle = resident_mb()
    start = time.perf_counter_ns()
    with open_runner(path, device=device, threads=threads) as runner:
        opened_ms = (time.perf_counter_ns() - start) / _NS_PER_MS
        load_ms = opened_ms if runner.load_ms is None else runner.load_ms  # without checking the hash of the file
        feeds = {spec.name: example(spec, input_size) for spec in runner.inputs}
        start = time.perf_counter_ns()
        runner.infer(feeds)
        first = (time.perf_counter_ns() - start) / _NS_PER_MS
        for _ in range(_CALLS):
            runner.infer(feeds)
        return Probe(load_ms, first, peak_mb(), idle, runner.runtime, runner.device)


def example(spec: TensorSpec, input_size: tuple[int, int]) -> NDArray[np.float32]:
    """Return random values in the range of ``spec``: N and C of the spec (1 where open), H and W of ``input_size``.

    An artifact of another fixed size refuses them, which is how it is found out.
    """
    import numpy as np

    shape = tuple(side if isinstance(side, int) else 1 for side in spec.shape)
    shape = (*shape[:2], *input_size) if len(shape) == 4 else shape
    low, high = spec.value_range or (0.0, 1.0)
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def probe_in_subprocess(
    path: Path, *, target: str, device: str, threads: int | None, input_size: tuple[int, int]
) -> Probe:
    """Run ``probe`` in a fresh Python process.

    Raises:
        PareError: The process failed or died; the text ends with its last line or names the signal.
    """
    command = [sys.executable, "-m", "benchmarks", "probe", str(path.resolve()), "--target", target, "--device", device]
    command += ["--input-size", str(input_size[0]), str(input_size[1]), "--json"]
    command += ["--threads", str(threads)] if threads is not None else []
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired as error:
        got, fix = f"none in {_TIMEOUT_S} s", "leave it out, or give the machine more memory"
        raise PareError(explain(f"probing {path.name}", expected="an answer", got=got, fix=fix)) from error
    answer: dict[str, Any] = {}
    with suppress(ValueError):
        answer = json.loads(done.stdout)
    if done.returncode or "error" in answer or not answer:
        raise _what_happened(path, done, answer)
    return Probe(**answer)


def _what_happened(path: Path, done: subprocess.CompletedProcess[str], answer: Mapping[str, Any]) -> PareError:
    """Return the child's own error where it could say it, else what its end tells."""
    if "error" in answer:
        kind = getattr(errors, str(answer.get("kind")), PareError)
        text = str(answer["error"])
        simple = isinstance(kind, type) and issubclass(kind, PareError) and kind.__init__ is Exception.__init__
        return kind(text) if simple else PareError(text)
    if done.returncode < 0:
        with suppress(ValueError):
            name = signal.Signals(-done.returncode).name
            return PareError(f"{path.name}: the process that opened it died of {name}")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return PareError(f"{path.name}: {lines[-1] if lines else f'exit status {done.returncode}'}")


def _environment() -> Mapping[str, str]:
    """Let the child find what this process finds, custom teachers too."""
    paths = [path or os.getcwd() for path in sys.path]
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, root]))}


def resident_mb() -> float:
    """Return the resident memory of this process, MB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / _BYTES_PER_MB


def peak_mb() -> float:
    """Return the highest resident memory of this process, MB.

    On Linux from ``VmHWM``: ``ru_maxrss`` of a child starts at the memory of its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _BYTES_PER_MB
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / _BYTES_PER_MB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _BYTES_PER_MB
