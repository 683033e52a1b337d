"""Linear layers on the CPU as oneDNN likes them: weights in its own layout, the activation in the same pass.

    pack_linears(backbone)    once; `PackedLinear.repack` whenever a layer gets other weights

torch reorders the weights at every call, and an activation reads and writes all of a layer's widest states once more.
Both are spared here: all-MiniLM-L6-v2 in bfloat16 with AMX is 1.15 times as fast; in float32 the layout alone is worth
1.03 to 1.11. On one AMD, where torch asks MKL for products in float32, oneDNN's are twice as fast (benchmarks/LOG.md).
The weights stand in memory in the new layout alone: whoever holds a replaced layer, as peft's do, holds an empty one.

Only `torch.nn.Linear` itself is packed, and an activation only where a class is known to apply it to one layer's output
and to nothing else (`_FOLLOWED_BY`), as one of the modules that oneDNN has too (`_ACTIVATIONS`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Rows of a product that the layout is chosen for: a batch of `encoders.devices`.
ROWS = 2048

# Which layer of a class is followed by which activation, by their names.
_FOLLOWED_BY = {
    "BertIntermediate": ("dense", "intermediate_act_fn"),
    "CamembertIntermediate": ("dense", "intermediate_act_fn"),
    "ElectraIntermediate": ("dense", "intermediate_act_fn"),
    "RobertaIntermediate": ("dense", "intermediate_act_fn"),
    "XLMRobertaIntermediate": ("dense", "intermediate_act_fn"),
    "EuroBertMLP": ("gate_proj", "act_fn"),
    "LlamaMLP": ("gate_proj", "act_fn"),
    "MistralMLP": ("gate_proj", "act_fn"),
    "Qwen2MLP": ("gate_proj", "act_fn"),
    "Qwen3MLP": ("gate_proj", "act_fn"),
}
# What oneDNN calls them, by transformers' classes and torch's.
_ACTIVATIONS = {"GELUActivation": ("gelu", "none"), "SiLU": ("swish", ""), "SiLUActivation": ("swish", "")}
_NO_ACTIVATION = ("none", "")


class PackedLinear(nn.Module):
    """A linear layer, and the activation behind it, in one pass."""

    weight: None = None  # some code of transformers asks

    def __init__(self, linear: nn.Linear, activation: tuple[str, str] = _NO_ACTIVATION) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._activation = activation
        self._packed = self._in_layout(linear.weight.detach())

    def repack(self, weight: Tensor) -> None:
        """Take over other weights `[out_features, in_features]`, in the number format of the first ones."""
        self._packed = self._in_layout(weight)

    def _in_layout(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        return packed

    def forward(self, states: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        name, algorithm = self._activation
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._packed, self.bias, name, [], algorithm
        )
        return result


def pack_linears(backbone: nn.Module) -> None:
    """Pack every linear layer of a backbone on the CPU, in place; nothing where this torch or this CPU cannot.

    Args:
        backbone: In evaluation mode.
    """
    if not _can_pack(next(backbone.parameters()).dtype):
        return
    for module in list(backbone.modules()):
        layer, function = _FOLLOWED_BY.get(type(module).__name__, ("", ""))
        activation = _ACTIVATIONS.get(type(getattr(module, function, None)).__name__)
        if activation is not None:
            linear = getattr(module, layer)
            setattr(module, layer, PackedLinear(linear, activation))
            setattr(module, function, nn.Identity())
            _empty(linear)
    replace_linears(backbone, PackedLinear)


def replace_linears(backbone: nn.Module, replacement: Callable[[nn.Linear], nn.Module]) -> None:
    """Put something else in the place of every linear layer, which is emptied."""
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, replacement(child))
                _empty(child)


def _empty(linear: nn.Linear) -> None:
    linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)


def _can_pack(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and bool(torch._C._has_mkldnn)
