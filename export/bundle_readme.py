"""The words of a bundle: README.md with usage code for each artifact, and check.py. Text only, nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from export.contract import Contract
from models.spec import TensorSpec

_BEFORE = {
    "cielab-l/100": """\
lab = color.rgb2lab(rgb).astype(np.float32)                 # L in [0, 100]
x = np.ascontiguousarray(lab[None, None, :, :, 0] / 100)    # 1 x 1 x H x W""",
    "srgb": """\
x = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], dtype=np.float32)    # 1 x 3 x H x W""",
}
_AFTER = {
    "cielab-ab/255": """\
ab = y[0].transpose(1, 2, 0) * 255                          # H x W x 2
result = color.lab2rgb(np.concatenate([lab[..., :1], ab], axis=-1))""",
    "overlay-soft-light": """\
b = y[0].transpose(1, 2, 0).clip(0, 1)                      # H x W x 1, 0.5 changes nothing; Soft Light:
result = rgb + (2 * b - 1) * np.where(b > 0.5, np.sqrt(rgb) - rgb, rgb - rgb * rgb)""",
    "srgb": "result = y[0].transpose(1, 2, 0).clip(0, 1)                  # H x W x 3",
}
_UNKNOWN_BEFORE = "x = prepare(rgb)    # see the contract above: 1 x C x H x W, float32"
_UNKNOWN_AFTER = "result = render(y)    # see the contract above"

_ONNX = """\
import onnxruntime as ort

settings = ort.SessionOptions()
settings.enable_mem_pattern = False  # up to half the memory from the second call on, at most 1% slower
session = ort.InferenceSession("{file}", settings, providers=["CPUExecutionProvider"])
(y,) = session.run(["{output}"], {{"{input}": x{feeds}}})"""
_OPENVINO = """\
import openvino as ov

settings = {{"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "{hint}"}}
network = ov.Core().compile_model("{file}/model.xml", "CPU", settings)
y = network({{"{input}": x{feeds}}})["{output}"]"""
_TENSORRT_PYTHON = """\
import {module} as trt
import torch

engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(open("{file}", "rb").read())
context = engine.create_execution_context()
source = torch.from_numpy(x).cuda()
context.set_input_shape("{input}", source.shape)
result = torch.empty(tuple(context.get_tensor_shape("{output}")), device="cuda")
context.set_tensor_address("{input}", source.data_ptr()){cuda_controls}
context.set_tensor_address("{output}", result.data_ptr())
context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
torch.cuda.synchronize()
y = result.cpu().numpy()"""
_TENSORRT_CPP = """\
// bytes: the content of {file}; source, result: device pointers of float
std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
context->setInputShape("{input}", nvinfer1::Dims4{{1, {channels}, {height}, {width}}});
context->setTensorAddress("{input}", source);{cpp_controls}
context->setTensorAddress("{output}", result);
context->enqueueV3(stream);
cudaStreamSynchronize(stream);"""
_COREML = """\
import CoreML

let settings = MLModelConfiguration()
settings.computeUnits = .all
let url = Bundle.main.url(forResource: "{stem}", withExtension: "mlmodelc")!    // Xcode makes it of the .mlpackage
let network = try MLModel(contentsOf: url, configuration: settings)
{fill}{swift_controls}
let answer = try network.prediction(from: MLDictionaryFeatureProvider(dictionary: ["{input}": x{feeds}]))
{take}"""
_COREML_ARRAY = """\
let x = try MLMultiArray(shape: [1, {channels}, {height}, {width}], dataType: .float32)
// fill x row by row: x[[0, c, row, column]] as the contract above says; an artifact that is exported
// with `--option image_input=true` takes the photo itself"""
_COREML_PICTURE = "let x = try MLFeatureValue(cgImage: photo, pixelsWide: {width}, pixelsHigh: {height},\n" + (
    "                           pixelFormatType: kCVPixelFormatType_32BGRA)    // an sRGB picture"
)


def readme(manifest: Mapping[str, Any], contracts: Mapping[str, Contract], *, title: str = "Bundle") -> str:
    """Return README.md of a bundle.

    Args:
        manifest: Content of ``bundle.json``.
        contracts: {golden name: contract}; colour spaces choose the code before and after the network.
        title: Heading.
    """
    model, task = manifest["model"], manifest["task"]
    parts = [f"# {title}: {model}, {task}\n", _table(manifest["artifacts"]), "\n## What goes in, what comes out\n"]
    for name, contract in contracts.items():
        files = [PurePosixPath(row["file"]).name for row in manifest["artifacts"] if _golden(row) == name]
        heading = f"`{'`, `'.join(files)}`:\n\n" if len(contracts) > 1 else ""
        parts.append(heading + "".join(f"- {line}\n" for line in contract.words()))
    parts.append(_tiles(manifest["artifacts"]))
    parts.append(_CHECKS)
    for target, section in _SECTIONS.items():
        rows = [row for row in manifest["artifacts"] if row["target"] == target]
        if rows:
            parts.append(section(rows[-1], contracts[_golden(rows[-1])]))
    return "\n".join(parts)


