"""Each row of the table against its authors' recipe, and against sentence-transformers where that can load the layout.

The prompts are written out here once more, byte by byte: a row that changes must be changed in two places.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from encoders.encoder import Encoder
from encoders.errors import TaskError, UnsupportedModelError
from encoders.families import FAMILIES
from encoders.family import Prompt
from encoders.jina import MERGED
from encoders.modules import Standardize
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.repository import open_repository
from encoders.tasks import View, view_of
from encoders.tokenizer import Tokenizer
from tests.encoders.family_repositories import LAYOUTS, recipe, write_family
from tests.encoders.reference import Vectors, assert_same, cosines, unit
from tests.encoders.repositories import TEXTS, edit_json

WEB = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
BARE = {
    "retrieval/query": "",
    "retrieval/document": "",
    "text-matching": "",
    "classification": "",
    "clustering": "",
}
E5 = dict.fromkeys(BARE, "query: ") | {"retrieval/document": "passage: "}
WIKI = "Represent the Wikipedia question for retrieving supporting documents: "
CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"

# Row -> view -> what goes before the text; the texts of a symmetric task are documents.
PROMPTS: dict[str, dict[str, str]] = {
    "intfloat/e5-base-v2": E5,
    "intfloat/multilingual-e5-base": E5,
    "intfloat/multilingual-e5-large-instruct": {
        "retrieval/query": WEB + " ",
        "retrieval/document": "",
        "text-matching": "Instruct: Retrieve semantically similar text.\nQuery: ",
    },
    "intfloat/e5-mistral-7b-instruct": {"retrieval/query": WEB + " ", "retrieval/document": ""},
    "Alibaba-NLP/gte-base-en-v1.5": BARE,
    "Alibaba-NLP/gte-multilingual-base": BARE,
    "Alibaba-NLP/gte-modernbert-base": BARE,
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": {"retrieval/query": WEB + " ", "retrieval/document": ""},
    "BAAI/bge-base-en-v1.5": BARE
    | {"retrieval/query": "Represent this sentence for searching relevant passages: "},
    "BAAI/bge-m3": BARE,
    "hkunlp/instructor-large": {"retrieval/query": WIKI.strip(), "clustering": WIKI.strip()},
    "Qwen/Qwen3-Embedding-0.6B": {"retrieval/query": WEB, "retrieval/document": ""},
    "zeroentropy/zembed-1": {
        "retrieval/query": CHAT.format("query"),
        "retrieval/document": CHAT.format("document"),
    },
    "jinaai/jina-embeddings-v5-text-small-retrieval": {
        "retrieval/query": "Query: ",
        "retrieval/document": "Document: ",
    },
    "jinaai/jina-embeddings-v5-text-nano-clustering": {
        "clustering": "Document: ",
        "clustering/query": "Query: ",
    },
    "jinaai/jina-embeddings-v3-hf": BARE
    | {
        "retrieval/query": "Represent the query for retrieving evidence documents: ",
        "retrieval/document": "Represent the document for retrieval: ",
    },
    "google/embeddinggemma-300m": {
        "retrieval/query": "task: search result | query: ",
        "retrieval/document": "title: none | text: ",
        "text-matching": "task: sentence similarity | query: ",
        "classification": "task: classification | query: ",
        "clustering": "task: clustering | query: ",
        "code/query": "task: code retrieval | query: ",
        "code/document": "title: none | text: ",
    },
    "nomic-ai/nomic-embed-text-v1.5": {
        "retrieval/query": "search_query: ",
        "retrieval/document": "search_document: ",
        "classification": "classification: ",
        "clustering": "clustering: ",
    },
    "Snowflake/snowflake-arctic-embed-m-v2.0": BARE | {"retrieval/query": "query: "},
    "Snowflake/snowflake-arctic-embed-l-v2.0": BARE | {"retrieval/query": "query: "},
    "ibm-granite/granite-embedding-english-r2": BARE,
    "sentence-transformers/all-MiniLM-L6-v2": BARE,
}
SUFFIXES = {"zeroentropy/zembed-1": "<|im_end|>\n"}
# First and last special tokens that are promised, by row; "" is one that the tokenizer must not add.
ENDS = {
    "intfloat/e5-mistral-7b-instruct": ("<s>", "</s>"),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": (None, "<|endoftext|>"),
    "Qwen/Qwen3-Embedding-0.6B": (None, "<|endoftext|>"),
    "jinaai/jina-embeddings-v5-text-nano-clustering": (None, "<|end_of_text|>"),
}
# Layouts that sentence-transformers 6.2 cannot load as their authors mean them.
NOT_THEIRS = {
    "intfloat/e5-mistral-7b-instruct": "it leaves out the </s>",
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": "it leaves out the end token",
    "zeroentropy/zembed-1": "it knows no suffix",
    "jinaai/jina-embeddings-v5-text-small-retrieval": "it means the tokens without modules.json",
    "jinaai/jina-embeddings-v5-text-nano-clustering": "it means the tokens without modules.json",
    "hkunlp/instructor-large": "by its id only; see the test of that",
}
TEXTS_OF = [text.strip() for text in TEXTS]


def options_of(folder: Path, row: str, **more: Any) -> EncoderOptions:
    told: dict[str, Any] = {"instruction": WIKI} if row.startswith("hkunlp/") else {}
    if row == "jinaai/jina-embeddings-v3-hf":  # its bare backbone here; its adapters have tests of their own
        told["adapters"] = dict.fromkeys(("retrieval", "text-matching", "classification", "clustering"))
    if LAYOUTS[row].code is not None:
        repository = open_repository(str(folder), remote_code=True)
        told["trust_remote_code"] = (f"{repository.name}@{repository.revision}",)
    return EncoderOptions(protocol=row, **told, **more)


def resolve(folder: Path, row: str, **more: Any) -> Protocol:
    return resolve_protocol(str(folder), options=options_of(folder, row, **more))


def view(name: str) -> View:
    task, _, role = name.partition("/")
    return view_of(task, role or None)


def finished(pooled: Vectors, folder: Path, row: str) -> Vectors:
    """What the authors do after pooling, written out for the few that do anything but divide by the norm."""
    states = torch.from_numpy(pooled)
    for weights in sorted(folder.glob("*_Dense/model.safetensors")):
        states = states @ load_file(weights)["linear.weight"].double().T
    if row.startswith("nomic-ai/"):
        states = torch.nn.functional.layer_norm(states, states.shape[-1:])
    return unit(states.numpy())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A repository of each row, written when it is first asked for."""
    root = tmp_path_factory.mktemp("families")

    class Folders(dict[str, Path]):
        def __missing__(self, row: str) -> Path:
            self[row] = write_family(root / row, row)
            return self[row]

    return Folders()


