"""The ways that `benchmarks/encoder.py` compares, and the process that each of them runs in.

    python benchmarks/engines.py MODEL FOLDER WAY CORE

Reads the texts from FOLDER/texts.json, loads, warms up, says `ready`, and encodes once for each line on stdin; at the
end the vectors go to a file. CORE is the one that the process keeps to, with its share of the texts; -1 is all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Encode = Callable[[list[str]], np.ndarray[Any, Any]]
BASELINE = "sentence-transformers"
CORES = len(os.sched_getaffinity(0))
_WARM_UP_TEXTS = 64


def work(name: str, core: int, folder: Path, model: str) -> None:
    """One process of a way: load, warm up, then encode whenever it is told to; the vectors go to a file."""
    texts = json.loads((folder / "texts.json").read_text())
    threads = CORES
    if core >= 0:
        texts, threads = texts[core::CORES], 1
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    torch.set_num_threads(threads)
    encode = WAYS[name].load(model, threads, folder)
    vectors = encode(texts[:_WARM_UP_TEXTS])
    print("ready", flush=True)
    for _ in sys.stdin:
        vectors = encode(texts)
        print("ready", flush=True)
    np.save(folder / f"{name}-{max(core, 0)}.npy", vectors)


def ours(model: str, threads: int, dtype: Any) -> Encode:
    """Our encoder as the job has it."""
    from encoders.allocator import keep_freed_memory
    from encoders.encoder import Encoder
    from encoders.protocol import resolve_protocol
    from encoders.tokenizer import Tokenizer

    keep_freed_memory()
    protocol = resolve_protocol(model)
    tokenizer = Tokenizer(protocol)
    encoder = Encoder.load(protocol, device="cpu", dtype=dtype, num_threads=threads)
    return lambda texts: encoder.encode(tokenizer.prepare(texts)).vectors


def sentence_transformers(model: str, *, tuned: bool) -> Encode:
    """With its defaults, or in bfloat16 (it sorts by itself) with the batch size that is best here."""
    from sentence_transformers import SentenceTransformer

    settings = {"dtype": torch.bfloat16} if tuned else {}
    encoder = SentenceTransformer(model, device="cpu", local_files_only=True, model_kwargs=settings)
    size = 64 if tuned else 32

    def encode(texts: list[str]) -> np.ndarray[Any, Any]:
        vectors = encoder.encode(texts, batch_size=size, convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().numpy()

    return encode


def onnx(model: str, threads: int, folder: Path, *, quantized: bool) -> Encode:
    """Batches sorted by length, 4,096 padded tokens each, through onnxruntime, then pooled; tokenizing as ours."""
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    from encoders.batching import token_budget_batches
    from encoders.protocol import resolve_protocol
    from encoders.tokenizer import Tokenizer

    path = export(model, folder / f"onnx-{quantized}")
    if quantized:
        quantize_dynamic(path, path.with_name("int8.onnx"), per_channel=True)
        path = path.with_name("int8.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    protocol = resolve_protocol(model)
    tokenizer = Tokenizer(protocol)

    def encode(texts: list[str]) -> np.ndarray[Any, Any]:
        prepared = tokenizer.prepare(texts)
        vectors = np.empty((len(texts), protocol.dim), np.float32)
        for batch in token_budget_batches(prepared, 4096, padded=True):
            mask = batch.is_token.astype(np.int64)
            inputs = {"input_ids": batch.padded(batch.token_ids, 0), "attention_mask": mask}
            (states,) = session.run(None, inputs)
            pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
            vectors[batch.rows] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors

    return encode


def export(model: str, folder: Path) -> Path:
    """The backbone as an ONNX file."""
    from transformers import AutoModel

    folder.mkdir()
    backbone = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.backbone(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
            return states

    # Two tensors: of one that is given twice the exporter makes one input.
    example, mask = torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.long)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    torch.onnx.export(
        States().eval(),
        (example, mask),
        folder / "float32.onnx",
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        dynamo=True,
        verbose=False,
    )
    return folder / "float32.onnx"


class Kind:
    """How a way is loaded, the number format of its products, and whether it is a process a core."""

    def __init__(
        self,
        load: Callable[[str, int, Path], Encode],
        dtype: str = "float32",
        *,
        process_a_core: bool = False,
    ) -> None:
        self.load, self.dtype, self.process_a_core = load, dtype, process_a_core


WAYS = {
    BASELINE: Kind(lambda model, _, __: sentence_transformers(model, tuned=False)),
    "sentence-transformers-bfloat16": Kind(
        lambda model, _, __: sentence_transformers(model, tuned=True), "bfloat16"
    ),
    "onnx-float32": Kind(lambda model, threads, folder: onnx(model, threads, folder, quantized=False)),
    "onnx-int8": Kind(lambda model, threads, folder: onnx(model, threads, folder, quantized=True), "int8"),
    "ours-float32": Kind(lambda model, threads, _: ours(model, threads, "float32")),
    "ours-float32-process-a-core": Kind(
        lambda model, threads, _: ours(model, threads, "float32"), process_a_core=True
    ),
    "ours-bfloat16": Kind(lambda model, threads, _: ours(model, threads, "bfloat16"), "bfloat16"),
    "ours-bfloat16-process-a-core": Kind(
        lambda model, threads, _: ours(model, threads, "bfloat16"), "bfloat16", process_a_core=True
    ),
    "ours-int8": Kind(lambda model, threads, _: ours(model, threads, "int8"), "int8"),
}

if __name__ == "__main__":
    work(sys.argv[3], int(sys.argv[4]), Path(sys.argv[2]), sys.argv[1])
