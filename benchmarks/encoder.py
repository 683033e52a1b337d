"""The encoder alone against others on the same texts, model and cores, and against what the machine can multiply.

    python benchmarks/encoder.py docs.parquet --model "$(python examples/minilm.py)" --texts 3000 --rounds 3

Each way is loaded once in a process of its own, warmed up, and then waits; a round runs one after the other, so that a
machine whose speed drifts drifts under all. Counted are the seconds from texts to vectors, tokenizing included. What
matters are the ratios to sentence-transformers with its defaults, and the cosines to its vectors (float32). The onnx
ways need `pip install '.[bench]'`; they are left out where that is missing.

`of peak` is what the linear layers reach, at 2 operations a weight and token, of the largest product that this machine
does in that number format with all cores; `at these shapes` is what the model's own products reach alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import engines
import numpy as np
import pyarrow.parquet as pq
import torch
from engines import BASELINE, CORES, WAYS

from encoders.devices import cpu_has_bfloat16


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", help="a Parquet file with the column text")
    parser.add_argument("--model", required=True, help="a folder in the sentence-transformers format")
    parser.add_argument(
        "--texts", type=int, default=3000, help="how many, spread over the corpus (default 3000)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--floors", nargs="+", type=floor, default=[], metavar="WAY=RATIO", help="fail if a median is lower"
    )
    args = parser.parse_args()
    if left_out := {way for way, _ in args.floors} - set(args.ways):
        parser.error(f"a floor for {', '.join(sorted(left_out))}, which --ways leaves out")
    has_onnx = all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))
    names = [name for name in args.ways if has_onnx or not name.startswith("onnx")]
    if not cpu_has_bfloat16():  # emulated, or slower than float32: nobody's choice
        names = [name for name in names if WAYS[name].dtype != "bfloat16"]
    names = list(dict.fromkeys((BASELINE, *names)))
    texts = pq.read_table(args.corpus, columns=["text"])["text"].to_pylist()
    texts = texts[:: max(1, len(texts) // args.texts)][: args.texts]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "texts.json").write_text(json.dumps(texts))
        ratios = compare(Path(folder), args.model, texts, names, args.rounds)
    low = [
        f"{way} {ratios[way]:.2f}, not {least}"
        for way, least in args.floors
        if ratios.get(way, least) < least
    ]
    if low:
        raise SystemExit(f"below their floors, ratios to {BASELINE}: {'; '.join(low)}")


def floor(text: str) -> tuple[str, float]:
    """A way and its lowest ratio."""
    way, _, ratio = text.partition("=")
    if way not in WAYS:
        raise argparse.ArgumentTypeError(f"{way!r} is none of {', '.join(WAYS)}")
    return way, float(ratio)


def compare(
    folder: Path, model: str, texts: Sequence[str], names: Sequence[str], rounds: int
) -> dict[str, float]:
    """Start every way, run the rounds in turn, print what came of them; returns the median ratios."""
    num_tokens, num_weights, widths = facts(model, texts)
    ways = {name: Way(name, folder, model, texts) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way.run())
        told = ", ".join(f"{name} {num_tokens / taken[-1]:,.0f}" for name, taken in seconds.items())
        print(f"round {number + 1}, tokens/s: {told}", flush=True)
    vectors = {name: way.finish() for name, way in ways.items()}
    expected = vectors[BASELINE]
    print(f"\n{len(texts):,} texts, {num_tokens:,} tokens, {CORES} cores, medians of {rounds} rounds\n")
    print(
        "| way | tokens/s | ratio, lowest to highest | GFLOP/s | of peak | lowest cosine |\n|---|---|---|---|---|---|"
    )
    medians: dict[str, float] = {}
    peaks = {dtype: product_speed(2048, 2048, 2048, dtype) for dtype in ("float32", "bfloat16")}
    for name in names:
        ratios = [theirs / ours for theirs, ours in zip(seconds[BASELINE], seconds[name], strict=True)]
        medians[name] = statistics.median(ratios)
        speed = num_tokens / statistics.median(seconds[name])
        gigaflops = 2 * num_weights * speed / 1e9
        peak = peaks.get(WAYS[name].dtype)
        share = "" if peak is None else f"{100 * gigaflops / peak:.0f} %"
        cosine = (vectors[name].astype(np.float64) * expected).sum(1) / (
            np.linalg.norm(vectors[name].astype(np.float64), axis=1) * np.linalg.norm(expected, axis=1)
        )
        print(
            f"| {name} | {speed:,.0f} | {medians[name]:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {gigaflops:.0f} | {share} | {cosine.min():.5f} |"
        )
    for dtype, peak in peaks.items():
        shapes = [(2048, k, n) for k, n in widths]
        at_shapes = ", ".join(f"{k} x {n} {product_speed(m, k, n, dtype):.0f}" for m, k, n in shapes)
        print(f"\n{dtype}: peak {peak:.0f} GFLOP/s; 2,048 tokens at these shapes: {at_shapes}")
    return medians


def facts(model: str, texts: Sequence[str]) -> tuple[int, int, list[tuple[int, int]]]:
    """Tokens of the texts, weights of the model's linear layers, and the shapes of those."""
    from encoders.loading import load_backbone
    from encoders.protocol import resolve_protocol
    from encoders.tokenizer import Tokenizer

    protocol = resolve_protocol(model)
    backbone = load_backbone(protocol, torch.float32)
    linear = [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    ]
    num_tokens = len(Tokenizer(protocol).prepare(texts).token_ids)
    shapes = dict.fromkeys((module.in_features, module.out_features) for module in linear)
    return num_tokens, sum(module.weight.numel() for module in linear), list(shapes)


