"""The Core ML target: an ML Program for iOS 17 and macOS 14 or later, in an ``.mlpackage`` folder.

FP32 and FP16 compute precision, and W8A8 (``export.coreml_int8``; what is not INT8 computes in FP16). Inputs and
outputs are FP32 arrays, batch 1, unless ``image_input`` or ``image_output`` asks for pictures.

**Flexible sizes cost speed on the Neural Engine.** A fixed size runs there at its best. With a range of sizes
(``dynamic``), only the default size does, other sizes run on the GPU or CPU, and loading takes longer. With ``sizes``
(enumerated, at most 128) each listed size can run there, but LayerNorm was seen to prevent it (apple/coremltools
#1764, #1909, #2370; Apple developer forum 724930). Ship one fixed size per device where that is possible.

**Pictures.** An sRGB network takes the pixels over 255. A network that takes CIELab lightness gets it from the RGB
picture inside of the graph, by the formulas of ``models.color``: a grey picture of the L channel would have to be
made by the app, and grey pixel values are not L. ``image_output`` renders the answer to RGB inside of the graph too.

Source: coremltools guide ("Flexible Input Shapes", "Image Input and Output"), MIL reference.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.attention import attention_in_parts
from export.contract import Contract, embedded
from export.coreml_options import Options, package_contract
from export.coreml_quirks import repaired_converter
from export.coreml_ranks import pipeline
from export.files import check_output, replacing
from export.mil.proto import coreml_proto, coremltools, quiet_coremltools
from export.origins import CannotFold, Constants
from export.portable import Portable
from export.readings import Readings, as_if_traced
from export.refusal import plain_functions, renamed, say_refusal
from export.registry import get_target
from export.resizes import ConstantResizes
from export.screens import ASKED, RANGE, ROUNDING, Screens, screen_artifact
from export.writes import Writes
from models.artifact import Artifact, load_network
from models.errors import ExportError, PareError, UnsupportedError, UsageError, explain
from models.progress import NULL_PROGRESS, Progress
from models.registry import get_spec, get_task
from models.spec import Precision, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from export.quantization import Quantization
    from export.target import Runner

DEPLOYMENT_TARGET = "iOS17"
_NAME = "coreml"
_LAYERS = ("conv", "conv_transpose", "linear", "matmul")
_OTHERS = "all but layers with weights"
_SAME = 0.1  # of the largest value: far above FP16 rounding, far below a wrong size inside of the graph


def export(
    artifact: Artifact,
    output: Path,
    *,
    precision: Precision,
    input_size: tuple[int, int] = (256, 256),
    dynamic: bool = False,
    quantization: Quantization | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Convert a ``torch`` artifact to a Core ML package.

    Args:
        artifact: What to convert.
        output: Folder to write, ending in ``.mlpackage``.
        precision: fp32, fp16 or int8 (W8A8, the rest in fp16).
        input_size: Height and width; of a dynamic package the default ones.
        dynamic: Height and width may change at run time (see the module on what that costs).
        quantization: Calibration record; None takes the one that ``artifact`` carries.
        options: ``image_input``, ``image_output`` (bool), ``sizes`` (dynamic: the only sizes, ``"256x256,512x512"``),
            ``max_size`` (dynamic: largest side, default 2048), ``int8`` (``per_layer`` or ``linear_quantizer``).
        progress: Where to report.

    Returns:
        The artifact, its contract inside of the package (user-defined metadata) and in the sidecar.

    Raises:
        UsageError: An unknown option or a bad value, or int8 without a calibration record.
        UnsupportedError: A precision that the target lacks, or a picture of a colour space that has none.
        InputSizeError: The network cannot take ``input_size`` or one of ``sizes``.
        ExportError: The converter refused the network, or a dynamic package is wrong at another size.
        MissingExtraError: coremltools is not installed.
    """
    target = get_target(_NAME)
    target.check_precision(precision)
    given = Options(target.check_options(options), dynamic=dynamic)
    output = check_output(output, target)
    tools = coremltools()
    contract = package_contract(artifact, precision, input_size, dynamic, given)
    notes: dict[str, Any] = {"deployment_target": DEPLOYMENT_TARGET, "options": given.to_json()}
    with (progress or NULL_PROGRESS).track(f"Core ML {precision}", total=3) as bar:
        net = load_network(artifact).float()
        screens = screen_artifact(artifact, input_size)
        notes["screens"] = screens.to_json()
        kept = _kept(net, given, screens)
        if precision is Precision.INT8:
            net, record = _quantize(net, artifact, quantization, given.int8)
            notes["quantization"] = record.to_json(output.parent)
        if contract.precision is not Precision.FP32:
            notes["kept_fp32"] = {name or "forward": reason for name, reason in sorted(kept.items())}
        net = _with_pictures(net, artifact.task, given)
        bar.advance()
        model = _convert(tools, net, contract, given, kept)
        bar.advance()
        _describe(model, contract, artifact, given)
        with replacing(output) as temporary:
            _save(model, temporary)
        if dynamic:
            _check_other_size(output, net, contract, given)
        bar.advance()
    content = {"contract": contract.to_json(), **notes}
    return Artifact.create(output, format=_NAME, parent=artifact, precision=precision, metadata=content)


