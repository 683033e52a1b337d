"""Linear layers on the CPU in 8 bits: quicker than float32, and close to the model's vectors, not equal.

Weights have a scale for each output channel, activations one for each token, found as they come; the products run in
integers (oneDNN, VNNI or AMX), everything between them in float32. One scale for all tokens of a batch would be a pass
less, and a text's vector would depend on its neighbours, and be farther from the model's (0.92 to 0.97 against 0.996).

For CPUs that cannot multiply in bfloat16: 1.4 times as fast as float32. Where they can, bfloat16 is both quicker, twice
as fast with AMX, and nearer (benchmarks/LOG.md).
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from encoders.linear import ROWS, PackedLinear, replace_linears

# Unsigned, since oneDNN is a thousand times slower with signed activations on CPUs without AMX: zero stands at 128.
_ZERO_POINT = 128
_MOST = 127
_SMALLEST_SCALE = 1e-12


class Int8Linear(PackedLinear):
    """A linear layer in integers."""

    def __init__(self, linear: nn.Linear) -> None:
        self._scales: Tensor
        super().__init__(linear)
        self._zero_points = torch.zeros(self.out_features, dtype=torch.int64)

    def _in_layout(self, weight: Tensor) -> Tensor:
        self._scales = weight.abs().amax(1).clamp_(min=_SMALLEST_SCALE) / _MOST
        integers = (weight / self._scales[:, None]).round_().to(torch.int8)
        packed: Tensor = torch.ops.onednn.qlinear_prepack(integers, [ROWS, self.in_features])
        return packed

    def forward(self, states: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, float32."""
        integers, scales = _quantized(states)
        products = torch.ops.onednn.qlinear_pointwise(
            integers.view(-1, self.in_features),
            *(1.0, _ZERO_POINT, self._packed, self._scales, self._zero_points, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        ).view(*states.shape[:-1], self.out_features)
        return products.mul_(scales) if self.bias is None else torch.addcmul(self.bias, products, scales)


def quantize_linears(backbone: nn.Module) -> None:
    """Let every linear layer of a float32 backbone on the CPU compute in integers, in place.

    Args:
        backbone: In evaluation mode.
    """
    replace_linears(backbone, Int8Linear)


class _Last(threading.local):
    """What a thread quantised last: queries, keys and values are made of the same states."""

    states: Tensor | None = None
    quantized: tuple[Tensor, Tensor]


_last = _Last()


def _quantized(states: Tensor) -> tuple[Tensor, Tensor]:
    """Activations `[..., width]` as bytes, and the scale of each token `[..., 1]`."""
    if _last.states is not states:
        largest = torch.maximum(states.amax(-1, keepdim=True), states.amin(-1, keepdim=True).neg_())
        scales = largest.clamp_(min=_SMALLEST_SCALE) / _MOST
        integers = (states * scales.reciprocal()).add_(_ZERO_POINT + 0.5).to(torch.uint8)
        _last.states, _last.quantized = states, (integers, scales)
    return _last.quantized