@torch.inference_mode()
def product_speed(num_rows: int, width: int, num_columns: int, dtype: str) -> float:
    """GFLOP/s of one matrix product on all cores, by torch's own way or oneDNN's, the best of a few tries."""
    from encoders.linear import PackedLinear

    torch.set_num_threads(CORES)
    kind = getattr(torch, dtype)
    states = torch.randn(num_rows, width).to(kind)
    plain = torch.nn.Linear(width, num_columns, bias=False, dtype=kind)
    fastest = float("inf")
    for layer in (plain, PackedLinear(plain)):
        for _ in range(12):
            started = time.perf_counter()
            layer(states)
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * num_rows * width * num_columns / fastest / 1e9


class Way:
    """The processes of one way, each with its share of the texts, waiting for the word to start."""

    def __init__(self, name: str, folder: Path, model: str, texts: Sequence[str]) -> None:
        self._folder, self._name = folder, name
        count = CORES if WAYS[name].process_a_core else 1
        self._rows = [np.arange(len(texts))[core::count] for core in range(count)]
        command = [sys.executable, engines.__file__, model, str(folder), name]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"} if count > 1 else dict(os.environ)
        self._processes = [
            subprocess.Popen(
                [*command, str(core if count > 1 else -1)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for core in range(count)
        ]
        for process in self._processes:
            self._hear(process)

    def run(self) -> float:
        """Seconds until the last process has its vectors."""
        started = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
        for process in self._processes:
            self._hear(process)
        return time.perf_counter() - started

    def _hear(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line == "ready\n":
                return
        raise SystemExit(f"{self._name} ended with exit code {process.wait()}")

    def finish(self) -> np.ndarray[Any, Any]:
        """The vectors of the last round, in the order of the texts."""
        for process in self._processes:
            process.communicate()
        parts = [np.load(self._folder / f"{self._name}-{core}.npy") for core in range(len(self._processes))]
        vectors = np.empty((sum(map(len, self._rows)), parts[0].shape[1]), np.float32)
        for rows, part in zip(self._rows, parts, strict=True):
            vectors[rows] = part
        return vectors


if __name__ == "__main__":
    main()
