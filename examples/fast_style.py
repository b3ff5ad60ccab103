"""Fast style transfer "wave" (Johnson et al., ECCV 2016; github.com/reiinakano/fast-style-transfer-deeplearnjs, MIT).

Trained with TensorFlow's fast-style-transfer: convolutions padded as its SAME is, instance norms, output
150 tanh + 127.5. Checkpoint: wave.safetensors, tensors ``Variable``, ``Variable_1``, ... in HWIO order.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
    """Convolution (or transposed convolution) without bias, instance norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, up: bool = False) -> None:
        super().__init__()
        self.up, self.stride = up, stride
        conv = nn.ConvTranspose2d if up else nn.Conv2d
        self.conv = conv(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, bias=False)
        self.norm = nn.InstanceNorm2d(outputs, eps=1e-3, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W), half or twice that with a stride of 2."""
        if self.up:
            return self.norm(self.conv(x)[:, :, :-1, :-1])
        return self.norm(self.conv(functional.pad(x, (0, 1, 0, 1)) if self.stride == 2 else x))


class FastStyle(nn.Module):
    """RGB (N, 3, H, W) in [0, 1] -> restyled RGB; H and W multiples of 4."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.layers = nn.ModuleList([Layer(3, w, 9), Layer(w, 2 * w, 3, 2), Layer(2 * w, 4 * w, 3, 2)])
        self.layers.extend(Layer(4 * w, 4 * w, 3) for _ in range(10))
        self.layers.extend([Layer(4 * w, 2 * w, 3, 2, up=True), Layer(2 * w, w, 3, 2, up=True), Layer(w, 3, 9)])

    def forward(self, input: Tensor) -> Tensor:
        """Down, five residual blocks, up."""
        x = input
        for layer in self.layers[:3]:
            x = layer(x).relu()
        for first, second in zip(self.layers[3:13:2], self.layers[4:13:2], strict=True):
            x = x + second(first(x).relu())
        for layer in self.layers[13:15]:
            x = layer(x).relu()
        return self.layers[15](x).tanh() * (150 / 255) + 0.5

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weight, shift and scale of each layer in the order of their numbers; HWIO (or HWOI) -> OIHW (or IOHW)."""
        values = [state[f"Variable_{number}" if number else "Variable"] for number in range(len(state))]
        names = [f"layers.{index}.{end}" for index in range(16) for end in ("conv.weight", "norm.bias", "norm.weight")]
        return {n: v.permute(3, 2, 0, 1) if v.ndim == 4 else v for n, v in zip(names, values, strict=True)}
