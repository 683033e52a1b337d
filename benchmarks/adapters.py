"""What adapters cost: a merged backbone against the bare one, and four tasks in one run against four runs.

    python benchmarks/adapters.py --rows 350 --rounds 12

A repository in the layout of jina-embeddings-v5-text-small is written with random weights (speed does not depend on
them), and paragraphs of Python's own documentation are the corpus. The first part alternates between the two encoders
on the same tokens, and times a switch between adapters. The second runs the job's three stages as one worker does,
without Ray, in processes of their own: one with four tasks, and four with one. All are CPU seconds of one thread; a
whole process counts from its start, imports included. The third runs the job itself, one with four views and four with
one, on a corpus of long texts that it reads from a local S3 server: seconds of the clock without Ray's start.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from moto.server import ThreadedMotoServer
from peft import LoraConfig, get_peft_model
from s3fs import S3FileSystem
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model
from transformers.utils import logging as transformers_logging

from encoders.adapters import Adapters
from encoders.encoder import Encoder
from encoders.protocol import Protocol, resolve_protocol
from encoders.tasks import view_of
from encoders.tokenizer import Tokenizer
from jobs.corpus import list_corpus
from jobs.encode import EncodeFragment
from jobs.footers import Columns, read_footers
from jobs.plan import lay_out
from jobs.read import Reader
from jobs.rows import Reading
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.storage import Location
from jobs.write import Writer

Result = TypeVar("Result")
TASKS = ("retrieval", "text-matching", "clustering", "classification")


def main() -> None:
    """Write the model and the corpus, measure both, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=350)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--stages", nargs=2, metavar=("FOLDER", "TASKS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if args.stages:
        print(json.dumps(run_stages(Path(args.stages[0]), args.stages[1].split(","))))
        return
    texts = [text for topic in topics.values() for text in topic.split("\n\n") if len(text) > 100]
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder, "model"), texts, args.layers, args.width)
        corpus = Path(folder, "corpus", "shard.parquet")
        corpus.parent.mkdir()
        pq.write_table(pa.table({"id": range(args.rows), "text": texts[: args.rows]}), corpus)
        compare_forward(resolve_protocol(str(model)), texts[: args.rows], args.rounds)
        compare_runs(folder, max(1, args.rounds // 6))
        compare_jobs(model, texts, args.rows, max(1, args.rounds // 6))


def compare_forward(protocol: Protocol, texts: Sequence[str], rounds: int) -> None:
    """The same tokens through the bare backbone and through one with a merged adapter, in turn."""
    prepared = Tokenizer(protocol).prepare(texts, "Document: ")
    bare = Encoder.load(replace(protocol, adapters=Adapters()), device="cpu")
    merged = Encoder.load(protocol, adapters=["clustering"], device="cpu")
    ratios = []
    for number in range(rounds + 1):
        order = (bare, merged) if number % 2 else (merged, bare)
        spent = {encoder: cpu_seconds(partial(encoder.encode, prepared))[0] for encoder in order}
        seconds = [spent[bare], spent[merged]]
        if number:  # the first round warms up
            ratios.append(seconds[1] / seconds[0])
            print(
                f"round {number}: bare {seconds[0]:.2f} s, merged {seconds[1]:.2f} s, {ratios[-1]:.3f} x",
                flush=True,
            )
    both = Encoder.load(protocol, adapters=["clustering", "retrieval"], device="cpu")
    both.use_adapter("retrieval")
    switches = [cpu_seconds(partial(both.use_adapter, name))[0] for name in ("clustering", "retrieval") * 3]
    print(f"a switch: {1000 * statistics.median(switches):.1f} ms, median of {len(switches)}")
    print(
        f"merged / bare, median of {rounds}: {statistics.median(ratios):.3f} x ({len(prepared.token_ids):,} tokens)"
    )


def compare_runs(folder: str, rounds: int) -> None:
    """Four tasks in one run, and one after the other."""

    def run(*tasks: str) -> dict[str, float]:
        command = [sys.executable, __file__, "--stages", folder, ",".join(tasks)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        spent: dict[str, float] = json.loads(done.stdout)
        print(", ".join(tasks), spent, flush=True)
        return spent

    ratios: dict[str, list[float]] = {"working": [], "process": []}
    for _ in range(rounds):
        together, apart = run(*TASKS), [run(task) for task in TASKS]
        for what, found in ratios.items():
            found.append(together[what] / sum(spent[what] for spent in apart))
    for what, found in ratios.items():
        print(
            f"{what}: four tasks in one run / four runs, median of {rounds}: {statistics.median(found):.3f} x"
        )


def compare_jobs(model: Path, texts: Sequence[str], num_rows: int, rounds: int) -> None:
    """The whole job on texts that are hundreds of times as long as the model takes, from S3."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    aws = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    os.environ |= aws | {"AWS_DEFAULT_REGION": "us-east-1"}
    store = S3FileSystem()
    store.mkdir("adapters")
    long_texts = [" ".join(texts[row % 100 : row % 100 + 300]) for row in range(num_rows)]
    with store.open("adapters/corpus/shard.parquet", "wb") as file:
        pq.write_table(pa.table({"id": range(num_rows), "text": long_texts}), file)

    def seconds(name: str, *tasks: str) -> float:
        views = ", ".join(tasks).replace("retrieval", "retrieval/document")
        places = [
            "--input",
            "s3://adapters/corpus",
            "--output",
            f"s3://adapters/{name}",
            "--model",
            str(model),
        ]
        settings = [f"output.views=[{views}]", "encoder.max_seq_length=64"]
        command = [sys.executable, "-m", "jobs.embed", *places, "--ray-address", "local"]
        command += [part for setting in settings for part in ("--set", setting)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        )
        summary = json.loads(done.stdout)
        return float(summary["seconds"] - summary["ray_start_seconds"])

    ratios = []
    for number in range(rounds):
        together = seconds(f"{number}-all", *TASKS)
        apart = [seconds(f"{number}-{task}", task) for task in TASKS]
        ratios.append(together / sum(apart))
        told = ", ".join(f"{one:.1f}" for one in apart)
        print(f"jobs on S3: four tasks {together:.1f} s, one each {told} s, {ratios[-1]:.3f} x", flush=True)
    characters = sum(map(len, long_texts)) // num_rows
    print(
        f"jobs on S3, median of {rounds}: {statistics.median(ratios):.3f} x ({characters:,} characters a text)"
    )
    server.stop()


def run_stages(folder: Path, tasks: Sequence[str]) -> dict[str, float]:
    """One reader, one encoder and one writer on the whole corpus: CPU seconds, prompts and encodings."""
    protocol = resolve_protocol(str(folder / "model"))
    corpus, output = folder / "corpus", folder / "-".join(("output", *tasks))
    listed = list_corpus(Location(str(corpus)))
    columns = Columns("id", ("text",), ())
    layout = lay_out(listed, None, read_footers(listed.location, listed.shards, columns), columns, 10**6)
    reading = Reading(columns, " ", layout.carried)
    (shard,), ((piece,),) = listed.shards, layout.cuts.values()
    fragment = piece.of(shard, reading.record().digest)
    views = [view_of(task, "document") for task in tasks]
    specs = tuple(
        ViewSpec(
            view, protocol.prompt(view), protocol.space(view.task, "float32"), {}, protocol.adapter(view)
        )
        for view in views
    )
    run = RunSpec(
        corpus=listed.location,
        reading=reading,
        skip_bad_shards=False,
        protocol=protocol,
        views=specs,
        device="cpu",
        num_threads=1,
        dtype="float32",
        precision="float32",
        preflight=False,
        max_batch_tokens="auto",
        output=Location(str(output)),
        compression_level=3,
        row_group_rows=10_000,
    )
    work = Work(fragment, {str(spec.view): fragment.part_path(spec.view, spec.space) for spec in specs})
    row = pa.table({"work": pa.array([work.to_json()], pa.binary())})
    loading, (read, encode, write) = cpu_seconds(lambda: (Reader(run), EncodeFragment(run), Writer(run)))
    working, spent = cpu_seconds(lambda: write(encode(read(row))).to_pylist()[0])
    counts = {name: spent[name] for name in ("num_prompts", "num_encodings")}
    return counts | {"loading": loading, "working": working, "process": time.process_time()}


def cpu_seconds(action: Callable[[], Result]) -> tuple[float, Result]:
    """What an action took of this process, and its result."""
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


def write_model(folder: Path, texts: Sequence[str], layers: int, width: int) -> Path:
    """A jina-embeddings-v5-text-small of another size: backbone, tokenizer, four adapters of rank 32."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    backbone = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 128,
            head_dim=128,
            max_position_embeddings=512,
            pad_token_id=0,
        )
    )
    backbone.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "jina_embeddings_v5", "architectures": ["JinaEmbeddingsV5Model"]}
    (folder / "config.json").write_text(json.dumps(config | {"task_names": TASKS}))
    settings = {"prompts": {"query": "Query: ", "document": "Document: "}, "default_prompt_name": "document"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    for task in TASKS:
        adapted = get_peft_model(
            deepcopy(backbone),
            LoraConfig(r=32, lora_alpha=32, target_modules=targets, init_lora_weights="gaussian"),
        )
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        adapted.save_pretrained(str(folder / "adapters" / task))
    return folder


if __name__ == "__main__":
    main()
