"""A batch through a backbone: packed where the architecture allows, else padded, else text by text.

Packed, the texts lie end to end in one row: no padding is computed (but for up to 31 rows where the CPU has tiles),
positions restart with each text, and attention runs within each text alone. On 1,000 texts of a documentation corpus,
one thread, float32, all-MiniLM-L6-v2, that is worth 11 to 23 % over padded batches that are sorted by length
(benchmarks/LOG.md). There is one way for CPUs (`encoders.attention`) and one for CUDA in half precision
(`encoders.varlen`); float32 on CUDA is padded.

transformers hands attention to a function of ours (`AttentionInterface`) and builds no mask for it. Some architectures
do not ask it, or add a bias that it never sees; then the texts of a pack would see each other, and the vectors would
be wrong without a sign. So only classes that are known to be right are packed (`_PACKABLE`, each compared by a test),
and each loaded model must agree with itself on texts alone before it is. So must one that is padded, or its texts go
through one by one. Why is kept, and ends up in the run's summary: it costs speed, and a newer torch may be all that is
missing.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from encoders import attention, devices, varlen
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
# Their tables of angles depend on the longest text of a batch: `dynamic` ones beyond what a model is given here, so
# only packed texts, which make one long one, would see each other; `longrope` ones before.
_UNSTEADY_ROPE = frozenset({"dynamic", "longrope"})
_ONE_BY_ONE_ROPE = frozenset({"longrope"})

# A CPU's tiles have 16 rows and are taken two at a time. oneDNN makes a kernel for every number of rows that it meets:
# for tiles that takes 7 ms and a megabyte, 4 % of the first minute of all-MiniLM-L6-v2 in bfloat16 (benchmarks/LOG.md).
# Few packs of a corpus are small; those stay as they are, since 31 rows would be much of them.
_ROWS_OF_TILES = 32
_SMALL_PACK = 512

_SELF_TEST_LENGTHS = (7, 5, 5, 2)
# On CUDA the first is longer than the 128 tokens of one text that a block of threads takes.
_SELF_TEST_BLOCKS = 137
_LARGEST_WINDOW_TESTED = 512
# Of a value's distance, at random: 0.02 in bfloat16, 0.12 and more where one token of 512 is missing or too much.
_LARGEST_WINDOW_ERROR = 0.1


class Forward:
    """Runs batches through a loaded backbone; decides once whether they are packed.

    Args:
        backbone: In evaluation mode.
        eight_bits: Whether its linear layers compute in integers. Where that is near enough, so is attention in
            bfloat16, on a CPU that has it.

    Attributes:
        why_padded: What keeps texts from being packed; empty where they are.
    """

    def __init__(self, backbone: Any, *, eight_bits: bool = False) -> None:
        self._backbone = backbone
        self._eight_bits = eight_bits
        self._settings = {"in_bfloat16": True} if eight_bits and devices.cpu_has_bfloat16() else {}
        self._device = next(backbone.parameters()).device
        # Masked wherever it stands, so any id of the vocabulary will do.
        self._pad_token_id = backbone.config.pad_token_id or 0
        self._own_attention = backbone.config._attn_implementation
        self._way = _way_of(self._device)
        self._row_multiple = _ROWS_OF_TILES if self._way is attention and devices.cpu_has_tiles() else 1
        self.why_padded = self._find_why_padded()
        self._one_by_one = False
        if self.why_padded and (why := self._find_why_one_by_one()):
            self._one_by_one = True
            self.why_padded += f"; one by one, for {why}"

    @property
    def packed(self) -> bool:
        """Whether texts go through end to end, without padding."""
        return not self.why_padded

    @property
    def concurrent(self) -> bool:
        """Whether several threads may run batches at once: a forward pass changes nothing in the model."""
        return _is_steady(self._backbone)

    def num_padding(self, batch: Batch) -> int:
        """Tokens that texts are filled up with; a pack's few last rows that make it whole tiles do not count."""
        return 0 if self.packed or self._one_by_one else batch.num_padding

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """Token states `[num_tokens, hidden_size]` of a batch's texts, end to end."""
        if self._one_by_one:
            return self._run_alone(self._backbone, batch)
        if self.packed:
            return self._run_packed(batch, fill=len(batch.token_ids) > _SMALL_PACK)
        return self._run_padded(batch)

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
        if why := self._disagreement(texts, alone) or self._wrong_window():
            backbone.set_attn_implementation(self._own_attention)
        return why

    def _disagreement(self, texts: Batch, alone: Tensor) -> str:
        try:
            packed = self._run_packed(texts, fill=True)
        except Exception as error:
            if self._way is attention:
                raise
            # No kernel for this card, this head size, this release: padding serves them all.
            return f"the kernel failed: {str(error).partition(chr(10))[0]}"
        difference = self._difference(packed, alone)
        return f"texts end to end and alone differed by {difference:.2g}" if difference else ""

    def _wrong_window(self) -> str:
        """Nothing, if attention itself sees as many tokens as it is told to: in 16 bits a layer's states hide a few."""
        window = _window_of(self._backbone.config)
        if not window:
            return ""
        lengths = np.array([3 * window, 5])
        batch = Batch(np.arange(2), np.zeros(lengths.sum(), np.int64), lengths, np.zeros_like(lengths))
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(1, 2, lengths.sum(), 64, generator=generator) for _ in range(3))
        for causal in (False, True):
            found, _ = AttentionInterface()[self._way.NAME](
                SimpleNamespace(is_causal=causal),
                *(states.to(self._device, self._backbone.dtype) for states in (query, key, value)),
                None,
                sliding_window=window,
                **self._way.arguments(batch, self._device),
            )
            places = torch.arange(3 * window)
            ahead = places - places[:, None]
            seen = (ahead.abs() < window) & ((ahead <= 0) | (not causal))
            queries, keys, values = (states[:, :, : 3 * window] for states in (query, key, value))
            expected = scaled_dot_product_attention(queries, keys, values, attn_mask=seen).transpose(1, 2)
            worst = float((found[:, : 3 * window].cpu().float() - expected).norm(dim=-1).max())
            if not worst < _LARGEST_WINDOW_ERROR:
                return f"attention sees other tokens than it should in a window of {window}"
        return ""

    @torch.inference_mode()
    def _find_why_one_by_one(self) -> str:
        """Nothing, if this very model gives padded what it gives alone; what a first run allots is there then, too."""
        texts = _self_test_batch(self._backbone, _SELF_TEST_LENGTHS[0])
        alone = self._run_alone(self._backbone, texts)
        if _has_rope(self._backbone, _ONE_BY_ONE_ROPE):
            return "its angles depend on the longest text of a batch"
        difference = self._difference(self._run_padded(texts), alone)
        return f"padded and alone they differed by {difference:.2g}" if difference else ""

    def _difference(self, states: Tensor, alone: Tensor) -> float:
        """By how much states differ, relatively; 0 where that is what the number format makes of another order."""
        # bfloat16 keeps 8 bits, and layers in 8 bits make more of it; texts that see each other are off by 0.5.
        tolerance = 0.2 if self._eight_bits else 1e-3 if alone.dtype == torch.float32 else 5e-2
        difference = float((states - alone).float().norm() / alone.float().norm())
        return 0.0 if difference <= tolerance else difference  # one that is not a number is one

    def _run_packed(self, batch: Batch, *, fill: bool) -> Tensor:
        num_tokens = len(batch.token_ids)
        # Rows of no text, which attention does not see.
        filling = (0, -num_tokens % self._row_multiple if fill else 0)
        positions = runs(np.zeros_like(batch.lengths), batch.lengths)
        if type(self._backbone).__name__ in _POSITIONS_FROM_PADDING:
            positions = _positions_from_padding(batch, positions, self._backbone.config.pad_token_id)
        states: Tensor = self._backbone(
            input_ids=to_device(np.pad(batch.token_ids, filling), self._device)[None],
            position_ids=to_device(np.pad(positions, filling), self._device)[None],
            **self._way.arguments(batch, self._device),
            **self._settings,
        ).last_hidden_state
        return states[0, :num_tokens]

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
    return type(backbone).__module__.startswith("transformers.") and not _has_rope(backbone, _UNSTEADY_ROPE)


