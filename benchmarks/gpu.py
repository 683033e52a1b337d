"""The encoder on one GPU, against the ways that people take today and against what the card can multiply.

    PYTHONPATH=. python3 benchmarks/gpu.py
    PYTHONPATH=. python3 benchmarks/gpu.py --corpus docs.parquet --tokenizer tokenizer.json --models qwen3-0.6b
    python benchmarks/gpu.py --tiny

Needs torch, transformers, peft and numpy, no Ray; sentence-transformers joins in where it is installed. Two models with
random weights, in bfloat16: Qwen3-0.6B with four adapters of rank 32, and EuroBERT-210M. Texts are as long as those of
a documentation corpus, or of 64 or of 8,192 tokens each. All ways of a model are loaded, run once to warm up (and to
compile), and then run in turn, round by round, so that a card whose clock drifts drifts under all. With the defaults
that is reckoned to take about ten minutes on an H200.

`the wall` is where the linear layers alone would run at the rate of the card's largest bfloat16 product, as measured in
the same run; `utilisation` counts the attention's operations too. `--tiny` runs the same code with two small layers;
without a GPU there is nothing to measure, the table says so, and what ran on the CPU is only shown to run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_ways import BARE, COMPILED, MERGED, PLAIN, Way, pack_on_the_cpu, ways_of
from shapes import SHAPES, Shape, corpus_lengths, random_texts, text_lengths, write_model
from transformers.utils import logging

from encoders.tokenized import TokenizedTexts

_NOT_MEASURED = "not measured"
_LARGE = 8192  # of the largest product, in each direction


def main() -> None:
    """Measure each model on texts of each length."""
    args = parsed()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        pack_on_the_cpu()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"no GPU, so {_NOT_MEASURED}"
    print(f"{name}; torch {torch.__version__}; medians of {args.rounds} rounds")
    size = 64 if args.tiny else _LARGE
    peak = product_speed(size, size, size, device)
    print(f"largest product in bfloat16: {teraflops(peak, device)}")
    for model in args.models:
        shape = SHAPES[model].tiny() if args.tiny else SHAPES[model]
        longest = max(512, *(int(kind) for kind in args.lengths if kind != "docs"), 0)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measure(args, model, shape, Path(folder), device, peak, longest)
        gc.collect()
        torch.cuda.empty_cache()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", help="docs, or tokens of each text (default docs 64 8192)")
    parser.add_argument("--corpus", type=Path, help="a Parquet file with the column text, for docs")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, for the corpus")
    parser.add_argument("--tokens", type=int, help="of all texts of a run (default 600,000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="texts in a padded batch (default 32)")
    parser.add_argument("--batch-tokens", type=int, help="tokens in one of our batches")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="WAY", help="ways to leave out, by a part of their name"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to write models (2 GB, default: for temporary files)"
    )
    parser.add_argument("--tiny", action="store_true", help="a small size of everything, for CPUs")
    args = parser.parse_args()
    if (args.corpus is None) != (args.tokenizer is None):
        parser.error("give --corpus and --tokenizer together, or neither")
    args.lengths = args.lengths or (["docs", "16", "256"] if args.tiny else ["docs", "64", "8192"])
    args.tokens = args.tokens or (3000 if args.tiny else 600_000)
    args.batch_tokens = args.batch_tokens or "auto"
    args.backend = "aot_eager" if args.tiny else "inductor"
    return args


def measure(
    args: argparse.Namespace,
    model: str,
    shape: Shape,
    folder: Path,
    device: torch.device,
    peak: float,
    longest: int,
) -> None:
    """Load all ways of one model, and run them on texts of each length."""
    protocol = write_model(folder, shape, device, longest)
    print(f"\n## {model}{' (tiny)' if args.tiny else ''}")
    shapes = {pair: shape.linear_weights.count(pair) for pair in dict.fromkeys(shape.linear_weights)}
    tokens = 256 if args.tiny else 16_384
    speeds = {pair: product_speed(tokens, *pair, device) for pair in shapes}
    seconds = sum(2 * tokens * a * b * count / speeds[a, b] for (a, b), count in shapes.items())
    told = ", ".join(f"{a} x {b} {teraflops(speed, device)}" for (a, b), speed in speeds.items())
    flop = shape.linear_flop([1])
    print(f"\nproducts of {tokens:,} tokens: {told}; {flop / 1e9:.3g} GFLOP a token in linear layers")
    if device.type == "cuda":
        print(f"the wall: {peak / flop:,.0f} tokens/s; at these shapes {tokens / seconds:,.0f}")
    ways: dict[str, Way] = {}
    for name, load in ways_of(protocol, device, args).items():
        if any(part in name for part in args.without):
            continue
        if name == "sentence-transformers" and importlib.util.find_spec("sentence_transformers") is None:
            continue
        ways[name] = load()
    for kind in args.lengths:
        rng = np.random.default_rng(0)
        if kind == "docs" and args.corpus:
            lengths = corpus_lengths(args.corpus, args.tokenizer, args.tokens, longest)
        else:
            lengths = text_lengths(kind, args.tokens, longest, rng)
        texts = random_texts(lengths, shape.sizes["vocab_size"], rng)
        print(f"\n{kind}: {len(lengths):,} texts, {sum(lengths):,} tokens, the longest {max(lengths):,}\n")
        compare(ways, texts, shape, device, peak, args.rounds)


def compare(
    ways: dict[str, Way], texts: TokenizedTexts, shape: Shape, device: torch.device, peak: float, rounds: int
) -> None:
    """Warm up, run the rounds in turn, print a table."""
    prepared = {name: way.prepare(texts) for name, way in ways.items()}
    first: dict[str, float] = {}
    vectors: dict[str, np.ndarray[Any, Any]] = {}
    memory: dict[str, float] = {}
    for name, way in ways.items():
        try:
            first[name], vectors[name], memory[name] = timed(lambda: way.run(prepared[name]), device)  # noqa: B023
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    seconds: dict[str, list[float]] = {name: [] for name in first}
    for _ in range(rounds):
        for name, each in seconds.items():
            each.append(timed(lambda: ways[name].run(prepared[name]), device)[0])  # noqa: B023
    print("| way | tokens/s | of the wall | utilisation | ratio | memory, MiB | lowest cosine | |")
    print("|---|---|---|---|---|---|---|---|")
    num_tokens, lengths = len(texts.token_ids), texts.lengths.tolist()
    linear, attention = shape.linear_flop(lengths), shape.attention_flop(lengths)
    for name, way in ways.items():
        if name not in seconds:
            print(f"| {name} | out of memory | | | | | | {way.note} |")
            continue
        taken = statistics.median(seconds[name])
        cosine = (
            (vectors[name] * vectors[PLAIN]).sum(1).min() if way.comparable and PLAIN in vectors else None
        )
        told = f"{cosine:.4f}" if cosine is not None else ""
        if device.type == "cpu":
            print(
                f"| {name} | {_NOT_MEASURED} | | | | | {told} | on the CPU {num_tokens / taken:,.0f} tokens/s |"
            )
            continue
        ratio = f"{median_ratio(seconds, PLAIN, name):.2f}" if PLAIN in seconds else ""
        used = 100 * (linear + attention) / taken / peak
        print(
            f"| {name} | {num_tokens / taken:,.0f} | {100 * linear / taken / peak:.0f} % "
            f"| {used:.0f} % | {ratio} | {memory[name]:,.0f} | {told} | {way.note} |"
        )
    if BARE in seconds and MERGED in seconds:
        slower = f"{100 * (median_ratio(seconds, MERGED, BARE) - 1):+.1f} % of the bare backbone's time"
        print(f"\na merged adapter: {slower if device.type == 'cuda' else _NOT_MEASURED}")
    if COMPILED in seconds:
        later = statistics.median(seconds[COMPILED])
        print(f"\ncompiling: the first pass took {first[COMPILED]:.1f} s, a later one {later:.2f} s")


def timed(
    action: Callable[[], np.ndarray[Any, Any]], device: torch.device
) -> tuple[float, np.ndarray[Any, Any], float]:
    """Seconds of an action, what it gave, and the MiB of device memory that it took besides what was there."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    started = time.perf_counter()
    result = action()
    if cuda:
        torch.cuda.synchronize(device)
    taken = time.perf_counter() - started
    return taken, result, (torch.cuda.max_memory_allocated(device) - before) / 2**20 if cuda else 0.0


def median_ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """How much longer one way takes than another, in the median round."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def product_speed(num_rows: int, width: int, num_columns: int, device: torch.device) -> float:
    """Operations a second of one matrix product in bfloat16, over a few of them in a row, of random numbers."""
    left, right = (
        torch.randn(count, width, device=device, dtype=torch.bfloat16) for count in (num_rows, num_columns)
    )
    tries = 20 if device.type == "cuda" else 2

    def products() -> np.ndarray[Any, Any]:
        for _ in range(tries):
            torch.nn.functional.linear(left, right)
        return np.empty(0)

    taken = min(timed(products, device)[0] for _ in range(4))
    return 2 * tries * num_rows * width * num_columns / taken


def teraflops(speed: float, device: torch.device) -> str:
    """A card's speed; a CPU's says nothing here."""
    return f"{speed / 1e12:.0f} TFLOP/s" if device.type == "cuda" else _NOT_MEASURED


if __name__ == "__main__":
    main()
