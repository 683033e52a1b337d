"""Linear layers on the CPU in 8 bits: quicker than float32, and close to the model's vectors, not equal.

Weights have a scale for each output channel, activations a lowest value and a step for each token, found as they come;
the products run in integers (oneDNN, VNNI or AMX), everything between them in float32, but for attention, which is in
bfloat16 where the CPU multiplies in it. One range for all tokens of a batch would be less work, and a text's vector
would depend on its neighbours, and be farther from the model's.

A token's activations x become bytes q with x = lowest + step * q. So a product with weights w is
step * sum(q * w) + lowest * sum(w), and the second sum is known beforehand.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from encoders.linear import ROWS, PackedLinear, replace_linears

_MOST = 127
_SMALLEST_SCALE = 1e-12
# FBGEMM adds it to each range before it divides by it, and leaves it out of the step that it tells.
_ADDED_STEP = 1e-8 / 255


class Int8Linear(PackedLinear):
    """A linear layer in integers."""

    def __init__(self, linear: nn.Linear) -> None:
        self._scales: Tensor
        self._sums: Tensor
        super().__init__(linear)
        self._zero_points = torch.zeros(self.out_features, dtype=torch.int64)

    def _in_layout(self, weight: Tensor) -> Tensor:
        self._scales = weight.abs().amax(1).clamp_(min=_SMALLEST_SCALE) / _MOST
        integers = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._sums = integers.sum(1) * self._scales
        packed: Tensor = torch.ops.onednn.qlinear_prepack(integers, [ROWS, self.in_features])
        return packed

    def forward(self, states: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, float32."""
        integers, steps, lowest = _quantized(states)
        products = torch.ops.onednn.qlinear_pointwise(
            integers,
            *(1.0, 0, self._packed, self._scales, self._zero_points, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        if self.bias is None:
            products.mul_(steps)
        else:
            torch.addcmul(self.bias, products, steps, out=products)
        result: Tensor = products.addr_(lowest, self._sums)
        return result.view(*states.shape[:-1], self.out_features)


def quantize_linears(backbone: nn.Module) -> None:
    """Let every linear layer of a float32 backbone on the CPU compute in integers, in place.

    Args:
        backbone: In evaluation mode.
    """
    replace_linears(backbone, Int8Linear)


class _Last(threading.local):
    """What a thread quantised last, as long as it is there: queries, keys and values are made of the same states."""

    states: weakref.ref[Tensor] | None = None
    quantized: tuple[Tensor, Tensor, Tensor] | None = None


_last = _Last()


def _forget(_: Any) -> None:
    _last.states = _last.quantized = None


def _quantized(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations `[..., width]` as bytes `[num_tokens, width]`, and each token's step, a column, and lowest value."""
    if _last.quantized is not None and _last.states is not None and _last.states() is states:
        return _last.quantized
    width = states.shape[-1]
    tokens = states.reshape(-1, width)
    # Bytes, then step and lowest value as float32: made for tables of embeddings, in one pass, which is five times as
    # quick as torch's operators one by one.
    rows = torch.ops.quantized.embedding_bag_byte_prepack(tokens)
    steps, lowest = rows[:, width:].contiguous().view(torch.float32).split(1, dim=1)
    # It leaves out what is not a number, and that must not become one.
    lowest = lowest + 0 * tokens.sum(1, keepdim=True)
    quantized = rows[:, :width], steps + _ADDED_STEP, lowest[:, 0]
    _last.states, _last.quantized = weakref.ref(states, _forget), quantized
    return quantized