def test_every_row_has_a_layout_a_test_and_its_facts() -> None:
    tested = {family.name for family in FAMILIES for row in PROMPTS if row in family.repositories}
    assert {family.name for family in FAMILIES if family not in MERGED} - tested == {
        "jinaai/jina-embeddings-v5-text-small",  # their adapters have tests of their own
        "jinaai/jina-embeddings-v5-text-nano",
    }
    assert PROMPTS.keys() == LAYOUTS.keys()
    ids = [repository for family in FAMILIES for repository in family.repositories]
    assert len(set(ids)) == len(ids)
    assert all(
        family.licence and family.source and family.prompts and family.max_seq_length for family in FAMILIES
    )


@pytest.mark.parametrize("row", LAYOUTS)
def test_ids_and_vectors_are_those_of_the_authors_recipe(row: str, folders: dict[str, Path]) -> None:
    folder = folders[row]
    protocol = resolve(folder, row)
    tokenizer, encoder = Tokenizer(protocol), Encoder.load(protocol, device="cpu")
    suffix = SUFFIXES.get(row, "")
    instruction = WIKI.strip() if row.startswith("hkunlp/") else ""
    seen: set[str] = set()
    for name, prefix in PROMPTS[row].items():
        prompt = protocol.prompt(view(name))
        assert prompt == Prompt(prefix, suffix), name
        if prefix in seen:
            continue
        seen.add(prefix)
        prepared = tokenizer.prepare(TEXTS_OF, prompt)
        pooled, fed = recipe(folder, [prefix + text + suffix for text in TEXTS_OF], row, instruction)
        ids = [
            prepared.token_ids[a:b].tolist()
            for a, b in zip(prepared.offsets, prepared.offsets[1:], strict=False)
        ]
        assert ids == fed, name
        first, last = ENDS.get(row, (None, None))
        vocabulary = tokenizer._backend
        assert {vocabulary.id_to_token(one[0]) for one in ids} == {first} or first is None
        assert {vocabulary.id_to_token(one[-1]) for one in ids} == {last} or last is None
        assert_same(encoder.encode(prepared).vectors, finished(pooled, folder, row))


