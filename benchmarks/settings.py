"""How a comparison is made: one frozen, validated dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.metrics import LPIPS_NETS
from export.registry import TARGETS
from models.errors import ConfigError, UnknownNameError, explain
from models.spec import check_threads

AUTO = "auto"


@dataclass(frozen=True)
class Settings:
    """How a comparison is made.

    Attributes:
        input_size: Height and width, pixels.
        device: ``auto`` (each target's own first device), or the one device that is measured.
        threads: Threads of each engine, pinned to as many processors; None: one a physical core.
        warmup: Unrecorded calls of each artifact.
        iterations: Recorded calls of each artifact.
        max_seconds: An artifact that has been called for so long is left at the samples that it has (three at least).
        lpips_net: Net of every LPIPS number.
        lpips_weights: Where its weights are, for the official nets.
        photo_limit: At most so many photos; None: all.
        pictures: How many photos are shown side by side.
        levels: Levels of a run-time control at which quality is measured, the ends among them; 0: not measured.
        level_photos: Photos that this is measured on.
        probes: Measure load time, first inference and memory in a fresh process each.
        latency: Measure latency; off: quality only.
        seed: Of the order of measuring.

    Raises:
        ConfigError: A value out of range.
    """

    input_size: tuple[int, int] = (256, 256)
    device: str = AUTO
    threads: int | None = None
    warmup: int = 10
    iterations: int = 50
    max_seconds: float = 30.0
    lpips_net: str = "lite"
    lpips_weights: Path | None = None
    photo_limit: int | None = None
    pictures: int = 4
    levels: int = 5
    level_photos: int = 3
    probes: bool = True
    latency: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"warmup": 0, "iterations": 1, "pictures": 0, "photo_limit": 1, "max_seconds": 0}
        for name, low in limits.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                flag = "--limit" if name == "photo_limit" else "--" + name.replace("_", "-")
                raise ConfigError(explain(flag, expected=f"{low} or more", got=value, fix="raise it"))
        check_threads(self.threads)
        devices = sorted({AUTO, *(device for target in TARGETS.values() for device in target.devices)})
        if self.device not in devices:
            raise UnknownNameError("device", self.device, devices)
        if self.lpips_net not in LPIPS_NETS:
            raise UnknownNameError("LPIPS net", self.lpips_net, LPIPS_NETS)
        if self.levels == 1 or self.levels < 0 or self.level_photos < 1:
            got = f"{self.levels} levels on {self.level_photos} photos"
            expected = "levels of 0 or of 2 and more, on 1 photo or more"
            raise ConfigError(explain("levels", expected=expected, got=got, fix="change the recipe"))
        if len(self.input_size) != 2 or min(self.input_size) < 1:
            fix = "for example --input-size 256 256"
            raise ConfigError(explain("--input-size", expected="height and width", got=self.input_size, fix=fix))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; the path of the weights stays out, it names a folder of this machine."""
        names = ("device", "threads", "warmup", "iterations", "max_seconds", "lpips_net", "seed")
        return {"input_size": list(self.input_size), **{name: getattr(self, name) for name in names}}
