"""A batch through a backbone: packed where the architecture allows, else padded.

Packed, the texts lie end to end in one row: no padding is computed, positions restart with each text, and attention
runs within each text alone. On 1,000 texts of a documentation corpus, one thread, float32, all-MiniLM-L6-v2, that is
worth 11 to 23 % over padded batches that are sorted by length (benchmarks/LOG.md). There is one way for CPUs
(`encoders.attention`) and one for CUDA in half precision (`encoders.varlen`); float32 on CUDA is padded.

transformers hands attention to a function of ours (`AttentionInterface`) and builds no mask for it. Some architectures
do not ask it, or add a bias that it never sees; then the texts of a pack would see each other, and the vectors would
be wrong without a sign. So only classes that are known to be right are packed (`_PACKABLE`, each compared by a test),
and each loaded model must agree with itself on texts alone before it is. Why one is padded instead is kept, and ends
up in the run's summary: padding costs speed, and a newer torch may be all that is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encoders import attention, varlen
from encoders.batching import Batch
from encoders.copies import to_device
from encoders.stretches import runs

# By class name.
_PACKABLE = frozenset(
    {
        "AlbertModel",
        "BertModel",
        "CamembertModel",
        "DistilBertModel",
        "ElectraModel",
        "EuroBertModel",
        "Gemma3TextModel",
        "GteModel",
        "JinaEmbeddingsV3Model",
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
# On CUDA the first is longer than the 128 tokens of one text that a block of threads takes.
_SELF_TEST_BLOCKS = 137
_LARGEST_WINDOW_TESTED = 512


class Forward:
    """Runs batches through a loaded backbone; decides once whether they are packed.

    Args:
        backbone: In evaluation mode.
        attention_in_bfloat16: Whether packed texts attend in bfloat16 between layers in float32, on a CPU.

    Attributes:
        why_padded: What keeps texts from being packed; empty where they are.
    """

    def __init__(self, backbone: Any, *, attention_in_bfloat16: bool = False) -> None:
        self._backbone = backbone
        self._settings = {"in_bfloat16": True} if attention_in_bfloat16 else {}
        self._device = next(backbone.parameters()).device
        # Masked wherever it stands, so any id of the vocabulary will do.
        self._pad_token_id = backbone.config.pad_token_id or 0
        self._own_attention = backbone.config._attn_implementation
        self._way = _way_of(self._device)
        self.why_padded = self._find_why_padded()
        if self.why_padded:
            # What a first run loads and allots is there before the first texts; packed, the self-test saw to it.
            self(_first_batch()).sum().item()

    @property
    def packed(self) -> bool:
        """Whether texts go through end to end, without padding."""
        return not self.why_padded

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
    def _find_why_padded(self) -> str:
        """Nothing, if the class is known and this very model gives packed what it gives alone."""
        backbone = self._backbone
        name = type(backbone).__name__
        if name not in _PACKABLE:
            return f"{name} is not known to be right with texts end to end"
        if not _is_steady(backbone):
            return "its own code, or its angles, may depend on the batch"
        if backbone.dtype not in self._way.DTYPES:
            return f"no kernel for texts end to end on {self._device.type} in {backbone.dtype}"
        texts = _self_test_batch(
            backbone, _SELF_TEST_BLOCKS if self._way is varlen else _SELF_TEST_LENGTHS[0]
        )
        alone = self._run_alone(backbone, texts)
        backbone.set_attn_implementation(self._way.NAME)
        if why := self._disagreement(texts, alone):
            backbone.set_attn_implementation(self._own_attention)
        return why

    def _disagreement(self, texts: Batch, alone: Tensor) -> str:
        try:
            packed = self._run_packed(texts)
        except Exception as error:
            if self._way is attention:
                raise
            # No kernel for this card, this head size, this release: padding serves them all.
            return f"the kernel failed: {str(error).partition(chr(10))[0]}"
        # bfloat16 keeps 8 bits, and layers in 8 bits make more of it; texts that see each other are off by 0.5.
        tolerance = 0.2 if self._settings else 1e-3 if alone.dtype == torch.float32 else 5e-2
        difference = float((packed - alone).float().norm() / alone.float().norm())
        # A difference that is not a number is one.
        return "" if difference <= tolerance else f"texts end to end and alone differed by {difference:.2g}"

    def _run_packed(self, batch: Batch) -> Tensor:
        positions = runs(np.zeros_like(batch.lengths), batch.lengths)
        if type(self._backbone).__name__ in _POSITIONS_FROM_PADDING:
            positions = _positions_from_padding(batch, positions, self._backbone.config.pad_token_id)
        states: Tensor = self._backbone(
            input_ids=to_device(batch.token_ids, self._device)[None],
            position_ids=to_device(positions, self._device)[None],
            **self._way.arguments(batch, self._device),
            **self._settings,
        ).last_hidden_state
        return states[0]

    def _run_padded(self, batch: Batch) -> Tensor:
        is_token = batch.is_token
        states: Tensor = self._backbone(
            input_ids=to_device(batch.padded(batch.token_ids, self._pad_token_id), self._device),
            attention_mask=to_device(is_token.astype(np.int64), self._device),
        ).last_hidden_state
        # By place: to select by a mask, CUDA first counts it and the host waits for the count.
        return states.flatten(0, 1)[to_device(np.flatnonzero(is_token), self._device)]


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
    # Where kinds of layers have tables of their own, there is one entry a kind.
    kinds = [rope, *(entry for entry in rope.values() if isinstance(entry, dict))]
    return type(backbone).__module__.startswith("transformers.") and not any(
        kind.get("rope_type") in _UNSTEADY_ROPE for kind in kinds
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


def _first_batch() -> Batch:
    """As little as has padding."""
    lengths = np.array([2, 1])
    return Batch(np.arange(2), np.arange(3), lengths, np.zeros_like(lengths))


def _self_test_batch(backbone: Any, longest: int) -> Batch:
    """A few texts, the first one beyond the window that tokens see, where there is a small one."""
    config = backbone.config
    windows = [getattr(config, name, None) or 0 for name in ("sliding_window", "local_attention")]
    window = max(windows) if 0 < max(windows) <= _LARGEST_WINDOW_TESTED else 0
    positions = getattr(config, "max_position_embeddings", None) or window + longest
    if type(backbone).__name__ in _POSITIONS_FROM_PADDING:
        positions -= config.pad_token_id + 1
    lengths = np.array([min(window + longest, positions), *_SELF_TEST_LENGTHS[1:]])
    token_ids = np.random.default_rng(0).integers(0, config.vocab_size, lengths.sum())
    return Batch(np.arange(len(lengths)), token_ids, lengths, np.zeros_like(lengths))