@pytest.mark.parametrize("row", [row for row in LAYOUTS if row not in NOT_THEIRS])
def test_vectors_are_those_of_sentence_transformers(row: str, folders: dict[str, Path]) -> None:
    folder = folders[row]
    protocol = resolve(folder, row)
    tokenizer, encoder = Tokenizer(protocol), Encoder.load(protocol, device="cpu")
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    for name, prefix in PROMPTS[row].items():
        vectors = encoder.encode(tokenizer.prepare(TEXTS, protocol.prompt(view(name)))).vectors
        theirs = np.stack([model.encode(text, prompt=prefix, show_progress_bar=False) for text in TEXTS])
        if row.startswith("nomic-ai/"):  # as its card goes on
            theirs = torch.nn.functional.layer_norm(torch.from_numpy(theirs), theirs.shape[-1:]).numpy()
        assert cosines(vectors, theirs).min() >= 0.99999, name


def test_instructor_is_sentence_transformers_instructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the instruction out of the mean for the model's id alone; a relative folder can have that name."""
    row = "hkunlp/instructor-large"
    folder = write_family(tmp_path / row, row)
    protocol = resolve(folder, row)
    vectors = (
        Encoder.load(protocol, device="cpu")
        .encode(Tokenizer(protocol).prepare(TEXTS, protocol.prompt(view("retrieval/query"))))
        .vectors
    )
    monkeypatch.chdir(tmp_path)
    model = SentenceTransformer(row, device="cpu", local_files_only=True)
    theirs = np.stack(
        [model.encode(text.strip(), prompt=WIKI.strip(), show_progress_bar=False) for text in TEXTS]
    )
    assert_same(vectors, theirs)


@pytest.mark.parametrize("row", [row for row in LAYOUTS if any(PROMPTS[row].values())])
def test_one_byte_of_the_prompt_shows_in_every_vector(row: str, folders: dict[str, Path]) -> None:
    protocol = resolve(folders[row], row)
    tokenizer, encoder = Tokenizer(protocol), Encoder.load(protocol, device="cpu")
    name = next(name for name, prefix in PROMPTS[row].items() if prefix)
    right = protocol.prompt(view(name))
    wrong = [replace(right, prefix="x" + right.prefix[1:])]
    wrong += [replace(right, suffix=""), replace(right, suffix="<|im_end|>")] if right.suffix else []
    vectors = encoder.encode(tokenizer.prepare(TEXTS_OF, right)).vectors
    for prompt in wrong:
        broken = encoder.encode(tokenizer.prepare(TEXTS_OF, prompt)).vectors
        assert cosines(vectors, broken).max() < 0.99999, prompt


