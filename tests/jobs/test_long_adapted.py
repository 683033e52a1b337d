"""Chunks of long texts by several adapters, as float32, int8 and binary, against transformers and peft by hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend

from encoders.quantization import Ranges
from encoders.tasks import view_of
from jobs.encode import EncodeFragment
from jobs.ranges import Calibrator
from jobs.read import Reader
from jobs.records import LongTextRecord
from tests.encoders.adapter_repositories import native_backbone, unmerged, write_jina_v5
from tests.encoders.reference import assert_same, cosines
from tests.encoders.repositories import TEXTS, edit_json
from tests.jobs.builders import write_shard
from tests.jobs.test_stages import Bench, row_of, vectors_of

LONG = " ".join(f"{number}. {TEXTS[number % len(TEXTS)]}" for number in range(50))  # some 1,600 tokens
DOCUMENTS = ("Paris", LONG, LONG[::-1])
PROMPTS = {
    view_of("retrieval", "query"): "Query: ",
    view_of("clustering"): "Document: ",
    view_of("classification"): "Document: ",
}
SIZE, OVERLAP = 100, 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four adapters on a causal backbone that takes 4,096 tokens and pools the last one."""
    folder = write_jina_v5(tmp_path_factory.mktemp("model") / "v5", "small", max_position_embeddings=4096)
    edit_json(folder / "tokenizer_config.json", model_max_length=4096)
    return folder


def bench_of(tmp_path: Path, model: Path, mode: str) -> Bench:
    write_shard(tmp_path / "corpus", "s.parquet", {"id": range(len(DOCUMENTS)), "text": DOCUMENTS})
    long_text = LongTextRecord(
        mode=mode, chunk_tokens=SIZE, chunk_overlap=OVERLAP, prompts=(("Document: ", ""), ("Query: ", ""))
    )
    return Bench(tmp_path / "corpus", tmp_path / "out", model, tuple(PROMPTS), long_text=long_text)


@cache
def network(model: Path, task: str) -> torch.nn.Module:
    backbone = native_backbone(json.loads((model / "config.json").read_text()))
    backbone.load_state_dict(load_file(model / "model.safetensors"))
    return unmerged(backbone.float(), model / "adapters" / task)


@torch.no_grad()
def states(model: Path, task: str, whole: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Token states of one text, and the characters that each token stands for."""
    backend = Backend.from_file(str(model / "tokenizer.json"))
    backend.no_truncation()
    encoding = backend.encode(whole)
    ids = torch.tensor([encoding.ids])
    found = network(model, task)(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    return found, encoding.offsets


def expected(model: Path, task: str, prompt: str, mode: str, table: pa.Table) -> np.ndarray:
    """The vector of each row's characters: of a text of their own, or of their last token in the whole text."""
    vectors = []
    for row in table.to_pylist():
        text, start, end = DOCUMENTS[row["id"]], row["char_start"], row["char_end"]
        if mode == "chunk":
            found, _ = states(model, task, prompt + text[start:end])
            last = found[-1]
        else:
            found, offsets = _whole(model, task, prompt + text)
            inside = [
                token
                for token, (first, behind) in enumerate(offsets)
                if first < end + len(prompt) and behind > start + len(prompt)
            ]
            last = found[inside[-1]]
        vectors.append((last / last.norm()).numpy())
    return np.stack(vectors)


_whole = cache(states)


@pytest.mark.parametrize("mode", ["chunk", "late_chunk"])
def test_each_chunk_has_the_vector_of_its_task_s_adapter(mode: str, tmp_path: Path, model: Path) -> None:
    bench = bench_of(tmp_path, model, mode)
    receipt, spent = bench.embed()
    assert receipt.balances
    assert spent["num_encodings"] == 3
    by_task = {}
    for view, prompt in PROMPTS.items():
        part = bench.part(receipt, view)
        counts = np.bincount(part["id"])
        assert counts[0] == 1
        assert counts[1] > 10 < counts[2]
        by_task[view.task] = vectors_of(part)
        assert_same(by_task[view.task], expected(model, view.task, prompt, mode, part))
    assert cosines(by_task["clustering"], by_task["classification"]).max() < 0.999


@pytest.mark.parametrize("mode", ["chunk", "late_chunk"])
def test_chunks_are_calibrated_and_stored_in_int8_and_in_bits_like_texts(
    mode: str, tmp_path: Path, model: Path
) -> None:
    bench = bench_of(tmp_path, model, mode)
    spec, work = bench.run()
    bounds = Calibrator(spec)(EncodeFragment(spec)(Reader(spec)(row_of(work)))).to_pylist()
    low = np.min([said["low"] for said in bounds], axis=0)
    high = np.max([said["high"] for said in bounds], axis=0)
    bench.precision, bench.ranges = "int8", Ranges(tuple(low.tolist()), tuple(high.tolist()))
    receipt, _ = bench.embed()
    step = (high - low) / 255
    seen = []
    for (view, prompt), said in zip(PROMPTS.items(), bounds, strict=True):
        part = bench.part(receipt, view)
        wanted = expected(model, view.task, prompt, mode, part)
        assert (said["task"], said["num_vectors"]) == (view.task, len(wanted))
        stored = vectors_of(part)
        assert stored.dtype == np.int8
        restored = low + (stored.astype(np.float64) + 128.5) * step
        assert (np.abs(restored - wanted) <= 0.5 * step + 1e-4).all()
        seen.append(wanted)
    bench.precision, bench.ranges, bench.out = "binary", None, tmp_path / "binary"
    receipt, _ = bench.embed()
    for view, wanted in zip(PROMPTS, seen, strict=True):
        signs = np.unpackbits(vectors_of(bench.part(receipt, view)), axis=1).astype(bool)
        assert (signs == (wanted > 0))[np.abs(wanted) > 1e-4].all()
    np.testing.assert_allclose(low, np.concatenate(seen).min(axis=0), atol=1e-4)
    np.testing.assert_allclose(high, np.concatenate(seen).max(axis=0), atol=1e-4)
