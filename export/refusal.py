"""What ``torch.export`` and the ONNX exporter stumble over in networks of other people: around it, or named."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.errors import first_line
from models.running_module import RunningModule

_DEPENDENT = "data-dependent"
_SUMMARY = re.compile(r"<class '[^']*'>: (.+)")
_OPERATOR = re.compile(r"torch\.ops\.\w+\.(\w+)|OpOverload\(op='\w+\.(\w+)'|\bop '(\w+)' not implemented")
_BRANCH = "_local_scalar_dense"


class _Finder(TorchDispatchMode):
    """Notes in which module an operator is called first."""

    def __init__(self, net: nn.Module, operator: str) -> None:
        super().__init__()
        self.operator = operator
        self.layer: str | None = None
        self._running = RunningModule(net)

    def close(self) -> None:
        """Remove the hooks."""
        self._running.close()

    def note(self, called: str) -> None:
        """Remember the module that computes when the operator is ``called``."""
        if self.layer is None and called.strip("_") == self.operator.strip("_"):
            self.layer = self._running.name or "the network itself"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Shows a finder the functions that PyTorch takes apart before they are dispatched."""

    def __init__(self, finder: _Finder) -> None:
        super().__init__()
        self.finder = finder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.finder.note(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def layer_of(net: nn.Module, samples: Sequence[Tensor], operator: str) -> str | None:
    """Return the name of the first module of ``net`` that calls an ATen operator on ``samples``, or None."""
    finder = _Finder(net, operator)
    try:
        with torch.no_grad(), finder, _Functions(finder):
            net(*samples)
    except Exception:  # the network of a user may raise anything; then the layer stays unknown
        return finder.layer
    finally:
        finder.close()
    return finder.layer


class _Context:
    """Takes what a forward pass keeps for the backward one."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


_JIT: Any = torch.jit
#: Names that ``torch.fx`` and ``torch.jit`` have for something else in the modules that they make.
_RESERVED = frozenset({*dir(torch.fx.GraphModule), *dir(_JIT.RecursiveScriptModule), "meta"} - set(dir(nn.Module)))


@contextlib.contextmanager
def plain_functions() -> Iterator[None]:
    """Call what is one opaque operation in a trace as the Python that it is.

    That is the ``forward`` of a ``torch.autograd.Function``, and what is under ``@torch.jit.script``: coremltools takes
    that for something else.
    """
    function: Any = torch.autograd.Function
    scripted: Any = torch.jit.ScriptFunction
    call = scripted.__call__

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        alone = cls.setup_context is not function.setup_context
        return cls.forward(*args, **kwargs) if alone else cls.forward(_Context(), *args, **kwargs)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        plain = getattr(self, "_torchdynamo_inline", None)  # its Python; none of a function that was loaded or traced
        return call(self, *args, **kwargs) if plain is None else plain(*args, **kwargs)

    original = function.__dict__["apply"]
    function.apply, scripted.__call__ = classmethod(apply), run
    try:
        yield
    finally:
        function.apply, scripted.__call__ = original, call


def renamed(net: nn.Module) -> nn.Module:
    """Rename weights and modules of ``net`` that are called as what graphs have themselves (``code``, ``graph``).

    Its own code finds them as before.
    """
    for module in net.modules():
        tables: Any = (module._parameters, module._buffers, module._modules)
        taken = [(table, name) for table in tables for name in table if name in _RESERVED]
        for table, name in taken:
            table[f"{name}_"] = table.pop(name)
        if taken:
            found = {name: property(attrgetter(f"{name}_")) for _, name in taken}
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {**found, "__jit_unused_properties__": list(found)})
    return net


def say_refusal(error: BaseException, net: nn.Module, samples: Sequence[Tensor]) -> str:
    """Say in a line which operator of which layer the exporter refused, and why.

    Args:
        error: What it raised.
        net: The network that was exported.
        samples: Its example inputs.
    """
    text = str(error).strip()
    summary = _SUMMARY.search(text)
    reason = (summary.group(1) if summary else first_line(error)).strip()
    found = _OPERATOR.search(text.partition("## Exception summary")[2] or text)
    operator = next((name for name in found.groups() if name), None) if found else None
    layer = None
    if _DEPENDENT in text:
        operator, reason = _BRANCH, f"Python code decides by the values of a tensor ({reason})"
    elif operator is None:
        operator, layer = _in_converter(error) or (None, _in_forward(error, net))
    if layer is None and operator is not None:
        layer = layer_of(net, samples, operator)
    where = "" if layer is None else f"layer {layer or 'the network itself'}: "
    return f"{where}{'' if operator is None else f'operator {operator}: '}{reason}"


def _frames(error: BaseException) -> Iterator[dict[str, Any]]:
    """Yield the local variables of each frame that ``error`` and its causes went through, the innermost last."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for item in chain:
        trace = item.__traceback__
        while trace is not None:
            yield trace.tb_frame.f_locals
            trace = trace.tb_next


def _in_converter(error: BaseException) -> tuple[str, str] | None:
    """Return operator and layer of what coremltools was working on, or None."""
    found = None
    for values in _frames(error):
        node: Any = values.get("node")
        if hasattr(node, "get_scope_info"):
            found = str(node.kind).strip("_"), [str(name) for name in node.get_scope_info()[0]]
        elif isinstance(scopes := getattr(values.get("op"), "scopes", None), Mapping):
            names = [list(path) for source, path in scopes.items() if str(source).endswith("MODULE_NAME")]
            found = str(values["op"].op_type), [str(name) for name in (names or [[""]])[0]]
    return None if found is None else (found[0], ".".join(found[1][:-1]))


def _in_forward(error: BaseException, net: nn.Module) -> str | None:
    """Return the name of the innermost module of ``net`` whose own code raised ``error``, or None."""
    names = {id(module): name for name, module in net.named_modules()}
    found = [names[id(values["self"])] for values in _frames(error) if id(values.get("self")) in names]
    return found[-1] if found else None