@pytest.mark.parametrize("row", [row for row in LAYOUTS if LAYOUTS[row].modules])
def test_a_repository_that_pools_otherwise_than_its_row_is_refused(row: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", row)
    mode = "mean" if LAYOUTS[row].pooling != "mean" else "cls"
    (folder / "1_Pooling" / "config.json").write_text(f'{{"pooling_mode": "{mode}"}}')
    with pytest.raises(UnsupportedModelError, match=rf"say pooling '{mode}', and the row of .* says"):
        resolve(folder, row)


def test_a_repository_that_declares_another_prompt_than_its_row_is_refused(folders: dict[str, Path]) -> None:
    row = "Qwen/Qwen3-Embedding-0.6B"
    folder = folders[row]
    declared = folder / "config_sentence_transformers.json"
    before = declared.read_text()
    edit_json(declared, prompts={"query": WEB + " ", "document": ""})
    try:
        with pytest.raises(
            UnsupportedModelError, match=r"the prompt 'Instruct.*Query: ', and the row of .*Query:'"
        ):
            resolve(folder, row)
        mine = {"retrieval": {"query": WEB, "document": ""}}
        assert resolve(folder, row, prompts=mine).prompt(view("retrieval/query")).prefix == WEB
    finally:
        declared.write_text(before)


@pytest.mark.parametrize(
    ("row", "changed", "message"),
    [
        (
            "Qwen/Qwen3-Embedding-0.6B",
            {"appended": None},
            r"puts the special tokens \[\] around.*<\|endoftext\|> last",
        ),
        (
            "jinaai/jina-embeddings-v5-text-nano-clustering",
            {"appended": None},
            r"special tokens \[\] around.*<\|end_of_text\|> last",
        ),
        (
            "jinaai/jina-embeddings-v5-text-small-retrieval",
            {"appended": "<|endoftext|>"},
            r"special tokens \['<\|endoftext\|>'\] around.*none at all",
        ),
        ("zeroentropy/zembed-1", {"appended": "<|endoftext|>"}, "none at all"),
        ("jinaai/jina-embeddings-v5-text-nano-clustering", {"extra": (), "appended": None}, "has none such"),
    ],
)
def test_a_tokenizer_with_other_ends_than_the_row_says_is_refused(
    row: str, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    protocol = resolve(write_family(tmp_path / "model", row, **changed), row)
    with pytest.raises(UnsupportedModelError, match=message):
        Tokenizer(protocol)


def test_a_model_that_only_its_own_code_computes_is_refused_without_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    row = "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
    with pytest.raises(
        UnsupportedModelError, match=r"nothing but code of its own gives the vectors.*may not run"
    ):
        resolve_protocol(str(folders[row]), options=EncoderOptions(protocol=row))
    without = write_family(tmp_path / "model", row, changes={}, code=None)
    with pytest.raises(UnsupportedModelError, match=r"config\.json names none"):
        resolve(without, row)


def test_an_end_token_that_the_row_adds_is_added_once(tmp_path: Path) -> None:
    row = "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
    without = Tokenizer(resolve(write_family(tmp_path / "without", row), row))
    having = Tokenizer(resolve(write_family(tmp_path / "with", row, appended="<|endoftext|>"), row))
    ids = without.prepare(TEXTS).token_ids
    assert np.array_equal(ids, having.prepare(TEXTS).token_ids)
    assert (ids == without._backend.token_to_id("<|endoftext|>")).sum() == len(TEXTS)


@pytest.mark.parametrize("row", ENDS)
def test_a_long_text_is_cut_and_never_its_special_tokens(row: str, folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(resolve(folders[row], row, max_seq_length=20))
    prepared = tokenizer.prepare(["solar panels " * 40, "Paris"])
    first, last = ENDS[row]
    tokens = [tokenizer._backend.id_to_token(number) for number in prepared.token_ids]
    assert (prepared.lengths[0], tokens[19], tokens[-1]) == (20, last, last)
    assert first in (None, tokens[0])
    assert prepared.truncated.tolist() == [True, False]


@pytest.mark.parametrize(
    "row",
    [
        "intfloat/e5-mistral-7b-instruct",
        "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        "hkunlp/instructor-large",
        "nomic-ai/nomic-embed-text-v1.5",
    ],
)
def test_what_a_row_does_besides_its_prompts_shows_in_every_vector(
    row: str, folders: dict[str, Path]
) -> None:
    """An end token, a mean without the instruction, a layer norm: without these, vectors are plausible and wrong."""
    prompt = Prompt(WIKI.strip()) if row.startswith("hkunlp/") else Prompt()
    right = resolve(folders[row], row)
    without = replace(
        right,
        family=None,
        pooling=replace(right.pooling, include_prompt=True),
        steps=tuple(step for step in right.steps if not isinstance(step, Standardize)),
    )
    vectors, broken = (
        Encoder.load(protocol, device="cpu").encode(Tokenizer(protocol).prepare(TEXTS_OF, prompt)).vectors
        for protocol in (right, without)
    )
    assert cosines(vectors, broken).max() < 0.99999


@pytest.mark.parametrize("words", [0, 3, 11, 12, 13, 14, 30, 300])
def test_a_long_text_is_cut_and_never_what_stands_behind_it(words: int, folders: dict[str, Path]) -> None:
    row = "zeroentropy/zembed-1"
    folder = folders[row]
    tokenizer = Tokenizer(resolve(folder, row, max_seq_length=40))
    prompt = tokenizer.protocol.prompt(view("retrieval/document"))
    text = "solar " * words
    prepared = tokenizer.prepare([text, "Paris"], prompt)
    whole = tokenizer._backend.encode
    tokenizer._backend.no_truncation()
    entire, suffix = whole(prompt.around(text)).ids, whole(prompt.suffix).ids
    ids = prepared.token_ids[: prepared.offsets[1]].tolist()
    assert ids[-len(suffix) :] == suffix
    assert prepared.truncated.tolist() == [len(entire) > 40, False]
    assert ids == (entire if len(entire) <= 40 else entire[: 40 - len(suffix)] + suffix)


def test_a_prompt_and_suffix_that_leave_no_room_are_an_error(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(resolve(folders["zeroentropy/zembed-1"], "zeroentropy/zembed-1", max_seq_length=12))
    with pytest.raises(TaskError, match="leaves no room for a text in the 12 tokens"):
        tokenizer.prepare(["Paris"], tokenizer.protocol.prompt(view("retrieval/query")))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", ["Qwen/Qwen3-Embedding-0.6B", "intfloat/e5-mistral-7b-instruct"])
def test_the_last_real_token_is_pooled_whatever_side_the_tokenizer_pads(
    row: str, side: str, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "model", row)
    edit_json(folder / "tokenizer_config.json", padding_side=side)
    protocol = resolve(folder, row)
    vectors = Encoder.load(protocol, device="cpu").encode(Tokenizer(protocol).prepare(TEXTS_OF)).vectors
    assert_same(vectors, finished(recipe(folder, TEXTS_OF, row)[0], folder, row))