def open_runner(path: Path, *, device: str = "cpu", threads: int | None = None) -> Runner:
    """Load a package: with Core ML on macOS; elsewhere ``cpu`` and ``all`` evaluate the program (``emulated``)."""
    from export.coreml_runner import open_package

    return open_package(Path(path), device=device, threads=threads)


def open_emulated(path: Path, *, threads: int | None = None) -> Runner:
    """Evaluate the program of a package operation by operation, on any system; see ``export.mil``."""
    from export.coreml_runner import EvaluatorRunner

    return EvaluatorRunner(Path(path), threads=threads)


def can_run(device: str) -> str | None:
    """Return None where Core ML runs on ``device`` here, else the reason why not."""
    from export.coreml_runner import why_not

    return why_not(device)


def _quantize(
    net: nn.Module, artifact: Artifact, given: Quantization | None, method: str
) -> tuple[nn.Module, Quantization]:
    from export.coreml_int8 import quantized_network
    from export.to_onnx import record_of

    record = record_of(artifact, given)
    controls = len(get_spec(artifact.model, task=artifact.task).graph_controls)
    return quantized_network(net, record, method=method, controls=controls), record


def _with_pictures(net: nn.Module, task: str, given: Options) -> nn.Module:
    """Put the colour conversion of the pictures around ``net``."""
    from torch import nn as torch_nn

    if not given.image_input and not given.image_output:
        return net.eval()
    owner = get_task(task)

    class Pictures(torch_nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input: Tensor, *controls: Tensor) -> Tensor:
            lightness = given.image_input and owner.inputs[0].color_space == "cielab-l/100"
            values = _lightness(input) if lightness else input
            answer: Tensor = self.net(values, *controls)
            return owner.render(values, answer) * 255.0 if given.image_output else answer

    return Pictures().eval()


def _lightness(rgb: Tensor) -> Tensor:
    from models.color import normalize_lab, rgb_to_lab

    return normalize_lab(rgb_to_lab(rgb))[0]


def _kept(net: nn.Module, given: Options, screens: Screens) -> dict[str, str]:
    """Return the modules that compute in FP32, with the reason: of the overflow screen, or asked for with all below.

    Raises:
        UsageError: The network has no such module.
    """
    modules = [name for name, _ in net.named_modules()]
    asked = [name for name in modules if any(name == one or name.startswith(f"{one}.") for one in given.keep_fp32)]
    if missing := [one for one in given.keep_fp32 if one not in modules]:
        fix = "use names of net.named_modules()"
        raise UsageError(explain("keep_fp32", expected="layers of the network", got=", ".join(missing), fix=fix))
    others = {_OTHERS: ROUNDING} if screens.layers_only else {}
    return others | dict.fromkeys(screens.keep, RANGE) | dict.fromkeys(asked, ASKED)