_TILES = """
## Photos of any size

Cut the photo into tiles that overlap, and blend the answers with weights that sum to one: where two tiles share pixels,
one fades out by cos^2 as the other fades in by sin^2; nothing fades at the border of the photo.
`python -m export tile ARTIFACT PHOTO -o OUT` does it; `export/tiling.py` is numpy alone.

"""
_CHECKS = """
## Check on load

`golden/NAME.npz` holds inputs and the answers of PyTorch in FP32 (`expected.output`) for `golden/NAME.photo.png`;
`golden/NAME.expected.png` is what a person should see. `limit` in `bundle.json` is the largest error allowed, in output
units, `rms_limit` the largest root mean square error: of INT8 three times what rounding costs this network. The same
check belongs in the tests of the app: a swapped channel or a value that is normalized twice fails it.

    python check.py                       # needs numpy and the runtime of the artifact
    python -m export verify .             # where Pare is installed
"""


def _tiles(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the section about photos of other sizes; empty where the manifest says nothing of tiles."""
    lines = []
    for row in rows:
        tiling = row.get("tiling")
        if tiling is None:
            continue
        height, width = tiling["tile"]
        field = tiling["receptive_field"]
        seen = "" if field is None else f"; a pixel depends on {field['effective']} pixels to each side (99%)"
        note = f" Note: {tiling['note']}." if tiling["note"] else ""
        name = PurePosixPath(row["file"]).name
        lines.append(f"- `{name}`: tiles of {height} x {width}, overlap {tiling['overlap']}{seen}.{note}")
    return _TILES + "\n".join(lines) + "\n" if lines else ""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| artifact | target | precision | MB | error against PyTorch here | computed by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        check = row["checked_here"]
        error = "not run" if check["max_abs"] is None else f"{check['max_abs']:.2g} (limit {check['limit']:.2g})"
        runtime = check["runtime"] or check["reason"]
        by = f"{runtime} (stands in for the engine)" if check["emulated"] else runtime
        lines.append(
            f"| `{row['file']}` | {row['target']} | {row['precision']} | {row['size_mb']:.2f} | {error} | {by} |"
        )
    scored = [row for row in rows if row["scores"]]
    if scored:
        columns = list(dict.fromkeys(key for row in scored for key in row["scores"]))
        lines += ["", f"| artifact | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in scored:
            cells = [_cell(row["scores"].get(column)) for column in columns]
            lines.append(f"| `{PurePosixPath(row['file']).name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fields(row: Mapping[str, Any], contract: Contract) -> dict[str, Any]:
    return {
        "file": row["file"],
        "stem": PurePosixPath(row["file"]).stem,
        "input": contract.inputs[0].name,
        "output": contract.outputs[0].name,
        "channels": contract.inputs[0].shape[1],
        "height": contract.input_size[0],
        "width": contract.input_size[1],
        **_controls(contract),
    }


def _controls(contract: Contract) -> dict[str, str]:
    """Return the code that feeds the run-time controls, in each language; empty without controls."""
    names = [spec.name for spec in contract.inputs[1:]]
    return {
        "feeds": "".join(f', "{name}": {name}' for name in names),
        "cuda_controls": "".join(
            f'\n{name} = torch.from_numpy({name}).cuda()\ncontext.set_tensor_address("{name}", {name}.data_ptr())'
            for name in names
        ),
        "cpp_controls": "".join(
            f'\ncontext->setTensorAddress("{name}", {name});    // device pointer of one float' for name in names
        ),
        "swift_controls": "".join(
            f"\nlet {name} = try MLMultiArray(shape: [1], dataType: .float32)\n{name}[0] = {_start(spec)}"
            for name, spec in zip(names, contract.inputs[1:], strict=True)
        ),
    }


def _start(spec: TensorSpec) -> str:
    """The value of a control in the code that shows it: the middle of its range."""
    low, high = spec.value_range or (0.0, 1.0)
    return f"{(low + high) / 2:g}"


def _golden(row: Mapping[str, Any]) -> str:
    return PurePosixPath(row["golden"]).stem


def _python(row: Mapping[str, Any], contract: Contract, code: str) -> str:
    height, width = contract.input_size
    source = _golden(row)
    lab = "from skimage import color, io" if "cielab" in contract.inputs[0].color_space else "from skimage import io"
    lines = [
        "```python",
        "import numpy as np",
        lab,
        "",
        f'rgb = io.imread("golden/{source}.photo.png")[..., :3] / 255     # {height} x {width}, sRGB in [0, 1]',
        _BEFORE.get(contract.inputs[0].color_space, _UNKNOWN_BEFORE),
        *(f"{spec.name} = np.array([{_start(spec)}], np.float32)" for spec in contract.inputs[1:]),
        "",
        code,
        "",
        _AFTER.get(contract.outputs[0].color_space, _UNKNOWN_AFTER),
        "```",
        "",
    ]
    return "\n".join(lines)


def _onnx(row: Mapping[str, Any], contract: Contract) -> str:
    return "## ONNX Runtime (Python)\n\n" + _python(row, contract, _ONNX.format(**_fields(row, contract)))


def _openvino(row: Mapping[str, Any], contract: Contract) -> str:
    hint = {"bf16": "bf16", "fp16": "f16"}.get(row["precision"], "f32")
    note = (
        "The precision hint matters: without it OpenVINO computes FP32 graphs in BF16 where the processor can.\n"
        "A processor without FP16 arithmetic takes `f32` for an `fp16` artifact.\n\n"
    )
    code = _OPENVINO.format(hint="f32" if hint == "f16" else hint, **_fields(row, contract))
    return "## OpenVINO (Python)\n\n" + note + _python(row, contract, code)


def _tensorrt(row: Mapping[str, Any], contract: Contract) -> str:
    fields = _fields(row, contract)
    module = "tensorrt" if row["package"] == "tensorrt" else "tensorrt_rtx"
    text = f"The engine runs with the package that built it (`{module}`), on the GPUs that its sidecar lists.\n\n"
    python = _python(row, contract, _TENSORRT_PYTHON.format(module=module, **fields))
    return f"## TensorRT\n\n{text}{python}\n```cpp\n{_TENSORRT_CPP.format(**fields)}\n```\n"


def _coreml(row: Mapping[str, Any], contract: Contract) -> str:
    fields = _fields(row, contract)
    picture_in, picture_out = (spec.color_space == "srgb" for spec in (contract.inputs[0], contract.outputs[0]))
    fill = (_COREML_PICTURE if picture_in else _COREML_ARRAY).format(**fields)
    kind = "imageBufferValue" if picture_out else "multiArrayValue"
    take = f'let y = answer.featureValue(for: "{fields["output"]}")!.{kind}!'
    return f"## Core ML (Swift)\n\n```swift\n{_COREML.format(fill=fill, take=take, **fields)}\n```\n"


_SECTIONS = {"onnx": _onnx, "openvino": _openvino, "tensorrt": _tensorrt, "coreml": _coreml}


def check_script() -> str:
    """Return ``check.py``: hashes and golden vectors, with numpy and the runtimes that are installed."""
    return _SCRIPT


_SCRIPT = '''\
"""Check the hashes and golden vectors of this bundle. Needs numpy, and the runtime of what is checked."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent


def sha256_of(path):
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run_onnx(path, feeds, names):
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds)))


