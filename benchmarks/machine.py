"""The machine that a measurement was made on, and the pinning of threads to its cores."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from models.artifact import installed_versions
from models.errors import ConfigError, explain

# Instructions that decide how fast a network runs in FP32, BF16 and INT8.
_FLAG_NAMES = (
    "avx2 fma avx512f avx_vnni avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 "
    "asimd asimdhp asimddp fphp i8mm bf16 sve sve2 sme"
)
_FLAGS = frozenset(_FLAG_NAMES.split())
_MORE_PACKAGES = ("scikit-image", "scikit-learn", "torch-pruning", "tensorrt", "safetensors")
_CPUINFO = Path("/proc/cpuinfo")
_SYSFS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """What a latency depends on besides the artifact.

    Attributes:
        id: Short name made of the processor, its cores and the operating system; the same on each run.
        cpu: Model name.
        architecture: For example ``x86_64`` or ``arm64``.
        cores_physical: Cores, or None where the system does not say.
        cores_available: Logical processors that this process may use before it is pinned.
        cpu_flags: Instructions that matter to a network, of those the processor has.
        governor: Frequency governor, or None where the system does not expose it.
        memory_gb: Main memory, GiB.
        os: Operating system and its version.
        python: Version.
        threads: Threads that the engines were told to use; None: their default.
        pinned_to_cpus: Logical processors that the process was pinned to; None: not pinned.
        load_average: Mean number of running processes in the minute before; None where unknown.
        gpus: Names of NVIDIA GPUs with their drivers.
        versions: Versions of the packages that compute.
    """

    id: str
    cpu: str
    architecture: str
    cores_physical: int | None
    cores_available: int
    cpu_flags: tuple[str, ...]
    governor: str | None
    memory_gb: float | None
    os: str
    python: str
    threads: int | None = None
    pinned_to_cpus: tuple[int, ...] | None = None
    load_average: float | None = None
    gpus: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        content = asdict(self)
        for name in ("cpu_flags", "gpus", "pinned_to_cpus"):
            content[name] = None if content[name] is None else list(content[name])
        return content


def describe_machine(*, threads: int | None = None) -> Machine:
    """Read what the operating system tells, of a process that is not pinned yet; nothing is guessed, unknown is None.

    Args:
        threads: Threads that the engines will use.
    """
    import psutil

    cpu, flags = _cpu()
    cores = psutil.cpu_count(logical=False)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    system = _operating_system()
    identity = "|".join((cpu, str(cores), str(os.cpu_count()), system.split(" (")[0]))
    return Machine(
        id=f"{platform.machine().lower()}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}",
        cpu=cpu,
        architecture=platform.machine(),
        cores_physical=cores,
        cores_available=available,
        cpu_flags=flags,
        governor=_read(_SYSFS / "cpu0/cpufreq/scaling_governor"),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        os=system,
        python=platform.python_version(),
        threads=threads,
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        gpus=_gpus(),
        versions=_versions(),
    )


@contextmanager
def pinned(threads: int | None) -> Iterator[tuple[int, ...] | None]:
    """Keep the process on as many logical processors as it has threads, on different cores first.

    Yields:
        The processors; None where nothing was pinned: ``threads`` is None, the system cannot, or it has too few.

    Raises:
        ConfigError: ``threads`` below 1.
    """
    if threads is not None and threads < 1:
        raise ConfigError(explain("--threads", expected="1 or more", got=threads, fix="leave it out for the default"))
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    chosen = tuple(_spread(sorted(before))[:threads])
    if len(chosen) < threads:
        yield None
        return
    _set_affinity(set(chosen))
    try:
        yield tuple(sorted(chosen))
    finally:
        _set_affinity(before)


class Extremes:
    """The lowest and highest answer of ``read`` inside of a ``with`` block, asked every 5 ms from a thread.

    Args:
        read: For example the memory that the process holds, bytes.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self._read, self._stop = read, threading.Event()
        self.lowest = self.highest = read()

    def __enter__(self) -> Extremes:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._look()

    def _look(self) -> None:
        now = self._read()
        self.lowest, self.highest = min(self.lowest, now), max(self.highest, now)


class Interference:
    """Finds out what other processes used of the processors inside of a ``with`` block.

    Args:
        cpus: Logical processors that matter; None: all.
    """

    def __init__(self, cpus: tuple[int, ...] | None = None) -> None:
        self.cpus = cpus
        self.share: float | None = None
        self._before = (0.0, 0.0, 0.0)

    def __enter__(self) -> Interference:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        total, busy, own = (after - before for after, before in zip(self._read(), self._before, strict=True))
        if total > 0:  # the counters move in steps of 10 ms
            self.share = min(max((busy - own) / total, 0.0), 1.0)

    def _read(self) -> tuple[float, float, float]:
        """Return seconds that passed, that were used, and that this process used, summed over processors."""
        import psutil

        every = psutil.cpu_times(percpu=True)
        chosen = every if self.cpus is None else [every[cpu] for cpu in self.cpus if cpu < len(every)]
        total = sum(sum(one[:8]) for one in chosen)  # what comes after is part of the first fields
        idle = sum(one.idle + getattr(one, "iowait", 0.0) for one in chosen)
        own = psutil.Process().cpu_times()
        return total, total - idle, own.user + own.system


def _set_affinity(cpus: set[int]) -> None:
    """Move every thread of this process; threads made later inherit it."""
    for task in os.listdir("/proc/self/task") if Path("/proc/self/task").is_dir() else ["0"]:
        try:
            os.sched_setaffinity(int(task), cpus)
        except (ProcessLookupError, PermissionError):
            continue


def _spread(cpus: list[int]) -> list[int]:
    """Order logical processors so that the first of every core come before their siblings."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for cpu in cpus:
        core = _read(_SYSFS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        (rest if core in seen else first).append(cpu)
        seen.add(core)
    return first + rest


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def cpu_flags() -> tuple[str, ...]:
    """Return the instructions that matter to a network, of those the processor has; none are known of macOS."""
    return _cpu()[1]


@lru_cache(maxsize=1)
def _cpu() -> tuple[str, tuple[str, ...]]:
    """Return the processor's name and those of its flags that matter."""
    name = platform.processor() or platform.machine()
    flags: frozenset[str] = frozenset()
    for line in (_read(_CPUINFO) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            flags = _FLAGS & set(value.split())
    if sys.platform == "darwin":
        name = _run("sysctl", "-n", "machdep.cpu.brand_string") or name
    return name, tuple(sorted(flags))


def _operating_system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    if sys.platform == "linux":
        try:
            pretty = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
        except OSError:
            pretty = "Linux"
        return f"{pretty} (Linux {platform.release()})"
    return f"{platform.system()} {platform.release()}"


@lru_cache(maxsize=1)
def _gpus() -> tuple[str, ...]:
    listing = _run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return tuple(line.strip().replace(", ", ", driver ") for line in (listing or "").splitlines() if line.strip())


def _run(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    versions = installed_versions()
    for name in _MORE_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