def _convert(tools: Any, net: nn.Module, contract: Contract, given: Options, kept: Mapping[str, str]) -> Any:
    import numpy as np
    import torch

    samples = tuple(torch.from_numpy(sample) for sample in example_inputs(contract, contract.input_size))
    pictures = given.image_input or given.image_output
    precision = tools.precision.FLOAT32 if contract.precision is Precision.FP32 else tools.precision.FLOAT16
    if kept and contract.precision is not Precision.FP32:

        def in_half(op: Any) -> bool:
            return module_of(op, pictures) not in kept and (_OTHERS not in kept or _has_weights(op))

        precision = tools.transform.FP16ComputePrecision(op_selector=in_half)
    types = [_input_type(tools, spec, contract, given) for spec in contract.inputs]
    if given.image_output:
        outputs = [tools.ImageType(name=spec.name, color_layout=tools.colorlayout.RGB) for spec in contract.outputs]
    else:
        outputs = [tools.TensorType(name=spec.name, dtype=np.float32) for spec in contract.outputs]
    try:
        resizes = nullcontext() if contract.dynamic else ConstantResizes()
        with quiet_coremltools(), repaired_converter(), resizes:
            return tools.convert(
                trace(net, samples, fixed=not contract.dynamic),
                inputs=types,
                outputs=outputs,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(tools.target, DEPLOYMENT_TARGET),
                compute_precision=precision,
                pass_pipeline=pipeline(),
                skip_model_load=True,
            )
    except PareError:
        raise
    except Exception as error:  # torch.jit and coremltools raise exceptions of many kinds
        fix = "export with a fixed size" if contract.dynamic else "write the operation that it names in another way"
        got = f"{type(error).__name__}: {say_refusal(error, net, samples)}"
        what = f"Core ML export of {contract.model}"
        raise ExportError(explain(what, expected="a convertible network", got=got, fix=fix)) from error


def _has_weights(operation: Any) -> bool:
    operands = (operation.inputs.get(name) for name in ("weight", "x", "y"))
    return operation.op_type in _LAYERS and any(value is not None and value.val is not None for value in operands)


def module_of(operation: Any, pictures: bool) -> str:
    """Return the torch module that an operation of the converter comes from; ``""`` is the network's own forward."""
    found = {str(source).rpartition(".")[2]: names for source, names in operation.scopes.items()}
    path = [str(name) for name in found.get("TORCHSCRIPT_MODULE_NAME", ())][:-1]
    return ".".join(path[1:] if pictures and path[:1] == ["net"] else path)


def trace(net: nn.Module, samples: tuple[Tensor, ...], *, fixed: bool = True) -> Any:
    """Trace ``net`` for the converter, attention written out in operations that it knows.

    Args:
        net: The network.
        samples: Its example inputs.
        fixed: The sizes of the samples are the only ones.

    Raises:
        ExportError: Python code decides by the values of a tensor: the trace would hold one answer for ever.
    """
    import torch

    with attention_in_parts(), as_if_traced():
        readings = Readings(renamed(net), samples)
    readings.refuse()
    with torch.no_grad(), attention_in_parts(), plain_functions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python code that reads tensors
        try:
            if not fixed:
                return _traced(net, samples, readings, Portable())
            constants = Constants(net, samples)
            return _traced(net, samples, constants, readings, Portable(), Writes(constants))
        except CannotFold:
            return _traced(net, samples, readings, Portable(), Writes())


def _traced(net: nn.Module, samples: tuple[Tensor, ...], *modes: AbstractContextManager[Any]) -> Any:
    import torch

    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        return torch.jit.trace(net, samples, check_trace=False)


def _input_type(tools: Any, spec: TensorSpec, contract: Contract, given: Options) -> Any:
    import numpy as np

    default = tuple(_sides(contract.input_size).get(side, side) for side in spec.shape)
    shape: Any = default
    if contract.dynamic and given.sizes:
        sizes = dict.fromkeys([contract.input_size, *given.sizes])
        shapes = [tuple(_sides(size).get(side, side) for side in spec.shape) for size in sizes]
        shape = tools.EnumeratedShapes(shapes=shapes, default=default)
    elif contract.dynamic:
        least = contract.size.fit(1, 1)[0]
        ranges = {
            side: tools.RangeDim(lower_bound=least, upper_bound=given.max_size, default=value)
            for side, value in _sides(contract.input_size).items()
        }
        shape = tools.Shape(shape=tuple(ranges.get(side, side) for side in spec.shape))
    if given.image_input and spec is contract.inputs[0]:
        layout = tools.colorlayout.RGB
        return tools.ImageType(name=spec.name, shape=shape, color_layout=layout, scale=1 / 255.0, bias=[0.0, 0.0, 0.0])
    return tools.TensorType(name=spec.name, shape=shape, dtype=np.float32)


