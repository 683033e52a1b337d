"""A stage's process takes what Ray gave it and no more, and has as many fragments in hand as it may."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pyarrow as pa
import pytest

from jobs.actors import Embed, _quick_imports

# Stands in for the reader: how many threads the tokenizer makes.
COUNT = """
import os
import jobs.read
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from jobs.actors import Read

def num_threads():
    return len(os.listdir("/proc/self/task"))

def num_made(_):
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    before = num_threads()
    tokenizer.encode_batch(["a"] * 1000)
    return num_threads() - before

jobs.read.Reader = num_made
print(Read._load(None, None))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
@pytest.mark.parametrize(
    ("said", "num_threads"),
    [
        ({"OMP_NUM_THREADS": "5"}, 5),  # as Ray says it
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"OMP_NUM_THREADS": "0"}, 1),
        ({"OMP_NUM_THREADS": "5", "RAYON_NUM_THREADS": "3"}, 3),  # as the user does
    ],
    ids=str,
)
def test_a_reader_has_as_many_tokenizer_threads_as_cores(said: dict[str, str], num_threads: int) -> None:
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment | said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == num_threads


class Stage:
    """Stands in for a stage: sees how many fragments are in it, and in all stages, at the same time."""

    one_at_a_time = True
    restarted = False
    lock = threading.Lock()
    inside: ClassVar[list[Stage]] = []
    most_in_all = 0

    def __init__(self, _: bytes) -> None:
        self.most = 0

    def __call__(self, row: pa.Table) -> pa.Table:
        with self.lock:
            self.inside.append(self)
            self.most = max(self.most, self.inside.count(self))
            Stage.most_in_all = max(Stage.most_in_all, len(self.inside))
        time.sleep(0.02)
        with self.lock:
            self.inside.remove(self)
        return row


class Shared(Stage):
    """One that has several in hand."""

    one_at_a_time = False


class Restarted(Shared):
    """The same, after a death."""

    restarted = True


def most_at_once(*stages: type[Stage]) -> tuple[list[int], int]:
    """Fragments that were in each stage at the same time, and in all of them."""
    Stage.most_in_all = 0
    embed = Embed(b"", stages)  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(embed, [pa.table({"a": [1]})] * 12))
    return [stage.most for _, stage in embed._stages], Stage.most_in_all  # type: ignore[attr-defined]


def test_a_process_reads_and_writes_one_fragment_at_a_time_and_encodes_several() -> None:
    (read, encoded, written), in_all = most_at_once(Stage, Shared, Stage)
    assert (read, written) == (1, 1)
    assert encoded >= 2
    assert in_all > encoded


def test_a_process_that_was_started_again_does_one_thing_to_one_fragment_at_a_time() -> None:
    assert most_at_once(Restarted, Restarted, Restarted) == ([1, 1, 1], 1)


def test_stages_load_without_the_garbage_collector_and_go_on_with_it() -> None:
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    with _quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), _quick_imports():
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()
    gc.disable()
    try:
        with _quick_imports():
            pass
        assert not gc.isenabled()  # as it was told to be
    finally:
        gc.enable()
        gc.unfreeze()
