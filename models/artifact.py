"""Artifacts: a file (or folder) and a JSON sidecar that says what it is and where it came from.

Weights are safetensors, never pickle. The sidecar of ``student.onnx`` is ``student.onnx.json``.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata as package_metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import CheckpointError, RunFolderError, explain
from models.spec import Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMATS = ("torch", "onnx", "openvino", "tensorrt", "coreml")
SIDECAR_SCHEMA = 1
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
#: Names of what weight norm and spectral norm compute weights from.
_COMPUTED = re.compile(r"(^|\.)parametrizations\.|_(g|v|orig)$")
#: Where training scripts keep the weights inside of what they save.
_NESTED = ("state_dict", "params_ema", "params", "model_state_dict", "model", "generator", "net", "ema")
_PACKAGES = ("pare", "torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "coremltools", "tensorrt-rtx")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and contents in sorted order."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Return the size in bytes of a file or folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape an artifact, where installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = package_metadata.version(name)
        except package_metadata.PackageNotFoundError:
            continue
    return versions


def sidecar_of(path: Path) -> Path:
    """Return where the sidecar of ``path`` lies."""
    return path.with_name(path.name + ".json")


@dataclass(frozen=True)
class Artifact:
    """One shipped or intermediate network.

    Attributes:
        path: File or folder.
        format: ``torch`` (safetensors), ``onnx``, ``openvino``, ``tensorrt`` or ``coreml``.
        model: Registry name, or ``"package.module:factory"``.
        task: Task name.
        model_kwargs: Arguments of the factory.
        precision: Arithmetic it computes in.
        stages: What it went through, oldest first, for example ``("teacher", "distill", "prune")``.
        parent_sha256: Hash of the artifact that it was made from, or None.
        sha256: Hash of ``path``.
        versions: Versions of the packages that made it.
        metadata: Anything else, JSON values only.
    """

    path: Path
    format: str
    model: str
    task: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = Precision.FP32
    stages: tuple[str, ...] = ()
    parent_sha256: str | None = None
    sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        format: str,
        parent: Artifact | None = None,
        model: str | None = None,
        task: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        precision: Precision = Precision.FP32,
        stages: tuple[str, ...] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Describe the existing file ``path`` and write its sidecar; what is not given comes from ``parent``."""
        name, owner = model or (parent and parent.model), task or (parent and parent.task)
        if format not in FORMATS or not name or not owner:
            fix = "pass model= and task=, or parent="
            got = f"format {format!r}, model {name!r}, task {owner!r}"
            raise CheckpointError(explain("artifact", expected=f"one of {FORMATS}, model, task", got=got, fix=fix))
        inherited = parent.model_kwargs if parent else {}
        artifact = cls(
            path=path,
            format=format,
            model=name,
            task=owner,
            model_kwargs=dict(inherited if model_kwargs is None else model_kwargs),
            precision=precision,
            stages=stages if stages is not None else (parent.stages if parent else ()),
            parent_sha256=parent.sha256 if parent else None,
            sha256=sha256_of(path),
            versions=installed_versions(),
            metadata=dict(metadata or {}),
        )
        write_json(sidecar_of(path), artifact.to_json())
        return artifact

    def to_json(self) -> dict[str, Any]:
        """Return the content of the sidecar."""
        content = asdict(self)
        content.update(path=self.path.name, precision=self.precision.value, stages=list(self.stages))
        return {"schema": SIDECAR_SCHEMA, **content}

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Artifact:
        """Read the sidecar of ``path`` and check the hash of the file.

        Raises:
            CheckpointError: File or sidecar missing, unreadable, or the hash is another one.
        """
        path = Path(path)
        sidecar = sidecar_of(path)
        if not path.exists() or not sidecar.exists():
            missing = path if not path.exists() else sidecar
            fix = "pass an artifact that Pare wrote, its .json beside it"
            got = f"the folder {path}" if path.is_dir() and not path.suffix else "no such file"
            raise CheckpointError(explain("artifact", expected=f"file {missing}", got=got, fix=fix))
        try:
            content = json.loads(sidecar.read_text(encoding="utf-8"))
            content.pop("schema")
            content.update(path=path, precision=Precision(content["precision"]), stages=tuple(content["stages"]))
            artifact = cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "export or save the artifact again"
            broken = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
            got = f"no JSON ({error})" if broken else "JSON of another kind"
            raise CheckpointError(
                explain(f"sidecar {sidecar}", expected="a Pare artifact", got=got, fix=fix)
            ) from error
        if verify and (actual := sha256_of(path)) != artifact.sha256:
            fix = "copy the file again; it was truncated or altered after it was written"
            raise CheckpointError(
                explain(f"{path}", expected=f"sha256 {artifact.sha256[:12]}", got=actual[:12], fix=fix)
            )
        return artifact

    def moved_to(self, path: Path) -> Artifact:
        """Return the same artifact at another path (the caller has copied file and sidecar)."""
        return replace(self, path=path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step: a reader sees the old file or the new one, never half of it.

    Raises:
        RunFolderError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=2, sort_keys=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        fix = "free disk space, or choose another --output"
        raise RunFolderError(explain(f"writing {path}", expected="a writable folder", got=error, fix=fix)) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors in one step.

    Raises:
        RunFolderError: The disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata=dict(metadata or {}))
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        fix = "free disk space, or choose another --output"
        raise RunFolderError(explain(f"writing {path}", expected="a writable folder", got=error, fix=fix)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors, or a ``torch.save`` file of tensors only.

    A folder gives the tensors of all checkpoints in it, the name of each file and a dot before its tensors' names.

    Raises:
        CheckpointError: Missing, truncated, or a pickle with code in it.
    """
    import argparse
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        fix = "check --weights"
        raise CheckpointError(explain("weights", expected=f"file {path}", got="no such file", fix=fix))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles, which are refused below
            with torch.serialization.safe_globals([argparse.Namespace]):  # beside the tensors in many checkpoints
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        fix = "save the state_dict as safetensors; Pare never runs code from a checkpoint"
        got = "a pickle with code, or a truncated file"
        raise CheckpointError(explain(f"{path}", expected="tensors only", got=got, fix=fix)) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        if "TorchScript" in str(error):
            fix = f"save torch.jit.load({path.name!r}).state_dict() as safetensors"
            got = "a TorchScript archive"
            raise CheckpointError(explain(f"{path}", expected="a state_dict", got=got, fix=fix)) from error
        fix = "copy or save the file again; it looks truncated"
        raise CheckpointError(explain(f"{path}", expected="a readable checkpoint", got=error, fix=fix)) from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        fix = "save net.state_dict() as safetensors"
        raise CheckpointError(explain(f"{path}", expected="a state_dict", got=type(content).__name__, fix=fix))
    return content


def _read_folder(folder: Path) -> dict[str, Tensor]:
    files = sorted(path for path in folder.iterdir() if path.suffix in _CHECKPOINTS)
    if not files:
        expected, fix = f"a checkpoint ({' '.join(_CHECKPOINTS)})", "check --weights"
        raise CheckpointError(explain(f"weights folder {folder}", expected=expected, got="none", fix=fix))
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in read_tensors(file).items()}


def _own_state(net: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the part of a checkpoint that is the network: converted by it, or below the prefix that it lies under.

    Raises:
        CheckpointError: It lies under several prefixes.
    """
    own = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    convert = getattr(net, "convert_state", None)
    if convert is not None and own != {name for name in state if not name.endswith("num_batches_tracked")}:
        state = dict(convert(state))
    if not own or own <= state.keys():
        return state
    one = min(own)
    candidates = (name.removesuffix(one) for name in state if name.endswith(f".{one}"))
    prefixes = sorted(prefix for prefix in candidates if all(prefix + name in state for name in own))
    if len(prefixes) > 1:
        fix = "save the part that you want: torch.save(net.state_dict(), FILE)"
        expected = "the network once"
        raise CheckpointError(explain(f"{path}", expected=expected, got=f"it below {' and '.join(prefixes)}", fix=fix))
    if not prefixes:
        return state
    return {name.removeprefix(prefixes[0]): tensor for name, tensor in state.items() if name.startswith(prefixes[0])}


def load_weights(net: nn.Module, path: Path) -> None:
    """Load ``path`` into ``net``, whose layers are resized where the stored ones are pruned.

    A network inside of a larger checkpoint (``module.``, ``generator.``, ...) is found there. Published weights of
    other names or layouts go through the network's method ``convert_state(state) -> state``, where it has one. A
    network with weight or spectral norm loses it where the checkpoint has plain weights.

    Raises:
        CheckpointError: Missing, damaged, or of another architecture.
    """
    import torch

    from models.layers import bake_weights, has_computed_weights, resize_to

    found = read_tensors(path)
    if has_computed_weights(net) and not any(_COMPUTED.search(name) for name in found):
        bake_weights(net)
    state = _own_state(net, found, path)
    own = net.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        got = f"{len(missing)} missing (first: {missing[:3]}), {len(unexpected)} unknown (first: {unexpected[:3]})"
        fix = "pass the checkpoint of this architecture, or give the network a method convert_state(state) -> state"
        raise CheckpointError(explain(f"{path}", expected=f"the {len(own)} tensors of the network", got=got, fix=fix))
    resize_to(net, state)
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        net.load_state_dict(floats, strict=False)
    except RuntimeError as error:
        fix = "pass the checkpoint of this architecture"
        got = str(error).splitlines()[-1].strip()
        raise CheckpointError(explain(f"{path}", expected="matching shapes", got=got, fix=fix)) from error
    if not all(bool(torch.isfinite(value).all()) for value in floats.values() if value.is_floating_point()):
        fix = "train again with a smaller learning rate, or take an earlier checkpoint"
        raise CheckpointError(explain(f"{path}", expected="finite weights", got="NaN or infinity", fix=fix))


def save_network(
    net: nn.Module,
    path: Path,
    *,
    model: str,
    task: str,
    precision: Precision = Precision.FP32,
    half: bool = False,
    stages: tuple[str, ...] = (),
    parent: Artifact | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write a network's weights as safetensors with a sidecar; ``half`` stores floats as fp16."""
    state = net.state_dict()
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    # One key: safetensors writes several in any order, and the same weights must give the same hash.
    save_tensors(state, path, metadata={"pare": json.dumps({"model": model, "task": task})})
    return Artifact.create(
        path,
        format="torch",
        parent=parent,
        model=model,
        task=task,
        model_kwargs=model_kwargs,
        precision=precision,
        stages=stages,
        metadata=metadata,
    )


def load_network(artifact: Artifact | str | Path) -> nn.Module:
    """Rebuild the network of a ``torch`` artifact in eval mode; pruned networks reload too.

    Weights that weight or spectral norm computes are plain ones then: layers fold, copy and convert like any other.

    Raises:
        CheckpointError: Not a ``torch`` artifact, or its weights cannot be trusted.
    """
    from models.layers import bake_weights
    from models.registry import build_model, get_spec

    if not isinstance(artifact, Artifact):
        artifact = Artifact.load(artifact)
    if artifact.format != "torch":
        fix = "pass the .safetensors that it was exported from"
        raise CheckpointError(explain(f"{artifact.path}", expected="format torch", got=artifact.format, fix=fix))
    net = build_model(get_spec(artifact.model, task=artifact.task), **artifact.model_kwargs)
    load_weights(net, artifact.path)
    bake_weights(net)
    return net.eval()
