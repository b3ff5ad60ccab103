"""Attention as all targets take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """Inside the block PyTorch's attention runs operation by operation, not by a fused one that nothing else knows."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention of another number of dimensions than four, of several queries to one key, and of queries to no key.

    The exporter of ONNX takes (N, heads, tokens, channels) alone. Where a mask of booleans leaves nothing to look at,
    PyTorch's answer is 0, and that of all targets a mean.
    """
    looks = attn_mask if attn_mask is not None and attn_mask.dtype == torch.bool else None
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
    elif query.ndim == 4 and looks is None:
        return NotImplemented
    outer = query.shape[:-2]

    def heads(x: Tensor) -> Tensor:
        if x.ndim <= 3:
            return x[None, None] if x.ndim == 2 else x.unsqueeze(1)
        return x.expand(*outer, *x.shape[-2:]).flatten(1, x.ndim - 3)

    mask = attn_mask
    if mask is not None and mask.ndim > 2:
        mask = heads(mask.expand(*outer, *mask.shape[-2:]))
    answer = functional.scaled_dot_product_attention(
        heads(query), heads(key), heads(value), mask, dropout_p, is_causal, scale=scale
    )
    answer = answer.reshape(*outer, *answer.shape[-2:])
    return answer if looks is None else answer * looks.to(answer.dtype).amax(-1, keepdim=True)


ATTENTION: Mapping[str, Callable[..., Any]] = {"scaled_dot_product_attention": _attention}
"""By name. A rewrite returns NotImplemented for what needs none."""
