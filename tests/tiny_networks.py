"""Networks of the registry narrow enough for a test of every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

#: Registry name -> (factory arguments, input size) of each.
TINY_NETWORKS: dict[str, tuple[dict[str, object], tuple[int, int]]] = {
    "unet": ({"width": 8, "levels": 2}, (16, 24)),
    "nafnet_w32": ({"width": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}, (16, 32)),
    "unet_convnext": ({"channels": [8, 12, 16, 16], "depths": [1, 1, 1, 1], "width": 8}, (32, 64)),
    "unet_efficientnet_b4": ({"width": 0.25, "depth": 0.3, "head_width": 8}, (32, 64)),
    "restormer_lite": ({"width": 8, "blocks": [1, 1, 1, 1], "refinement": 1, "heads": [1, 2, 2, 4]}, (16, 24)),
    "hdrnet": ({"low": 32, "cells": 8, "depth": 4}, (40, 56)),
    "scunet": ({"width": 16, "blocks": [2, 1, 1, 1, 1, 1, 1], "head_channels": 4, "window": 4}, (64, 64)),
    "swinir": ({"width": 12, "depths": [2], "heads": [2], "window": 4}, (16, 24)),
    "pix2pix": ({"width": 4}, (256, 256)),
}


def make_tiny_network(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """Return a tiny network of the table in eval mode, nothing of it zero, and the input size to run it at."""
    import torch

    import models

    kwargs, size = TINY_NETWORKS[name]
    torch.manual_seed(0)
    net = models.create_model(name, **kwargs)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.4)
    return net, size
