"""The corpus of the demonstration: what is taken from a source file, and what must hold of the files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from examples.make_corpus import ROW_GROUP_ROWS, SCHEMA, Doc, source_docs, spread, tree_docs, write_shards

SOURCE = b'''"""A module of twenty or more characters."""

class Reader:
    """Reads things from a place that it was given."""

    def read(self):
        """Return the next thing,

        or None at the end.
        """
        def helper():
            """Nobody outside can call this function."""

    def close(self):
        """Too short."""

try:
    import fast
except ImportError:
    def slow():
        """Does the same as fast, but more slowly."""
'''


@pytest.fixture(scope="module")
def docs() -> list[Doc]:
    """Documentation of one real package of the standard library."""
    import email

    return list(tree_docs(Path(email.__file__).parent, "email"))


def test_each_kind_is_found_under_its_full_name() -> None:
    found = {doc.id: doc.kind for doc in source_docs(SOURCE, "pkg.mod")}
    assert found == {
        "pkg.mod": "module",
        "pkg.mod.Reader": "class",
        "pkg.mod.Reader.read": "method",
        "pkg.mod.slow": "function",
    }


def test_indentation_is_removed() -> None:
    text = next(doc.text for doc in source_docs(SOURCE, "pkg.mod") if doc.kind == "method")
    assert text == "Return the next thing,\n\nor None at the end."


def test_a_source_that_does_not_parse_gives_nothing() -> None:
    assert list(source_docs(b"print 'Python 2'", "old")) == []
    assert list(source_docs(b'"""a null byte\x00 in the middle"""', "odd")) == []


def test_sources_are_never_run(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text('"""Raises as soon as anybody imports it."""\nraise SystemExit(1)\n')
    assert [doc.id for doc in tree_docs(tmp_path)] == ["loud"]


def test_invalid_escapes_of_other_projects_do_not_warn() -> None:
    assert (
        len(list(source_docs(b'"""A module with a regular expression."""\nPATTERN = "\\d"\n', "module"))) == 1
    )


def test_text_is_always_utf8() -> None:
    (doc,) = source_docs(b'"""A lone surrogate \\ud800 inside a string."""', "module")
    assert doc.text == "A lone surrogate ? inside a string."


def test_tests_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "thing.py").write_text('"""A test module with enough characters."""')
    assert list(tree_docs(tmp_path, "pkg")) == []


def test_a_package_has_the_name_of_its_folder(docs: list[Doc]) -> None:
    kinds = {doc.id: doc.kind for doc in docs}
    assert kinds["email"] == "module"
    assert kinds["email.message.Message.get_payload"] == "method"


def test_a_spread_has_the_size_asked_for_and_reaches_every_module(docs: list[Doc]) -> None:
    some = spread(docs, len(docs) // 2)
    assert len(some) == len({doc.id for doc in some}) == len(docs) // 2
    large = {doc.module for doc in docs if sum(other.module == doc.module for other in docs) > 2}
    assert large <= {doc.module for doc in some}
    assert spread(docs, None) == spread(docs, 10**9) == docs


def test_shards_hold_every_row_once_in_bounded_row_groups(tmp_path: Path) -> None:
    docs = [
        Doc(f"m.f{number}", f"text number {number}", "m", "function")
        for number in range(2 * ROW_GROUP_ROWS + 5)
    ]
    write_shards(docs, tmp_path, num_shards=2)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == ["docs-00000-of-00002.parquet", "docs-00001-of-00002.parquet"]
    files = [pq.ParquetFile(path) for path in paths]
    assert all(file.schema_arrow.equals(SCHEMA) for file in files)
    assert [file.metadata.num_row_groups for file in files] == [2, 2]
    ids = [name for file in files for name in file.read(["id"])["id"].to_pylist()]
    assert sorted(ids) == sorted(doc.id for doc in docs)


def test_equal_docs_give_equal_bytes(tmp_path: Path, docs: list[Doc]) -> None:
    for run in ("one", "two"):
        write_shards(docs, tmp_path / run, num_shards=3)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_command_makes_a_corpus_once(tmp_path: Path) -> None:
    command = [sys.executable, "examples/make_corpus.py", str(tmp_path / "corpus"), "--max-docs", "2000"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2,000 texts" in first.stdout
    table = pq.read_table(tmp_path / "corpus")
    assert table.num_rows == len(set(table["id"].to_pylist())) == 2000
    lengths = sorted(len(text) for text in table["text"].to_pylist())
    assert lengths[0] >= 20
    assert lengths[-1] > 20 * lengths[1000]
    assert len(set(table["module"].to_pylist())) > 300

    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "holds Parquet files already" in second.stderr