def _sides(size: tuple[int, int]) -> dict[int | str, int]:
    return {"H": size[0], "W": size[1]}


def example_inputs(contract: Contract, size: tuple[int, int]) -> list[Any]:
    """Return seeded random inputs inside of the value ranges of ``contract``, float32, height and width ``size``."""
    import numpy as np

    generator = np.random.default_rng(0)
    found = []
    for spec in contract.inputs:
        shape = tuple(_sides(size).get(side, 1) if isinstance(side, str) else side for side in spec.shape)
        low, high = spec.value_range or (0.0, 1.0)
        found.append(generator.uniform(low, high, shape).astype(np.float32))
    return found


def _describe(model: Any, contract: Contract, artifact: Artifact, given: Options) -> None:
    """Write the contract into the package: descriptions that Xcode shows, and user-defined metadata."""
    model.author, model.license = "Pare", get_spec(artifact.model, task=artifact.task).licence
    model.short_description = f"{contract.model}: {contract.task}, {contract.precision}"
    metadata = embedded(contract, artifact)
    if given.image_input or given.image_output:
        metadata["pare.pictures"] = json.dumps(given.to_json())
    for key, value in metadata.items():
        model.user_defined_metadata[key] = value
    model.user_defined_metadata.pop("com.github.apple.coremltools.conversion_date", None)
    lines = contract.words()
    for spec, line in zip(contract.inputs, lines, strict=False):
        model.input_description[spec.name] = line
    for spec, line in zip(contract.outputs, lines[len(contract.inputs) :], strict=False):
        model.output_description[spec.name] = line


def _save(model: Any, folder: Path) -> None:
    """Save, then rewrite what coremltools fills with random identifiers: the same input gives the same bytes."""
    with quiet_coremltools():
        model.save(str(folder))
    path = folder / "Manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    identifiers = {old: _identifier(item["path"]) for old, item in manifest["itemInfoEntries"].items()}
    items = {identifiers[old]: item for old, item in manifest["itemInfoEntries"].items()}
    manifest["itemInfoEntries"] = dict(sorted(items.items()))
    root = manifest["rootModelIdentifier"] = identifiers[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")
    spec_path = folder / "Data" / items[root]["path"]
    spec = coreml_proto().Model_pb2.Model()
    spec.ParseFromString(spec_path.read_bytes())
    spec_path.write_bytes(spec.SerializeToString(deterministic=True))


def _identifier(path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"pare/{path}")).upper()


def _check_other_size(output: Path, net: nn.Module, contract: Contract, given: Options) -> None:
    """Compare a dynamic package with PyTorch at a second size: tracing may have fixed a size inside of the graph."""
    import numpy as np
    import torch

    others = [size for size in given.sizes if size != contract.input_size]
    step = contract.size.multiple_of
    grown = (contract.input_size[0] + step, contract.input_size[1])
    least = contract.size.fit(1, 1)
    size = others[0] if others else (least if least != contract.input_size else grown)
    if given.sizes and not others:
        return
    samples = example_inputs(contract, size)
    with torch.no_grad():
        answer = net(*[torch.from_numpy(sample) for sample in samples]).numpy()
    fix = "export with a fixed size, or compute sizes from the tensor's shape in forward()"
    what = f"dynamic Core ML package at {size[0]}x{size[1]}"
    try:
        with open_emulated(output) as runner:
            feeds = {spec.name: sample for spec, sample in zip(contract.inputs, samples, strict=True)}
            got = runner.infer(feeds)[contract.outputs[0].name]
    except UnsupportedError as error:
        raise ExportError(explain(what, expected="an answer", got=error, fix=fix)) from error
    expected = answer / 255.0 if given.image_output else answer
    if got.shape != expected.shape:
        raise ExportError(explain(what, expected=f"shape {expected.shape}", got=got.shape, fix=fix))
    worst, largest = float(np.abs(got - expected).max()), float(np.abs(expected).max())
    if contract.precision is not Precision.INT8 and not worst <= max(_SAME * largest, 1e-3):
        text = f"an error of {worst:.3g} where values reach {largest:.3g}"
        raise ExportError(explain(what, expected="the answer of PyTorch", got=text, fix=fix))
