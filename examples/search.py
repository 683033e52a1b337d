"""Ask an output of `jobs.embed` questions: embed them as retrieval queries, and show the nearest documents.

    python examples/search.py demo/embeddings --model "$(python examples/minilm.py)" "How do I compress a file?"

Exact search: one matrix product over all vectors, which lie in memory. Good for some million rows; beyond that load
the parts into an index. Only the parts that the manifest lists are read. Questions are embedded by the
configuration of the run that made the documents, which the manifest holds; a model whose vectors live in another space
is refused. They are quantised as the documents were: int8 with the manifest's ranges, binary to signs, whose distance
is Hamming's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from encoders.encoder import Encoder
from encoders.errors import TaskvecError
from encoders.protocol import Protocol
from encoders.quantization import Ranges, quantize, restore, sign_cosines
from encoders.tasks import Role, View
from encoders.tokenizer import Tokenizer
from jobs.cargo import as_vectors
from jobs.encoder_section import EncoderConfig
from jobs.errors import OutputError
from jobs.protocols import resolve, space_of
from jobs.record_files import read_manifest
from jobs.records import Manifest, ViewRecord
from jobs.storage import Location, Store, open_store

DOCUMENTS = View("retrieval", Role.DOCUMENT)
QUESTIONS = View("retrieval", Role.QUERY)
TEXT_COLUMN = "text"
MAX_WIDTH = 100


@dataclass(frozen=True)
class Documents:
    """What can be found.

    Attributes:
        ids: One per row.
        titles: First line of each text; empty where the run did not keep the text.
        vectors: `[num_rows, ...]` as they are stored.
    """

    ids: list[str]
    titles: list[str]
    vectors: npt.NDArray[Any]


def embed_questions(
    protocol: Protocol, encoder: EncoderConfig, questions: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Vectors of the questions, float32 `[num_questions, dim]`."""
    texts = Tokenizer(protocol).prepare(questions, protocol.prompt(QUESTIONS))
    loaded = Encoder.load(protocol, adapters=[protocol.adapter(QUESTIONS)], dtype=encoder.dtype)
    return loaded.encode(texts).vectors


def check_space(view: ViewRecord, protocol: Protocol, encoder: EncoderConfig) -> None:
    """Refuse a model whose vectors cannot be compared with those of the output.

    Raises:
        OutputError: The spaces differ.
    """
    space = space_of(protocol, encoder, view.task)
    if view.ranges_digest is not None:
        space = space.quantized(view.ranges_digest)
    if space.id != view.space_id:
        raise OutputError(
            f"the output is in the space {view.space_name} ({view.space_id[:12]}), and the questions would be in "
            f"{space}; vectors of two spaces cannot be compared: give the model that the output was made with"
        )


def read_documents(store: Store, manifest: Manifest) -> Documents:
    """The live rows of the view that is searched.

    Raises:
        OutputError: There are none.
    """
    keeps_text = TEXT_COLUMN in manifest.reading.keep_columns
    columns = [manifest.reading.id_column, "embedding", *([TEXT_COLUMN] if keeps_text else [])]
    ids: list[str] = []
    titles: list[str] = []
    vectors: list[npt.NDArray[Any]] = []
    for receipt in manifest.receipts:
        with store.open(receipt.parts[str(DOCUMENTS)].path) as file:
            table = pq.read_table(file, columns=columns)
        ids += map(str, table[manifest.reading.id_column].to_pylist())
        titles += map(_first_line, table[TEXT_COLUMN].to_pylist()) if keeps_text else [""] * table.num_rows
        vectors.append(as_vectors(table["embedding"]))
    if not ids:
        raise OutputError(
            f"{store.location.uri} has no rows in the view {DOCUMENTS}; there is nothing to find"
        )
    return Documents(ids, titles, np.concatenate(vectors))


def score(
    questions: npt.NDArray[Any], documents: npt.NDArray[Any], ranges: Ranges | None
) -> npt.NDArray[np.float32]:
    """Cosines `[num_questions, num_rows]` of vectors as they are stored; of packed signs those of the signs."""
    if documents.dtype == np.uint8:
        return sign_cosines(questions, documents)
    return _unit(restore(questions, ranges)) @ _unit(restore(documents, ranges)).T


def show(question: str, scores: npt.NDArray[np.float32], documents: Documents, num_answers: int) -> Table:
    """The best answers to one question, best first; `scores` is `[num_rows]`."""
    table = Table(
        title=Text(question, "bold"), title_justify="left", box=None, show_header=False, pad_edge=False
    )
    table.add_column(style="cyan", no_wrap=True, min_width=6)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for row in np.argsort(-scores, kind="stable")[:num_answers]:
        # As Text: brackets of a documentation string are no markup.
        table.add_row(f"{scores[row]:6.3f}", Text(documents.ids[row]))
        if documents.titles[row]:
            table.add_row("", Text(documents.titles[row], "dim"))
    return table


def search(
    uri: str, model: str, questions: Sequence[str], num_answers: int, endpoint_url: str | None = None
) -> None:
    """Answer the questions on the terminal.

    Raises:
        TaskvecError: There is no such output or model, or they do not belong together.
    """
    store = open_store(Location(uri, endpoint_url))
    manifest = read_manifest(store)
    if manifest is None:
        raise OutputError(f"{uri} holds no manifest, so nothing was published there; run jobs.embed first")
    view = manifest.views.get(str(DOCUMENTS))
    if view is None:
        raise OutputError(f"{uri} holds the views {', '.join(manifest.views)}; a search needs {DOCUMENTS}")
    configuration = manifest.run.configuration["encoder"] if manifest.run else {}
    encoder = EncoderConfig.model_validate({**configuration, "model": model})
    protocol = resolve(encoder)
    check_space(view, protocol, encoder)
    documents = read_documents(store, manifest)
    console = Console(highlight=False)
    console.width = min(console.width, MAX_WIDTH)
    calibrated = manifest.ranges.get(view.task)
    ranges = calibrated.ranges if calibrated else None
    asked = quantize(embed_questions(protocol, encoder, questions), view.precision, ranges)
    for question, scores in zip(questions, score(asked, documents.vectors, ranges), strict=True):
        console.print(show(question, scores, documents, num_answers), end="\n\n")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12)
    )
    return unit


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", metavar="OUT", help="output of jobs.embed, local or s3://")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--model", required=True, help="the model that the output was made with")
    parser.add_argument("--num-answers", type=int, default=3, help="answers per question (default: 3)")
    parser.add_argument("--endpoint-url", help="endpoint of an S3-compatible store")
    arguments = parser.parse_args()
    try:
        search(
            arguments.out, arguments.model, arguments.questions, arguments.num_answers, arguments.endpoint_url
        )
    except TaskvecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
