"""A batch through a backbone: packed where the architecture allows, else padded.

Packed, the texts lie end to end in one row: no padding is computed, positions restart with each text, and attention
runs within each text alone, for all texts of a length at once. On 1,000 texts of a documentation corpus, one thread,
float32, all-MiniLM-L6-v2, that is worth 11 to 23 % over padded batches that are sorted by length (benchmarks/LOG.md).
Only the CPU's packed way exists; elsewhere batches are padded.

transformers hands attention to a function of ours (`AttentionInterface`) and builds no mask for it. Some architectures
do not ask it, or add a bias that it never sees; then the texts of a pack would see each other, and the vectors would
be wrong without a sign. So only classes that are known to be right are packed (`_PACKABLE`, each compared by a test),
and each loaded model must agree with itself on texts alone before it is.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from encoders.batching import Batch

# By class name.
_PACKABLE = frozenset(
    {
        "BertModel",
        "CamembertModel",
        "DistilBertModel",
        "ElectraModel",
        "EuroBertModel",
        "GteModel",
        "LlamaModel",
        "MistralModel",
        "ModernBertModel",
        "NomicBertModel",
        "Qwen2Model",
        "Qwen3Model",
        "RobertaModel",
        "XLMRobertaModel",
    }
)
# Positions count from behind the padding token's id, and that token has none, even in the middle of a text.
_POSITIONS_FROM_PADDING = frozenset({"CamembertModel", "RobertaModel", "XLMRobertaModel"})
# Their tables of angles depend on the longest text of a batch.
_UNSTEADY_ROPE = frozenset({"dynamic", "longrope"})

_PACKED = "taskvec_packed"
_SELF_TEST_LENGTHS = (7, 5, 5, 2)


class Forward:
    """Runs batches through a loaded backbone; decides once whether they are packed."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._device = next(backbone.parameters()).device
        # Masked wherever it stands, so any id of the vocabulary will do.
        self._pad_token_id = backbone.config.pad_token_id or 0
        self._own_attention = backbone.config._attn_implementation
        self.packed = self._device.type == "cpu" and self._can_pack()

    @property
    def concurrent(self) -> bool:
        """Whether several threads may run batches at once: a forward pass changes nothing in the model."""
        return _is_steady(self._backbone)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """Token states `[num_tokens, hidden_size]` of a batch's texts, end to end."""
        return self._run_packed(batch) if self.packed else self._run_padded(batch)

    @torch.inference_mode()
    def plain(self, batch: Batch) -> Tensor:
        """The same by the plain path, which is slow: each text alone, transformers' own attention, float32."""
        backbone = self._backbone
        if backbone.dtype != torch.float32:
            backbone = copy.deepcopy(backbone).float()
        if self.packed:
            backbone.set_attn_implementation(self._own_attention)
        try:
            return self._run_alone(backbone, batch)
        finally:
            if self.packed:
                backbone.set_attn_implementation(_PACKED)

    def _run_alone(self, backbone: Any, batch: Batch) -> Tensor:
        texts = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
        inputs = [torch.from_numpy(token_ids)[None].to(self._device) for token_ids in texts]
        return torch.cat([backbone(input_ids=token_ids).last_hidden_state[0] for token_ids in inputs])

    @torch.inference_mode()
    def _can_pack(self) -> bool:
        """Whether the class is known, and this very model gives packed what it gives alone."""
        backbone = self._backbone
        if type(backbone).__name__ not in _PACKABLE or not _is_steady(backbone):
            return False
        texts = _self_test_batch(backbone.config.vocab_size)
        alone = self._run_alone(backbone, texts)
        backbone.set_attn_implementation(_PACKED)
        # bfloat16 keeps 8 bits; texts that see each other are off by far more.
        tolerance = 1e-3 if alone.dtype == torch.float32 else 5e-2
        error = (self._run_packed(texts) - alone).float().norm() / alone.float().norm()
        if error <= tolerance:
            return True
        backbone.set_attn_implementation(self._own_attention)
        return False

    def _run_packed(self, batch: Batch) -> Tensor:
        positions = np.concatenate([np.arange(length) for length in batch.lengths])
        if type(self._backbone).__name__ in _POSITIONS_FROM_PADDING:
            positions = _positions_from_padding(batch, positions, self._backbone.config.pad_token_id)
        states: Tensor = self._backbone(
            input_ids=torch.from_numpy(batch.token_ids)[None],
            position_ids=torch.from_numpy(positions)[None],
            equal_lengths=_equal_lengths(batch),
        ).last_hidden_state
        return states[0]

    def _run_padded(self, batch: Batch) -> Tensor:
        token_ids = torch.from_numpy(batch.padded(batch.token_ids, self._pad_token_id)).to(self._device)
        is_token = torch.from_numpy(batch.is_token).to(self._device)
        states: Tensor = self._backbone(input_ids=token_ids, attention_mask=is_token.long()).last_hidden_state
        return states[is_token]


