"""A stage's process takes what Ray gave it and no more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
