"""A corpus that every Python carries: the documentation strings of the standard library and of installed packages.

    python examples/make_corpus.py OUT [--num-shards 8] [--max-docs N]

The sources are parsed with `ast` and never imported, so nothing runs and nothing is printed. One row is one module,
class, function or method: thousands of real texts, from one line to tens of thousands of characters. The same
Python and packages give the same bytes.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Installed wherever the project is, and with texts of everyday length: numpy's and networkx's are several times as
# long, and would make a demonstration wait for them.
PACKAGES = ("click", "fsspec", "pyarrow", "requests", "rich")

# Tests document nothing; the others are applications, or other projects' files that come with an installation.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "_vendor",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)

MIN_CHARS = 20
ROW_GROUP_ROWS = 2000

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "module", "kind")])

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Doc:
    """One row of the corpus.

    Attributes:
        id: Its full name, as in `json.decoder.JSONDecoder.raw_decode`.
        text: The documentation string, without its indentation.
        module: The module that it is in.
        kind: module, class, function or method.
    """

    id: str
    text: str
    module: str
    kind: str


def source_docs(source: bytes, module: str) -> Iterator[Doc]:
    """The documentation strings of one source file, in its order; none where it does not parse.

    Functions inside functions are left out: nobody can call them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    candidates = [(module, "module", tree), *_definitions(tree, module, in_class=False)]
    for name, kind, node in candidates:
        text = ast.get_docstring(node)
        if text is not None and len(text) >= MIN_CHARS:
            # A lone surrogate is legal in a Python string and not in UTF-8.
            yield Doc(name, text.encode("utf-8", "replace").decode(), module, kind)


def _definitions(node: ast.AST, prefix: str, *, in_class: bool) -> Iterator[tuple[str, str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            name = f"{prefix}.{child.name}"
            yield name, "class", child
            yield from _definitions(child, name, in_class=True)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{child.name}", "method" if in_class else "function", child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _definitions(child, prefix, in_class=in_class)  # under an if, a try, a with


def tree_docs(root: Path, prefix: str = "") -> Iterator[Doc]:
    """The documentation strings of all source files below a folder, by path.

    Args:
        root: A package, or a folder of modules.
        prefix: The package's name; "" for a folder of modules.
    """
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts) and all(part.isidentifier() for part in parts):
            names = [prefix, *parts] if prefix else list(parts)
            module = ".".join(names[:-1] if names[-1] == "__init__" else names)
            yield from source_docs(path.read_bytes(), module)


def all_docs() -> list[Doc]:
    """Every documentation string of the standard library and of `PACKAGES`, by id, each id once.

    A name that is defined twice (a property and its setter, two branches of an `if`) keeps its first text.
    """
    paths = sysconfig.get_paths()
    docs: dict[str, Doc] = {}
    sources = [(Path(paths["stdlib"]), ""), *((Path(paths["purelib"]) / name, name) for name in PACKAGES)]
    for root, prefix in sources:
        for doc in tree_docs(root, prefix):
            docs.setdefault(doc.id, doc)
    return sorted(docs.values(), key=lambda doc: doc.id)


def spread(docs: Sequence[Doc], max_docs: int | None) -> list[Doc]:
    """At most so many of them, at even steps through the order, so that every module keeps its share."""
    if max_docs is None or max_docs >= len(docs):
        return list(docs)
    return [docs[place * len(docs) // max_docs] for place in range(max_docs)]


def write_shards(docs: Sequence[Doc], out: Path, num_shards: int) -> None:
    """Deal the rows out to Parquet files one by one, so that long and short texts are in each alike."""
    out.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        table = pa.Table.from_pylist([asdict(doc) for doc in docs[shard::num_shards]], schema=SCHEMA)
        path = out / f"docs-{shard:05d}-of-{num_shards:05d}.parquet"
        pq.write_table(table, path, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def main() -> None:
    """Write the corpus and say what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for the shards")
    parser.add_argument("--num-shards", type=int, default=8, help="Parquet files (default: 8)")
    parser.add_argument(
        "--max-docs", type=int, help="keep so many rows, spread over all modules (default: all)"
    )
    arguments = parser.parse_args()
    for name in ("num_shards", "max_docs"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')} is {number}; allowed: 1 or more")
    if any(arguments.out.glob("*.parquet")):
        parser.error(f"{arguments.out} holds Parquet files already; give a new folder, or remove that one")
    docs = spread(all_docs(), arguments.max_docs)
    write_shards(docs, arguments.out, arguments.num_shards)
    num_modules = len({doc.module for doc in docs})
    print(f"{len(docs):,} texts of {num_modules:,} modules in {arguments.num_shards} shards: {arguments.out}")


if __name__ == "__main__":
    main()