def _is_steady(backbone: Any) -> bool:
    """Whether it is transformers' own code, which keeps nothing of a batch, and angles do not change with batches."""
    rope = getattr(backbone.config, "rope_parameters", None) or {}
    return (
        type(backbone).__module__.startswith("transformers.") and rope.get("rope_type") not in _UNSTEADY_ROPE
    )


def _positions_from_padding(
    batch: Batch, positions: npt.NDArray[np.int64], pad_token_id: int
) -> npt.NDArray[np.int64]:
    """What RoBERTa makes of a text alone: its tokens are numbered, but for those that are the padding token."""
    is_token = batch.token_ids != pad_token_id
    count = np.cumsum(is_token)
    starts = np.arange(len(positions)) - positions
    before = count[starts] - is_token[starts]  # tokens in the texts before
    return np.where(is_token, count - before, 0) + pad_token_id


def _equal_lengths(batch: Batch) -> list[tuple[int, int, int]]:
    """Runs of texts of one length: first token, number of texts, length."""
    lengths, first, counts = np.unique(-batch.lengths, return_index=True, return_counts=True)
    starts = np.cumsum(batch.lengths) - batch.lengths
    return [
        (int(starts[at]), int(count), int(-length))
        for length, at, count in zip(lengths, first, counts, strict=True)
    ]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    equal_lengths: list[tuple[int, int, int]],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text: `[1, heads, num_tokens, head_dim]` to `[1, num_tokens, heads, head_dim]`."""
    assert attention_mask is None
    causal = bool(module.is_causal)
    num_heads, num_tokens = query.shape[1:3]
    result = query.new_empty(num_tokens, num_heads, value.shape[-1])
    for stretch in equal_lengths:
        start, count, length = stretch
        window = _window_mask(length, sliding_window, causal=causal)
        attended = scaled_dot_product_attention(
            _texts(query, *stretch),
            _texts(key, *stretch),
            _texts(value, *stretch),
            attn_mask=window,
            is_causal=causal and window is None,
            scale=scaling,
            enable_gqa=key.shape[1] != num_heads,
        )
        result[start : start + count * length] = attended.transpose(1, 2).flatten(0, 1)
    return result[None], None


def _texts(states: Tensor, start: int, count: int, length: int) -> Tensor:
    """`[1, heads, num_tokens, head_dim]` to `[count, heads, length, head_dim]`, without a copy."""
    num_heads, _, head_dim = states.shape[1:]
    run = states[0, :, start : start + count * length]
    return run.view(num_heads, count, length, head_dim).transpose(0, 1)


def _window_mask(length: int, sliding_window: int | None, *, causal: bool) -> Tensor | None:
    """Who sees whom `[length, length]` in local attention; None where the window holds the whole text.

    transformers counts a token itself as one of the window, on each side that it looks to.
    """
    if sliding_window is None or length <= sliding_window:
        return None
    places = torch.arange(length)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < sliding_window) if causal else distance.abs() < sliding_window


def _self_test_batch(vocab_size: int) -> Batch:
    lengths = np.array(_SELF_TEST_LENGTHS)
    token_ids = np.random.default_rng(0).integers(0, vocab_size, lengths.sum())
    return Batch(np.arange(len(lengths)), token_ids, lengths, np.zeros_like(lengths))


AttentionInterface.register(_PACKED, _attend)
