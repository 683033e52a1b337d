"""The ways that `benchmarks/gpu.py` compares: each loads a repository once, then turns texts into vectors.

All compute in bfloat16 on one device, and all give float32 vectors on the host. What is timed begins with token ids,
but for sentence-transformers, which begins with strings; its tokenizer knows numbers only and is a fast one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from shapes import TASKS, spelled
from torch.nn.functional import normalize, scaled_dot_product_attention

from encoders import forward, varlen
from encoders.batching import Batch
from encoders.encoder import Encoder
from encoders.protocol import Protocol
from encoders.tokenized import TokenizedTexts

Vectors = np.ndarray[Any, Any]
PLAIN = "transformers, padded, as they come"
BARE, MERGED, COMPILED = "ours", "ours, one adapter merged", "ours, compiled"
_TOKENS_OF_A_GRAPH = 128  # at least, of the longest text that a compiled forward pass is told of


@dataclass(frozen=True)
class Way:
    """One of them, loaded.

    Attributes:
        run: From what `prepare` gave to vectors, `[num_texts, dim]`.
        prepare: What is not timed.
        comparable: Whether it has the bare backbone's weights, so that its vectors must be the same.
        note: What to say of it.
    """

    run: Callable[[Any], Vectors]
    prepare: Callable[[TokenizedTexts], Any] = lambda texts: texts
    comparable: bool = True
    note: str = ""


def ways_of(protocol: Protocol, device: torch.device, settings: Any) -> dict[str, Callable[[], Way]]:
    """How each way is loaded, by its name.

    Args:
        protocol: The model's; its options name the adapters, if there are any.
        device: Of the computation.
        settings: `batch_size` of the padded ways, `batch_tokens` of ours, `backend` of the compiler.
    """
    ways: dict[str, Callable[[], Way]] = {
        PLAIN: lambda: plain(protocol, device, settings.batch_size, by_length=False),
        "transformers, padded, by length": lambda: plain(
            protocol, device, settings.batch_size, by_length=True
        ),
        "sentence-transformers": lambda: sentence_transformers(protocol, device, settings.batch_size),
        BARE: lambda: ours(protocol, device, settings),
        COMPILED: lambda: ours(protocol, device, settings, compiled=True),
    }
    if protocol.options.adapters:
        ways[MERGED] = lambda: ours(protocol, device, settings, adapter=True)
        ways["peft, four adapters beside the weights"] = lambda: unmerged(
            protocol, device, settings.batch_size
        )
    return ways


def ours(
    protocol: Protocol, device: torch.device, settings: Any, *, adapter: bool = False, compiled: bool = False
) -> Way:
    """Our encoder as the job has it; compiled, with a dynamic number of tokens and few longest lengths."""
    names = [protocol.adapters.names[0] if adapter else None]
    encoder = Encoder.load(
        protocol,
        adapters=names,
        device=str(device),
        dtype="bfloat16",
        max_batch_tokens=settings.batch_tokens,
    )
    note = f"padded: {encoder.why_padded}" if encoder.why_padded else ""
    if compiled:
        encoder._adapted.module.compile(dynamic=True, backend=settings.backend)
        way = encoder._forward._way
        encoder._forward._way = SimpleNamespace(arguments=lambda *told: few_lengths(way.arguments(*told)))
    note = note or f"batches of {encoder.max_batch_tokens:,} tokens"
    return Way(lambda texts: encoder.encode(texts).vectors, comparable=not adapter, note=note)


def few_lengths(told: dict[str, Any]) -> dict[str, Any]:
    """With the longest length rounded up to a power of two: the kernel wants a bound, and a graph is for one number."""
    longest = max(_TOKENS_OF_A_GRAPH, told["longest_text"])
    return told | {"longest_text": 1 << (longest - 1).bit_length()}


def plain(protocol: Protocol, device: torch.device, batch_size: int, *, by_length: bool) -> Way:
    """Batches of some texts, padded to the longest of each, through transformers' own model."""
    backbone = _backbone(protocol, device)

    def states(batch: Batch) -> torch.Tensor:
        inputs = _padded(batch, device)
        output: torch.Tensor = backbone(**inputs).last_hidden_state
        return output

    return Way(lambda texts: _in_batches(states, texts, batch_size, by_length=by_length))


