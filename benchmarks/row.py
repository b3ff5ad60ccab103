"""One row of the report: an artifact, on one device of one machine, at one input size. Flat, validated, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from models.errors import ConfigError, explain, nearest

Status = Literal["measured", "built", "unsupported", "failed"]
STATUSES: tuple[str, ...] = get_args(Status)
TARGET_NAMES = {"torch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
TARGET_NAMES["coreml"] = "Core ML"
STAGE_NAMES = {"teacher": "Teacher", "distill": "Distilled", "prune": "Pruned", "quantize": "Quantized"}

#: What a reason names where the cost of a network is unknown, and why it is of an exported artifact alone.
COUNTED = "params_m, gmacs"
NO_ORIGIN = "the PyTorch artifact that it was exported from is not among those measured"
#: Folders of a run that hold what it does not ship.
_ASIDE = frozenset(("stages", "reference", "rejected"))

#: A row without one of these says why in ``reason``.
MUST_EXPLAIN = ("lpips", "lpips_vs_teacher", "latency_p50_ms", "gmacs")
_POSITIVE_NAMES = (
    "latency_p50_ms latency_p95_ms end_to_end_p50_ms end_to_end_p95_ms images_per_s speedup size_mb peak_rss_mb "
    "load_ms first_inference_ms params_m height width batch"
)
_POSITIVE = frozenset(_POSITIVE_NAMES.split())
_NOT_NEGATIVE_NAMES = (
    "lpips lpips_vs_teacher lpips_worst ms_ssim delta_e colourfulness_ratio gmacs rss_idle_mb interference"
)
_NOT_NEGATIVE = frozenset(_NOT_NEGATIVE_NAMES.split())


@dataclass(frozen=True)
class BenchmarkRow:
    """What is known of one artifact on one device.

    Unknown is None, and ``reason`` says why for what the report needs (``MUST_EXPLAIN``).

    Attributes:
        model: Registry name, or ``package.module:factory``.
        task: Task name.
        stage: Last thing done to the weights: ``teacher``, ``distill``, ``prune``, ``quantize``, ...
        target: ``torch`` (PyTorch eager), ``onnx``, ``openvino``, ``tensorrt`` or ``coreml``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        artifact: File, relative to the folder that was measured.
        sha256: Hash of the file.
        parent_sha256: Hash of the artifact that it was made from.
        stages: Everything done to the weights, oldest first.
        device: Where it ran, for example ``cpu``; ``emulated`` where its operations were evaluated one by one.
        runtime: Name and version of what ran it.
        machine: ``Machine.id``.
        threads: Threads that the engine was told to use; None: its default.
        height: Of the input, pixels.
        width: Of the input, pixels.
        batch: Images a call.
        photos: How many photos the quality is a mean of.
        photos_fingerprint: Which photos.
        lpips: To the ground truth, with ``lpips_net``; lower is better. None where the task has no ground truth: the
            other quality columns then are to what the teacher renders.
        lpips_net: ``lite``, ``squeeze``, ``alex`` or ``vgg``: numbers of different nets do not compare.
        lpips_vs_teacher: Distance of its pictures to the teacher's.
        lpips_worst: LPIPS of its worst photo.
        worst_photo: Name of that photo.
        psnr_db: To the ground truth, dB.
        ssim: To the ground truth.
        ms_ssim: To the ground truth.
        delta_e: CIEDE2000 to the ground truth.
        colourfulness_ratio: Mean colourfulness over that of the ground truth.
        own_metrics: Means of the task's own metrics, by name; None where one is unknown.
        latency_p50_ms: Median of one call of the engine.
        latency_p95_ms: 95th percentile.
        latency_is_noisy: Quartiles further apart than 10% of the median.
        speedup: The teacher's median in PyTorch eager FP32, in the same run, over this one's.
        speedup_over: What ``speedup`` is relative to, with its device.
        end_to_end_p50_ms: From an RGB photo to an RGB photo: conversion, engine, rendering; no file decoding.
        end_to_end_p95_ms: The same, 95th percentile.
        images_per_s: At the median of one call of the engine.
        load_ms: Opening it in a fresh process.
        first_inference_ms: The first call after that.
        peak_rss_mb: Highest resident memory of that process, runtime and Python included, MB.
        rss_idle_mb: The same process before it opened the artifact, MB.
        params_m: Parameters, millions.
        gmacs: Multiply-adds at this input size, thousand millions.
        size_mb: Of the file or folder, MB.
        warmup: Unrecorded calls before the first recorded one.
        interference: Part of the processors that other processes used while it was timed, 0 to 1.
        times_ms: Every recorded call.
        end_to_end_times_ms: Every recorded call from photo to photo.
        status: ``measured`` here; ``built`` but it cannot be timed here; ``unsupported``; ``failed``.
        reason: Why it is not measured, or why something in this row is None.

    Raises:
        ConfigError: A value is out of range, or something is missing without a reason.
    """

    model: str
    task: str
    stage: str
    target: str
    precision: str
    artifact: str
    sha256: str
    parent_sha256: str | None = None
    stages: tuple[str, ...] = ()
    device: str = "cpu"
    runtime: str = ""
    machine: str = ""
    threads: int | None = None
    height: int = 256
    width: int = 256
    batch: int = 1
    photos: int | None = None
    photos_fingerprint: str | None = None
    lpips: float | None = None
    lpips_net: str | None = None
    lpips_vs_teacher: float | None = None
    lpips_worst: float | None = None
    worst_photo: str | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    ms_ssim: float | None = None
    delta_e: float | None = None
    colourfulness_ratio: float | None = None
    own_metrics: Mapping[str, float | None] = field(default_factory=dict)
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_is_noisy: bool | None = None
    speedup: float | None = None
    speedup_over: str | None = None
    end_to_end_p50_ms: float | None = None
    end_to_end_p95_ms: float | None = None
    images_per_s: float | None = None
    load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_rss_mb: float | None = None
    rss_idle_mb: float | None = None
    params_m: float | None = None
    gmacs: float | None = None
    size_mb: float | None = None
    warmup: int | None = None
    interference: float | None = None
    times_ms: tuple[float, ...] = ()
    end_to_end_times_ms: tuple[float, ...] = ()
    status: Status = "built"
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            self._refuse("status", " | ".join(STATUSES), repr(self.status), "use one of them")
        for name in (*_POSITIVE, *_NOT_NEGATIVE, "psnr_db", "ssim"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                self._refuse(name, "a finite number, or None", value, "record None and the reason")
            floor = name in _POSITIVE or name in _NOT_NEGATIVE
            if value is not None and floor and (value < 0 or (value == 0 and name in _POSITIVE)):
                self._refuse(name, "a positive number, or None", value, "record None and the reason")
        if (self.distance is None) != (self.lpips_net is None):
            got = f"lpips {self.distance}, lpips_net {self.lpips_net}"
            self._refuse("LPIPS", "the number and its net together", got, "name the net beside every number")
        if (self.latency_p50_ms is None) != (self.status != "measured"):
            got = f"status {self.status}, latency_p50_ms {self.latency_p50_ms}"
            self._refuse("status", "measured exactly where a latency is", got, "use built, unsupported or failed")
        missing = [name for name in MUST_EXPLAIN if getattr(self, name) is None]
        if missing and not self.reason:
            self._refuse("reason", f"why {', '.join(missing)} is None", "no reason", "say it in `reason`")

    def _refuse(self, what: str, expected: str, got: object, fix: str) -> None:
        raise ConfigError(explain(f"row {self.artifact}: {what}", expected=expected, got=got, fix=fix))

    @property
    def key(self) -> tuple[str, str, str, str, int, int, int]:
        """What two rows must share to be measurements of the same thing."""
        return (self.sha256, self.target, self.device, self.machine, self.height, self.width, self.batch)

    @property
    def is_teacher(self) -> bool:
        """Whether it is the reference: the teacher in PyTorch eager, 1x."""
        return self.stage == "teacher" and self.target == "torch"

    @property
    def is_aside(self) -> bool:
        """Whether a run made it only to compare with, or rejected it: what a headline must not be about."""
        return not _ASIDE.isdisjoint(self.artifact.split("/")[:-1])

    @property
    def distance(self) -> float | None:
        """LPIPS to the ground truth; where the task has none, to what the teacher renders."""
        return self.lpips_vs_teacher if self.lpips is None else self.lpips

    @property
    def label(self) -> str:
        """Name for people, for example ``Pruned · OpenVINO INT8``."""
        return f"{self.stage_name} · {self.engine_name}"

    @property
    def stage_name(self) -> str:
        """Stage for people, for example ``Distilled``."""
        return STAGE_NAMES.get(self.stage, self.stage.capitalize())

    @property
    def engine_name(self) -> str:
        """Target and precision for people, for example ``OpenVINO INT8``."""
        mobile = " (.ort)" if self.artifact.endswith(".ort") else ""
        return f"{TARGET_NAMES.get(self.target, self.target)} {self.precision.upper()}{mobile}"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, all fields."""
        content = asdict(self)
        content["stages"] = list(self.stages)
        for name in ("times_ms", "end_to_end_times_ms"):
            content[name] = [round(value, 5) for value in content[name]]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BenchmarkRow:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: A field is unknown, missing or out of range.
        """
        known = {item.name: item for item in fields(cls)}
        for name in content:
            if name not in known:
                close = nearest(name, known)
                fix = f"use {close!r}" if close else "remove it, or use the version of Pare that wrote it"
                raise ConfigError(explain("row", expected="the fields of BenchmarkRow", got=repr(name), fix=fix))
        needed = [item.name for item in known.values() if item.default is item.default_factory is MISSING]
        lacking = [name for name in needed if name not in content]
        if lacking:
            raise ConfigError(explain("row", expected=", ".join(lacking), got="nothing", fix="measure it again"))
        values = dict(content)
        for name in ("stages", "times_ms", "end_to_end_times_ms"):
            values[name] = tuple(values.get(name) or ())
        return cls(**values)


def join_reasons(reasons: Mapping[str, str]) -> str | None:
    """Write ``{"latency": "needs macOS"}`` as ``latency: needs macOS``; none at all as None."""
    return "; ".join(f"{what}: {why}" for what, why in reasons.items()) or None
