"""Each row of the table against its authors' recipe, and against sentence-transformers where that can load the layout.

That each comparison would see what is broken is shown in test_family_mutations; what is refused, in
test_silent_failures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from encoders.errors import TaskError
from encoders.families import FAMILIES
from encoders.family import Prompt
from encoders.tasks import View
from encoders.tokenizer import Tokenizer
from tests.encoders.family_repositories import LAYOUTS, write_family
from tests.encoders.family_rows import (
    LAST_IDS,
    NOT_THEIRS,
    PROMPTS,
    SUFFIXES,
    TEXTS_OF,
    Loaded,
    Rows,
    ends_of,
    padded,
    resolve,
    row_of,
    view,
    views_of,
)
from tests.encoders.reference import assert_same, cosines
from tests.encoders.repositories import TEXTS

FIRST_VIEWS = {row: next(iter(views_of(row))) for row in LAYOUTS}


def test_every_view_of_every_row_has_a_layout_a_test_and_its_facts() -> None:
    tested = [row_of(row) for row in LAYOUTS]
    assert {family.name for family in tested} == {family.name for family in FAMILIES}
    assert len(tested) == len(FAMILIES)
    assert PROMPTS.keys() == LAYOUTS.keys()
    for row in LAYOUTS:
        prompts = row_of(row).prompts
        assert set(views_of(row)) == {View(task, role) for task in prompts for role in prompts[task]}, row
    ids = [name for family in FAMILIES for name in (*family.repositories, *family.unreadable)]
    assert len(set(ids)) == len(ids)
    for family in FAMILIES:
        facts = (family.licence, family.source, family.prompts, family.max_seq_length, family.attention)
        assert all(facts), family.name


@pytest.mark.parametrize(
    ("row", "of"),
    [pytest.param(row, of, id=f"{row}-{of}") for row in LAYOUTS for of in views_of(row)],
)
def test_prompt_ids_and_vectors_are_those_of_the_authors_recipe(row: str, of: View, rows: Rows) -> None:
    loaded = rows[row]
    expected, fed = loaded.reference(of)
    prompt = loaded.protocol.prompt(of)
    assert prompt == Prompt(views_of(row)[of], SUFFIXES.get(row, ""))
    prepared = loaded.tokenizer.prepare(TEXTS_OF, prompt)
    ids = [
        prepared.token_ids[a:b].tolist() for a, b in zip(prepared.offsets, prepared.offsets[1:], strict=False)
    ]
    assert ids == fed
    first, last = ends_of(row)
    vocabulary = loaded.tokenizer._backend
    assert first is None or {vocabulary.id_to_token(one[0]) for one in ids} == {first}
    assert last is None or {vocabulary.id_to_token(one[-1]) for one in ids} == {last}
    assert LAST_IDS.get(row, ids[0][-1]) == ids[0][-1]
    pooled = {"cls": first, "lasttoken": last}.get(LAYOUTS[row].pooling)
    shown = f"{pooled!r} ({vocabulary.token_to_id(pooled)})" if pooled else "the text's own"
    assert loaded.tokenizer.pooled_token(prompt) == (None if LAYOUTS[row].pooling == "mean" else shown)
    assert_same(loaded.encode(prepared, of).vectors, expected)


@pytest.mark.parametrize("row", [row for row in LAYOUTS if row not in NOT_THEIRS])
def test_vectors_are_those_of_sentence_transformers(row: str, rows: Rows) -> None:
    loaded = rows[row]
    model = SentenceTransformer(str(loaded.folder), device="cpu", local_files_only=True)
    for prefix in dict.fromkeys(views_of(row).values()):
        vectors = loaded.encoder.encode(loaded.tokenizer.prepare(TEXTS, prefix)).vectors
        theirs = np.stack([model.encode(text, prompt=prefix, show_progress_bar=False) for text in TEXTS])
        if row.startswith("nomic-ai/"):  # as its card goes on
            theirs = torch.nn.functional.layer_norm(torch.from_numpy(theirs), theirs.shape[-1:]).numpy()
        assert cosines(vectors, theirs).min() >= 0.99999, prefix


def test_instructor_is_sentence_transformers_instructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the instruction out of the mean for the model's id alone; a relative folder can have that name."""
    row = "hkunlp/instructor-large"
    loaded = Loaded(row, write_family(tmp_path / row, row))
    prompt = loaded.protocol.prompt(view("retrieval/query"))
    vectors = loaded.encoder.encode(loaded.tokenizer.prepare(TEXTS, prompt)).vectors
    monkeypatch.chdir(tmp_path)
    model = SentenceTransformer(row, device="cpu", local_files_only=True)
    theirs = np.stack(
        [model.encode(text.strip(), prompt=prompt.prefix, show_progress_bar=False) for text in TEXTS]
    )
    assert_same(vectors, theirs)