def run_openvino(path, feeds, names):
    import openvino as ov

    hint = json.loads(path.with_name(path.name + ".json").read_text())["metadata"]["inference_precision"]
    settings = {"INFERENCE_PRECISION_HINT": {"bf16": "bf16"}.get(hint, "f32")}
    answers = ov.Core().compile_model(str(path / "model.xml"), "CPU", settings)(feeds)
    return {name: answers[name] for name in names}


def run_coreml(path, feeds, names):
    import coremltools

    model = coremltools.models.MLModel(str(path))
    pictures = [f.name for f in model.get_spec().description.input if f.type.WhichOneof("Type") == "imageType"]
    if pictures:
        from PIL import Image

        for name in pictures:
            feeds[name] = Image.fromarray((feeds[name][0].transpose(1, 2, 0) * 255).round().astype("uint8"))
    answers = model.predict(feeds)
    for name, value in answers.items():
        if not isinstance(value, np.ndarray):
            answers[name] = (np.asarray(value, np.float32)[..., :3] / 255).transpose(2, 0, 1)[None]
    return answers


RUNNERS = {"onnx": run_onnx, "openvino": run_openvino, "coreml": run_coreml}


def check(row):
    path = ROOT / row["file"]
    if sha256_of(path) != row["sha256"]:
        return "failed", "another sha256: copy the bundle again"
    with np.load(ROOT / row["golden"], allow_pickle=False) as content:
        arrays = dict(content)
    expected = {key[9:]: value for key, value in arrays.items() if key.startswith("expected.")}
    feeds = {key: value for key, value in arrays.items() if not key.startswith("expected.")}
    if row["target"] not in RUNNERS or (row["target"] == "coreml" and sys.platform != "darwin"):
        return "not run", "sha256 is right; run it on a machine that has " + row["target"]
    try:
        answers = RUNNERS[row["target"]](path, feeds, list(expected))
    except ImportError as error:
        return "not run", "sha256 is right; " + str(error)
    errors = np.concatenate([np.abs(answers[name] - value).ravel() for name, value in expected.items()])
    largest, limit, rms_limit = float(errors.max()), row["limit"], row["rms_limit"]
    rms = float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))
    status = "passed" if largest <= limit and rms <= rms_limit else "failed"
    return status, f"error {largest:.3g} and {rms:.3g} rms, allowed {limit:.3g} and {rms_limit:.3g}"


def main():
    failed = False
    for row in json.loads((ROOT / "bundle.json").read_text())["artifacts"]:
        status, text = check(row)
        failed = failed or status == "failed"
        print(f"{status:8} {row['file']}: {text}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
'''
