"""What convolutions, matrix products, norms and attention do to channels; rules of ``optimize.channel_rules``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from optimize.channel_rules import join_rows, mix, rule
from optimize.channel_trace import ChannelTracer, Label, Labels


@rule("convolution", "_convolution")
def _convolution(
    tracer: ChannelTracer, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, out: Tensor, **_: Any
) -> Labels:
    transposed, groups = bool(rest[3]), int(rest[5])
    followed, kernel = tracer.labels(x), tracer.labels(weight)
    for label in (*followed[:1], *followed[2:]):
        tracer.freeze(label, "is used as a batch or spatial dimension")
    side_in, side_out = (0, 1) if transposed else (1, 0)
    if groups == 1:
        tracer.tie(followed[1], kernel[side_in], size=x.shape[1])
        made = kernel[side_out]
        _note_produced(tracer, made)
    else:
        made = _grouped(tracer, followed[1], x.shape[1], weight, out.shape[1], groups, transposed)
    if bias is not None:
        made = tracer.tie(made, tracer.labels(bias)[0], size=out.shape[1])
    return (None, made, *(None,) * (out.ndim - 2))


def _note_produced(tracer: ChannelTracer, label: Label) -> None:
    """Remember which dimension of which weight makes channels."""
    if isinstance(label, np.ndarray):
        for slot, ids in tracer.owners.items():
            if ids is label:
                tracer.produced[slot] = ids


def _grouped(
    tracer: ChannelTracer,
    followed: Label,
    channels: int,
    weight: Tensor,
    made_channels: int,
    groups: int,
    transposed: bool,
) -> Label:
    """Grouped convolution: one input channel a group goes with its group; else all groups lose alike."""
    kernel = tracer.labels(weight)
    per_in, per_out = channels // groups, made_channels // groups
    if per_in == 1:
        own = kernel[0]
        if not isinstance(own, np.ndarray):
            tracer.freeze(followed, "meets a filter whose channels are fixed")
            return None
        if transposed:
            tracer.tie(followed, own, size=channels)
            tracer.freeze(kernel[1], "is a transposed convolution with several outputs a group")
            return np.repeat(own, per_out)
        spread = np.repeat(followed, per_out) if isinstance(followed, np.ndarray) else followed
        tracer.tie(spread, own, size=made_channels)
        if per_out > 1:
            join_rows(tracer, own.reshape(groups, per_out))
        return own
    _note_produced(tracer, kernel[1 if transposed else 0])
    if isinstance(followed, np.ndarray):
        join_rows(tracer, followed.reshape(groups, per_in).T)
    if transposed:
        tracer.tie(followed, kernel[0], size=channels)
        return np.tile(kernel[1], groups) if isinstance(kernel[1], np.ndarray) else None
    first = followed[:per_in] if isinstance(followed, np.ndarray) else followed
    tracer.tie(first, kernel[1], size=per_in)
    if isinstance(kernel[0], np.ndarray):
        join_rows(tracer, kernel[0].reshape(groups, per_out).T)
    return kernel[0]


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(tracer: ChannelTracer, x: Tensor, *rest: Any, **_: Any) -> list[Labels]:
    labels = tracer.labels(x)
    for tensor in rest[:4]:
        if isinstance(tensor, Tensor) and tensor.ndim == 1:
            tracer.tie(labels[1], tracer.labels(tensor)[0], size=x.shape[1])
    return [labels]


@rule("native_layer_norm")
def _layer_norm(
    tracer: ChannelTracer, x: Tensor, shape: Sequence[int], weight: Any, bias: Any, *_: Any
) -> list[Labels]:
    labels = tracer.labels(x)
    for offset, size in enumerate(shape):
        dim = x.ndim - len(shape) + offset
        for tensor in (weight, bias):
            if isinstance(tensor, Tensor):
                tracer.tie(labels[dim], tracer.labels(tensor)[offset], size=size)
        mix(tracer, labels[dim], "LayerNorm")
    return [labels]


@rule("native_group_norm")
def _group_norm(
    tracer: ChannelTracer, x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> list[Labels]:
    labels = tracer.labels(x)
    for tensor in (weight, bias):
        if isinstance(tensor, Tensor):
            tracer.tie(labels[1], tracer.labels(tensor)[0], size=c)
    label = labels[1]
    if isinstance(label, np.ndarray):
        join_rows(tracer, label.reshape(groups, c // groups).T)
        mix(tracer, label, "GroupNorm")
    return [labels]


@rule("mm")
def _mm(tracer: ChannelTracer, a: Tensor, b: Tensor, **_: Any) -> Labels:
    first, second = tracer.labels(a), tracer.labels(b)
    tracer.tie(first[1], second[0], size=a.shape[1])
    _note_produced(tracer, second[1])
    return (first[0], second[1])


@rule("addmm")
def _addmm(tracer: ChannelTracer, bias: Tensor, a: Tensor, b: Tensor, *, out: Tensor, **_: Any) -> Labels:
    rows, columns = _mm(tracer, a, b)
    own = tracer.labels(bias)
    if bias.shape[-1:] == out.shape[-1:]:
        columns = tracer.tie(columns, own[-1], size=out.shape[1])
    if bias.ndim == 2:
        tracer.freeze(own[0], "is added to a matrix product along its rows")
    return (rows, columns)


@rule("linear")
def _linear(tracer: ChannelTracer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Labels:
    labels, own = tracer.labels(x), tracer.labels(weight)
    tracer.tie(labels[-1], own[1], size=x.shape[-1])
    made = own[0]
    _note_produced(tracer, made)
    if bias is not None:
        made = tracer.tie(made, tracer.labels(bias)[0], size=weight.shape[0])
    return (*labels[:-1], made)


@rule("bmm")
def _bmm(tracer: ChannelTracer, a: Tensor, b: Tensor, **_: Any) -> Labels:
    first, second = tracer.labels(a), tracer.labels(b)
    batch = tracer.tie(first[0], second[0], size=a.shape[0])
    tracer.tie(first[2], second[1], size=a.shape[2])
    return (batch, first[1], second[2])


@rule("baddbmm")
def _baddbmm(tracer: ChannelTracer, c: Tensor, a: Tensor, b: Tensor, *, out: Tensor, **_: Any) -> Labels:
    labels = _bmm(tracer, a, b)
    met = tracer.labels(c)
    return tuple(
        tracer.tie(label, other, size=size) if c.shape[dim] == size else label
        for dim, (label, other, size) in enumerate(zip(labels, met, out.shape, strict=True))
    )


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math", "scaled_dot_product_attention"
)
def _attention(tracer: ChannelTracer, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> list[Labels]:
    queries, keys, values = (tracer.labels(tensor) for tensor in (q, k, v))
    outer = []
    for dim in range(q.ndim - 2):
        label = tracer.tie(queries[dim], keys[dim], size=q.shape[dim])
        outer.append(tracer.tie(label, values[dim], size=q.shape[dim]))
    tracer.tie(queries[-1], keys[-1], size=q.shape[-1])
    mix(tracer, queries[-1], "attention")
    return [(*outer, queries[-2], values[-1])]
