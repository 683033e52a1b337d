"""A driver that only plans starts at once: no torch, no transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.encoders.adapter_repositories import write_jina_v5
from tests.encoders.repositories import write_repository
from tests.encoders.rerank_repositories import write_classifier

HEAVY = """
heavy = {"torch", "transformers", "peft", "tokenizers", "safetensors", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
ENCODER = """
import sys
import encoders.protocol, encoders.tasks, encoders.space, encoders.repository
protocol = encoders.protocol.resolve_protocol(sys.argv[1])
view = encoders.tasks.view_of("retrieval", "query")
print(protocol.prompt(view).prefix, protocol.dim, protocol.adapter(view), protocol.space("retrieval", "float32").id)
"""
RERANKER = """
import sys
from encoders.rerank_protocol import resolve_reranker
print(resolve_reranker(sys.argv[1]).max_seq_length)
"""


def printed(script: str, folder: Path) -> str:
    """What a script that needs nothing heavy prints of a repository."""
    command = [sys.executable, "-c", script + HEAVY, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_protocol_is_read_without_torch_and_transformers(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", settings={"prompts": {"query": "query:"}})
    assert printed(ENCODER, folder).startswith("query: 32 None ")


def test_adapters_are_found_without_them_too(tmp_path: Path) -> None:
    folder = write_jina_v5(tmp_path / "model", "small")
    assert printed(ENCODER, folder).startswith("Query:  32 retrieval ")


def test_so_is_what_a_reranker_is_asked(tmp_path: Path) -> None:
    assert printed(RERANKER, write_classifier(tmp_path / "model")) == "64\n"