@pytest.mark.parametrize("row", LAYOUTS)
def test_padding_shows_in_no_vector(row: str, rows: Rows) -> None:
    """Packed texts have none, so the padded path is taken here, with texts of all lengths in one batch."""
    loaded, of = rows[row], FIRST_VIEWS[row]
    prepared = loaded.tokenizer.prepare(TEXTS_OF, loaded.protocol.prompt(of))
    with padded(loaded.encoder):
        encoded = loaded.encode(prepared, of)
    assert encoded.num_padding > 0
    assert_same(encoded.vectors, loaded.reference(of)[0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", LAYOUTS)
def test_the_side_that_the_tokenizer_pads_shows_in_no_vector_of_any_view(
    row: str, side: str, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "model", row)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": side}))
    loaded = Loaded(row, folder)
    for of in views_of(row):
        prepared = loaded.tokenizer.prepare(TEXTS_OF, loaded.protocol.prompt(of))
        expected = loaded.reference(of)[0]
        assert_same(loaded.encode(prepared, of).vectors, expected)
        with padded(loaded.encoder):
            assert_same(loaded.encode(prepared, of).vectors, expected)


def test_an_end_token_that_the_row_adds_is_added_once(tmp_path: Path) -> None:
    row = "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
    without = Tokenizer(resolve(write_family(tmp_path / "without", row), row))
    having = Tokenizer(resolve(write_family(tmp_path / "with", row, around="$A <|endoftext|>"), row))
    ids = without.prepare(TEXTS).token_ids
    assert np.array_equal(ids, having.prepare(TEXTS).token_ids)
    assert (ids == without._backend.token_to_id("<|endoftext|>")).sum() == len(TEXTS)


@pytest.mark.parametrize("row", [row for row in LAYOUTS if any(ends_of(row)) and row not in SUFFIXES])
def test_a_long_text_is_cut_and_never_its_special_tokens(row: str, rows: Rows) -> None:
    tokenizer = Tokenizer(resolve(rows[row].folder, row, max_seq_length=20))
    prepared = tokenizer.prepare(["solar panels " * 40, "Paris"])
    first, last = ends_of(row)
    tokens = [tokenizer._backend.id_to_token(number) for number in prepared.token_ids]
    assert (prepared.lengths[0], tokens[19], tokens[-1]) == (20, last, last)
    assert first in (None, tokens[0])
    assert prepared.truncated.tolist() == [True, False]


@pytest.mark.parametrize("words", [0, 3, 11, 12, 13, 14, 30, 300])
def test_a_long_text_is_cut_and_never_what_stands_behind_it(words: int, rows: Rows) -> None:
    row = "zeroentropy/zembed-1"
    tokenizer = Tokenizer(resolve(rows[row].folder, row, max_seq_length=40))
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


def test_a_prompt_and_suffix_that_leave_no_room_are_an_error(rows: Rows) -> None:
    row = "zeroentropy/zembed-1"
    tokenizer = Tokenizer(resolve(rows[row].folder, row, max_seq_length=12))
    with pytest.raises(TaskError, match="leaves no room for a text in the 12 tokens"):
        tokenizer.prepare(["Paris"], tokenizer.protocol.prompt(view("retrieval/query")))
