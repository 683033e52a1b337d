"""Ways that corpora are embedded today, each as its documentation shows it: what `benchmarks/job.py` compares with.

    python benchmarks/rivals.py ray CORPUS --model MODEL --cores 2 --output FOLDER

Every way reads the same Parquet shards, takes the same cores and writes Parquet, but for `encoder`, `actor` and
`encode`, which write nothing. Prints the seconds from the first read to the last vector written, with loading the model
wherever the job's time has that too (`ray`, `daft`, `processes`, `actor`); Ray's start is left out, as it is of the
job's time.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def main() -> None:
    """Run one way and print its seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("corpus", type=Path, help="a folder of Parquet files with the columns id and text")
    parser.add_argument("--model", required=True, help="a folder in the sentence-transformers format")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--dtype", default="float32", help="of `encoder` and `actor`; the others have their own defaults"
    )
    args = parser.parse_args()
    print(WAYS[args.way](args.corpus, args.model, args.cores, args.output, args.dtype))


def encode(corpus: Path, model: str, _cores: int, _output: Path, _dtype: str) -> float:
    """sentence-transformers' `encode` with its defaults, all texts in one call; loading is not counted."""
    from sentence_transformers import SentenceTransformer

    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    encoder = SentenceTransformer(model, device="cpu")
    started = time.perf_counter()
    encoder.encode(texts)
    return time.perf_counter() - started


def processes(corpus: Path, model: str, cores: int, output: Path, _dtype: str) -> float:
    """sentence-transformers' own pool, a process of one thread a core."""
    from sentence_transformers import SentenceTransformer

    started = time.perf_counter()
    table = pq.read_table(corpus)
    encoder = SentenceTransformer(model, device="cpu")
    pool = encoder.start_multi_process_pool(["cpu"] * cores)
    vectors = encoder.encode(table["text"].to_pylist(), pool=pool)
    encoder.stop_multi_process_pool(pool)
    output.mkdir()
    pq.write_table(table.append_column("embedding", as_lists(np.asarray(vectors))), output / "all.parquet")
    return time.perf_counter() - started


def ray(corpus: Path, model: str, cores: int, output: Path, _dtype: str) -> float:
    """Ray Data's recipe: `read_parquet`, an actor a core with a model, `write_parquet`."""
    import ray
    from sentence_transformers import SentenceTransformer

    class Embed:
        def __init__(self) -> None:
            self.model = SentenceTransformer(model, device="cpu")

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch["embedding"] = self.model.encode(list(batch["text"]))
            return batch

    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.perf_counter()
    # With whole cores for the actors there is none for those that read and write, and the run never ends.
    dataset = ray.data.read_parquet(str(corpus)).map_batches(Embed, concurrency=cores, num_cpus=0.5)
    dataset.write_parquet(str(output))
    return time.perf_counter() - started


def daft(corpus: Path, model: str, _cores: int, output: Path, _dtype: str) -> float:
    """Daft's `embed_text` on its native runner."""
    import daft
    from daft.functions import embed_text

    started = time.perf_counter()
    frame = daft.read_parquet(f"{corpus}/*.parquet")
    embedded = embed_text(frame["text"], provider="transformers", model=model)
    frame.with_column("embedding", embedded).write_parquet(str(output))
    return time.perf_counter() - started


def encoder(corpus: Path, model: str, cores: int, _output: Path, dtype: str) -> float:
    """The job's own encoder without the job: all texts tokenized and encoded in one call; loading is not counted."""
    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    tokenizer, loaded = load(model, cores, dtype)
    started = time.perf_counter()
    loaded.encode(tokenizer.prepare(texts))
    return time.perf_counter() - started


def actor(corpus: Path, model: str, cores: int, _output: Path, dtype: str) -> float:
    """The job's own encoder in an actor of Ray Data, a call a shard, and nothing else: what any job on it takes.

    Texts come from memory, vectors stay where they are, and nothing is planned, checked or committed.
    """
    import ray

    class Embed:
        def __init__(self) -> None:
            from jobs.actors import _quick_imports

            with _quick_imports():
                self.tokenizer, self.encoder = load(model, cores, dtype)

        def __call__(self, shard: pa.Table) -> pa.Table:
            vectors = self.encoder.encode(self.tokenizer.prepare(shard["text"].to_pylist())).vectors
            return pa.table({"num_rows": [len(vectors)]})

    shards = [pq.read_table(path, columns=["text"]) for path in sorted(corpus.glob("*.parquet"))]
    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # as in the job
    started = time.perf_counter()
    pool = ray.data.ActorPoolStrategy(
        size=1,
        max_concurrent_calls_per_actor=cores + 1,
        max_tasks_in_flight_per_actor=cores + 3,
        enable_true_multi_threading=True,
    )
    dataset = ray.data.from_blocks(shards).map_batches(
        Embed, batch_size=None, batch_format="pyarrow", num_cpus=cores, compute=pool
    )
    embedded = sum(row["num_rows"] for row in dataset.iter_rows())
    seconds = time.perf_counter() - started
    assert embedded == sum(map(len, shards))
    return seconds


def load(model: str, cores: int, dtype: str) -> tuple[Any, Any]:
    """The job's tokenizer and encoder of a model."""
    from encoders.allocator import keep_freed_memory
    from encoders.encoder import Encoder
    from encoders.protocol import resolve_protocol
    from encoders.tokenizer import Tokenizer

    keep_freed_memory()
    protocol = resolve_protocol(model)
    tokenizer = Tokenizer(protocol)
    return tokenizer, Encoder.load(protocol, device="cpu", dtype=dtype, num_threads=cores)  # type: ignore[arg-type]


def as_lists(vectors: np.ndarray) -> pa.Array:
    """Fixed-size lists from vectors `[num_texts, dim]`."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


WAYS: dict[str, Callable[[Path, str, int, Path, str], float]] = {
    way.__name__: way for way in (encode, processes, ray, daft, encoder, actor)
}

if __name__ == "__main__":
    main()
