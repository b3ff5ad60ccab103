"""The table of targets: explicit rows, modules imported on use, duplicates rejected. No runtime is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.target import Target, Tolerance
from models.errors import ConfigError, UnknownNameError, explain
from models.spec import Precision

_FP32, _FP16, _BF16, _INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8

_EXACT = {_FP32: Tolerance(1e-4, 2.5e-5), _FP16: Tolerance(2e-2, 5e-3)}
#: Seen, largest and rms: BF16 33% and 5%. INT8 on nine tiny networks 7.2% and 1.7%, on 45 trained ones 15% and 2.6%.
_COARSE = {_BF16: Tolerance(0.4, 0.1), _INT8: Tolerance(0.4, 0.03)}

_ROWS = (
    Target(
        name="torch",
        suffix=".safetensors",
        precisions=(_FP32,),
        devices=("cpu", "cuda"),
        extra="",
        tolerance={_FP32: Tolerance(1e-5, 2.5e-6)},
        module="export.torch_runner",
        exports=False,
    ),
    Target(
        name="onnx",
        suffix=".onnx",
        precisions=(_FP32, _FP16, _INT8),
        devices=("cpu", "cuda"),
        extra="onnx",
        other_suffixes=(".ort",),
        tolerance=_EXACT | _COARSE,
        module="export.to_onnx",
        options={
            "opset": "ONNX operator set, 17 or later (default 18)",
            "ort": "also write FILE.ort, the format of ONNX Runtime Mobile (true or false)",
            "keep_fp32": "torch module names, with commas, that stay in FP32 when the rest is cast to FP16",
        },
    ),
    Target(
        name="openvino",
        suffix=".openvino",
        precisions=(_FP32, _FP16, _BF16, _INT8),
        devices=("cpu", "gpu", "npu"),
        extra="openvino",
        tolerance=_EXACT | _COARSE,
        module="export.to_openvino",
        options={
            "preset": "activations of NNCF: mixed or performance (symmetric)",
            "inference_precision": "arithmetic of what stays in floating point beside INT8: fp32 or bf16",
        },
    ),
    Target(
        name="tensorrt",
        suffix=".engine",
        precisions=(_FP32, _FP16, _INT8),
        devices=("cuda",),
        extra="tensorrt",
        tolerance=_EXACT | _COARSE,
        module="export.to_tensorrt",
        options={
            "compute_capability": "GPUs to build for, for example sm89 (SM75 SM80 SM86 SM89 SM120 SM121)",
            "keep_fp32": "torch module names, with commas, that stay in FP32 when the rest is cast to FP16",
            "timing_cache": "file that keeps kernel timings between builds",
            "max_size": "largest height and width of a dynamic engine",
        },
    ),
    Target(
        name="coreml",
        suffix=".mlpackage",
        precisions=(_FP32, _FP16, _INT8),
        devices=("all", "cpu", "gpu", "ane"),
        extra="coreml",
        tolerance=_EXACT | _COARSE,
        module="export.to_coreml",
        options={
            "image_input": "take an RGB picture instead of a tensor (true or false)",
            "image_output": "give the rendered RGB picture instead of a tensor (true or false)",
            "sizes": "the only sizes of a dynamic package, for example 256x256,512x512 (each can run on the ANE)",
            "max_size": "largest height and width of a dynamic package (default 2048)",
            "int8": "where activations are quantized: per_layer or linear_quantizer",
            "keep_fp32": "torch module names, with commas, that compute in FP32 where the rest computes in FP16",
        },
    ),
)


def _table(rows: tuple[Target, ...]) -> dict[str, Target]:
    table: dict[str, Target] = {}
    for row in rows:
        if row.name in table:
            raise ConfigError(explain("targets", expected="each name once", got=f"{row.name!r} twice", fix="rename it"))
        table[row.name] = row
    return table


TARGETS: Mapping[str, Target] = _table(_ROWS)


def list_targets() -> list[str]:
    """Return the names of the targets that artifacts are exported to, in the order of the table."""
    return [name for name, row in TARGETS.items() if row.exports]


def get_target(name: str) -> Target:
    """Return the row of ``name``.

    Raises:
        UnknownNameError: No such target (the nearest name is suggested).
    """
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    return TARGETS[name]


def target_of(path: Path) -> Target:
    """Return the target whose suffix ``path`` has.

    Raises:
        UnknownNameError: No target has this suffix.
    """
    for row in TARGETS.values():
        if path.suffix in (row.suffix, *row.other_suffixes):
            return row
    raise UnknownNameError("artifact suffix", path.suffix, [row.suffix for row in TARGETS.values()])
