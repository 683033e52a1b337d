"""A driver that only plans starts at once: no torch, no transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.encoders.adapter_repositories import write_jina_v5
from tests.encoders.repositories import write_repository

SCRIPT = """
import sys
import encoders.protocol, encoders.tasks, encoders.space, encoders.repository
protocol = encoders.protocol.resolve_protocol(sys.argv[1])
view = encoders.tasks.view_of("retrieval", "query")
print(protocol.prompt(view).prefix, protocol.dim, protocol.adapter(view), protocol.space("retrieval", "float32").id)
heavy = {"torch", "transformers", "peft", "tokenizers", "safetensors", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_protocol_is_read_without_torch_and_transformers(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", settings={"prompts": {"query": "query:"}})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("query: 32 None ")


def test_adapters_are_found_without_them_too(tmp_path: Path) -> None:
    folder = write_jina_v5(tmp_path / "model", "small")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Query:  32 retrieval ")