def unmerged(protocol: Protocol, device: torch.device, batch_size: int) -> Way:
    """Four adapters in one model, a text in four for each of them, through peft's `adapter_names`."""
    from peft import PeftModel

    folders = protocol.options.adapters
    model = PeftModel.from_pretrained(
        _backbone(protocol, device), folders[TASKS[0]], adapter_name=TASKS[0], autocast_adapter_dtype=False
    )
    for task in TASKS[1:]:
        model.load_adapter(folders[task], adapter_name=task, autocast_adapter_dtype=False)
    model = model.to(device).eval()

    def states(batch: Batch) -> torch.Tensor:
        names = [TASKS[row % len(TASKS)] for row in batch.rows]
        output: torch.Tensor = model(**_padded(batch, device), adapter_names=names).last_hidden_state
        return output

    return Way(lambda texts: _in_batches(states, texts, batch_size, by_length=True), comparable=False)


def sentence_transformers(protocol: Protocol, device: torch.device, batch_size: int) -> Way:
    """As its users call it, in bfloat16; it sorts by length by itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(protocol.repository.path),
        device=str(device),
        local_files_only=True,
        model_kwargs={"dtype": torch.bfloat16},
    )

    def run(texts: list[str]) -> Vectors:
        vectors = model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
        return normalize(vectors.float(), dim=-1).cpu().numpy()  # its own norm is rounded to 8 bits

    return Way(run, prepare=spelled, note="its own tokenizing included")


def _backbone(protocol: Protocol, device: torch.device) -> Any:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(protocol.repository.path, dtype=torch.bfloat16, local_files_only=True)
    model.config.use_cache = False
    return model.to(device).eval()


def _padded(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    ids, mask = batch.padded(batch.token_ids, 0), batch.is_token.astype(np.int64)
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }


@torch.inference_mode()
def _in_batches(
    states_of: Callable[[Batch], torch.Tensor], texts: TokenizedTexts, batch_size: int, *, by_length: bool
) -> Vectors:
    """Vectors of the last tokens, of so many texts at a time."""
    order = np.argsort(-texts.lengths, kind="stable") if by_length else np.arange(len(texts))
    vectors = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        rows = rows[np.argsort(-texts.lengths[rows], kind="stable")]  # a batch wants its longest first
        some = texts.take(rows)
        batch = Batch(
            rows, some.token_ids.astype(np.int64), some.lengths, some.prompt_lengths.astype(np.int64)
        )
        states = states_of(batch)
        last = states[torch.arange(len(rows)), torch.from_numpy(batch.lengths - 1)]
        found = normalize(last.float(), dim=-1).cpu().numpy()
        if vectors is None:
            vectors = np.empty((len(texts), found.shape[1]), np.float32)
        vectors[rows] = found
    assert vectors is not None
    return vectors


def pack_on_the_cpu() -> None:
    """Let CPUs take the way of CUDA, by a plain kernel in place of FlashAttention's: slow, and the same otherwise."""
    from torch.nn.attention import varlen as torch_varlen

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        *told: Any,
    ) -> tuple[torch.Tensor, ...]:
        _, _, _, causal, scale, *_ = told
        result = torch.empty_like(query)
        for start, stop in zip(starts.tolist(), starts.tolist()[1:], strict=False):
            q, k, v = (states[start:stop].transpose(0, 1)[None] for states in (query, key, value))
            attended = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
            result[start:stop] = attended[0].transpose(0, 1)
        sums = torch.empty(query.shape[1], query.shape[0])
        return result, sums, torch.zeros(2, dtype=torch.uint64)

    torch_varlen._varlen_attn.register_kernel("cpu")(kernel)
    forward._way_of = lambda device: varlen  # noqa: ARG005