def _has_rope(backbone: Any, types: frozenset[str]) -> bool:
    rope = getattr(backbone.config, "rope_parameters", None) or {}
    # Where kinds of layers have tables of their own, there is one entry a kind.
    kinds = [rope, *(entry for entry in rope.values() if isinstance(entry, dict))]
    return any(kind.get("rope_type") in types for kind in kinds)


def _positions_from_padding(
    batch: Batch, positions: npt.NDArray[np.int64], pad_token_id: int
) -> npt.NDArray[np.int64]:
    """What RoBERTa makes of a text alone: its tokens are numbered, but for those that are the padding token."""
    is_token = batch.token_ids != pad_token_id
    count = np.cumsum(is_token)
    starts = np.arange(len(positions)) - positions
    before = count[starts] - is_token[starts]  # tokens in the texts before
    return np.where(is_token, count - before, 0) + pad_token_id


def _window_of(config: Any) -> int:
    """Tokens of the window of local attention; 0 where there is none that is small."""
    window = max(getattr(config, name, None) or 0 for name in ("sliding_window", "local_attention"))
    return window if 0 < window <= _LARGEST_WINDOW_TESTED else 0


def _self_test_batch(backbone: Any, longest: int) -> Batch:
    """A few texts, the first one beyond the window that tokens see, where there is a small one."""
    config = backbone.config
    window = _window_of(config)
    positions = getattr(config, "max_position_embeddings", None) or window + longest
    if type(backbone).__name__ in _POSITIONS_FROM_PADDING:
        positions -= config.pad_token_id + 1
    lengths = np.array([min(window + longest, positions), *_SELF_TEST_LENGTHS[1:]])
    token_ids = np.random.default_rng(0).integers(0, config.vocab_size, lengths.sum())
    return Batch(np.arange(len(lengths)), token_ids, lengths, np.zeros_like(lengths))
