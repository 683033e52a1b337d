"""A batch through a backbone: packed where the architecture allows, else padded.

Packed, the texts lie end to end in one row: no padding is computed, positions restart with each text, and attention
runs within each text alone. On 1,000 texts of a documentation corpus, one thread, float32, all-MiniLM-L6-v2, that is
worth 11 to 23 % over padded batches that are sorted by length (benchmarks/LOG.md). There is one way for CPUs
(`encoders.attention`) and one for CUDA in half precision (`encoders.varlen`); float32 on CUDA is padded.

transformers hands attention to a function of ours (`AttentionInterface`) and builds no mask for it. Some architectures
do not ask it, or add a bias that it never sees; then the texts of a pack would see each other, and the vectors would
be wrong without a sign. So only classes that are known to be right are packed (`_PACKABLE`, each compared by a test),
and each loaded model must agree with itself on texts alone before it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encoders import attention, varlen
from encoders.batching import Batch
from encoders.stretches import runs

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

_SELF_TEST_LENGTHS = (7, 5, 5, 2)
_LARGEST_WINDOW_TESTED = 512


class Forward:
    """Runs batches through a loaded backbone; decides once whether they are packed."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._device = next(backbone.parameters()).device
        # Masked wherever it stands, so any id of the vocabulary will do.
        self._pad_token_id = backbone.config.pad_token_id or 0
        self._own_attention = backbone.config._attn_implementation
        self._way = _way_of(self._device)
        self.packed = backbone.dtype in self._way.DTYPES and self._can_pack()

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
        """The same in the simplest way, which is slow: each text alone, transformers' own attention."""
        backbone = self._backbone
        if self.packed:
            backbone.set_attn_implementation(self._own_attention)
        try:
            return self._run_alone(backbone, batch)
        finally:
            if self.packed:
                backbone.set_attn_implementation(self._way.NAME)

    def _run_alone(self, backbone: Any, batch: Batch) -> Tensor:
        texts = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
        return torch.cat([run_alone(backbone, torch.from_numpy(ids).to(self._device)) for ids in texts])

    @torch.inference_mode()
    def _can_pack(self) -> bool:
        """Whether the class is known, and this very model gives packed what it gives alone."""
        backbone = self._backbone
        if type(backbone).__name__ not in _PACKABLE or not _is_steady(backbone):
            return False
        texts = _self_test_batch(backbone.config)
        alone = self._run_alone(backbone, texts)
        backbone.set_attn_implementation(self._way.NAME)
        if self._agrees(texts, alone):
            return True
        backbone.set_attn_implementation(self._own_attention)
        return False

    def _agrees(self, texts: Batch, alone: Tensor) -> bool:
        try:
            packed = self._run_packed(texts)
        except Exception:
            if self._way is attention:
                raise
            return False  # no kernel for this card, this head size, this release: padding serves them all
        # bfloat16 keeps 8 bits; texts that see each other are off by far more.
        tolerance = 1e-3 if alone.dtype == torch.float32 else 5e-2
        return bool((packed - alone).float().norm() <= tolerance * alone.float().norm())

    def _run_packed(self, batch: Batch) -> Tensor:
        positions = runs(np.zeros_like(batch.lengths), batch.lengths)
        if type(self._backbone).__name__ in _POSITIONS_FROM_PADDING:
            positions = _positions_from_padding(batch, positions, self._backbone.config.pad_token_id)
        states: Tensor = self._backbone(
            input_ids=torch.from_numpy(batch.token_ids)[None].to(self._device),
            position_ids=torch.from_numpy(positions)[None].to(self._device),
            **self._way.arguments(batch, self._device),
        ).last_hidden_state
        return states[0]

    def _run_padded(self, batch: Batch) -> Tensor:
        token_ids = torch.from_numpy(batch.padded(batch.token_ids, self._pad_token_id)).to(self._device)
        is_token = torch.from_numpy(batch.is_token).to(self._device)
        states: Tensor = self._backbone(input_ids=token_ids, attention_mask=is_token.long()).last_hidden_state
        return states[is_token]


def run_alone(backbone: Any, token_ids: Tensor) -> Tensor:
    """Token states `[num_tokens, hidden_size]` of one text; a repository's own code may want a mask even for that."""
    own_code = not type(backbone).__module__.startswith("transformers.")
    mask = torch.ones_like(token_ids)[None] if own_code else None
    states: Tensor = backbone(input_ids=token_ids[None], attention_mask=mask).last_hidden_state
    return states[0]


def _way_of(device: torch.device) -> Any:
    """The module with the packed way of a device."""
    return varlen if device.type == "cuda" else attention


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


def _self_test_batch(config: Any) -> Batch:
    """A few texts, of them one beyond the window that tokens see, where there is a small one."""
    windows = [getattr(config, name, None) or 0 for name in ("sliding_window", "local_attention")]
    window = max(windows) if 0 < max(windows) <= _LARGEST_WINDOW_TESTED else 0
    positions = getattr(config, "max_position_embeddings", None) or window + _SELF_TEST_LENGTHS[0]
    lengths = np.array([min(window + _SELF_TEST_LENGTHS[0], positions), *_SELF_TEST_LENGTHS[1:]])
    token_ids = np.random.default_rng(0).integers(0, config.vocab_size, lengths.sum())
    return Batch(np.arange(len(lengths)), token_ids, lengths, np.zeros_like(lengths))
