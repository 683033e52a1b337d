"""A driver that only plans starts at once: no torch, no transformers."""

from __future__ import annotations

from pathlib import Path

from tests.encoders.adapter_repositories import write_jina_v5
from tests.encoders.repositories import write_repository
from tests.encoders.rerank_repositories import write_classifier
from tests.imports import printed_without

HEAVY = {"torch", "transformers", "peft", "tokenizers", "safetensors", "numpy"}
ENCODER = """
import encoders.protocol, encoders.tasks, encoders.space, encoders.repository
protocol = encoders.protocol.resolve_protocol(sys.argv[1])
view = encoders.tasks.view_of("retrieval", "query")
print(protocol.prompt(view).prefix, protocol.dim, protocol.adapter(view), protocol.space("retrieval", "float32").id)
"""
RERANKER = """
from encoders.rerank_protocol import resolve_reranker
print(resolve_reranker(sys.argv[1]).max_seq_length)
"""


def test_a_protocol_is_read_without_torch_and_transformers(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "model", settings={"prompts": {"query": "query:"}})
    assert printed_without(HEAVY, ENCODER, str(folder)).startswith("query: 32 None ")


def test_adapters_are_found_without_them_too(tmp_path: Path) -> None:
    folder = write_jina_v5(tmp_path / "model", "small")
    assert printed_without(HEAVY, ENCODER, str(folder)).startswith("Query:  32 retrieval ")


def test_so_is_what_a_reranker_is_asked(tmp_path: Path) -> None:
    assert printed_without(HEAVY, RERANKER, str(write_classifier(tmp_path / "model"))) == "64\n"
