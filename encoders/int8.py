"""Linear layers on the CPU in 8 bits: quicker than float32, and close to the model's vectors, not equal.

Weights have a scale for each output channel, activations a lowest value and a step for each token, found as they come;
the products run in integers (oneDNN, VNNI or AMX), everything between them in float32, but for attention, which is in
bfloat16 where the CPU multiplies in it. One range for all tokens of a batch would be less work, and a text's vector
would depend on its neighbours, and be farther from the model's.

Not every CPU sums these products up in 32 bits. Those without VNNI add two neighbours in 16 first and cut off what is
too large, so their weights get 6 bits and a sign: then the largest sum of two fits.

A token's activations x become bytes q with x = lowest + step * q. So a product with weights w is
step * sum(q * w) + lowest * sum(w), and the second sum is known beforehand.
"""

from __future__ import annotations

import threading
import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from encoders.linear import ROWS, PackedLinear, replace_linears

# Of a weight in integers. The product of two neighbours with the largest bytes, 255, is 64,770 or 32,130.
_MOST, _MOST_IN_16_BITS = 127, 63
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
        self._scales = weight.abs().amax(1).clamp_(min=_SMALLEST_SCALE) / largest_weight()
        integers = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._sums = integers.sum(1) * self._scales
        packed: Tensor = torch.ops.onednn.qlinear_prepack(integers, [ROWS, self.in_features])
        return packed

    def forward(self, states: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, float32."""
        integers, steps, lowest = _quantized(states)
        products = _products(integers, self._packed, self._scales, self._zero_points)
        if self.bias is None:
            products.mul_(steps)
        else:
            torch.addcmul(self.bias, products, steps, out=products)
        result: Tensor = products.addr_(lowest, self._sums)
        return result.view(*states.shape[:-1], self.out_features)


@cache
def largest_weight() -> int:
    """The largest integer that a weight may be, so that products on this CPU are what they should be.

    Seen by trying: what oneDNN does depends on the CPU, on its release, and on what its user forbids it.
    """
    width, height = 64, 32  # no less than any layer has
    weights = torch.full((height, width), _MOST, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weights, [ROWS, width])
    ones, zeros = torch.ones(height), torch.zeros(height, dtype=torch.int64)
    products = _products(torch.full((ROWS, width), 255, dtype=torch.uint8), packed, ones, zeros)
    return _MOST if bool((products == 255 * _MOST * width).all()) else _MOST_IN_16_BITS


def _products(integers: Tensor, packed: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
    """Bytes `[num_tokens, in_features]` by packed weights, scaled by output channel, float32."""
    products: Tensor = torch.ops.onednn.qlinear_pointwise(
        integers,
        *(1.0, 0, packed, scales, zero_points, None),
        *(1.0, 0, torch.float32, "none", [], ""),
    )
    return products


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
