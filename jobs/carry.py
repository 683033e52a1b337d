"""Vectors of texts that the output holds already, under another row, file or order: moved, not made again.

A producer that writes its corpus anew gives every shard another version, so every part falls away, and yet nearly
all texts are old. Their vectors are found by `text_hash`, in parts of the same view and space that fall away, those of
the dataset first, then those that an attempt finished and nobody committed (a first run was killed, say, before the
corpus changed):

    texts of new fragments -> hash, fragment      parts that fall away -> hash, part, row   (one column each is read)
    match    by hash      -> part, row, fragment
    fetch    by part      -> fragment, hash, vector        each part is read once, whole, and checked
    save     by fragment  -> OUT/_carried/<digest>.parquet, which reader and writer of that fragment look into

Vectors move once, and only those that are wanted. Below `SMALL_BYTES` the three steps run in one process; above,
each is a shuffle on the cluster (`jobs.joins`), where a process holds one bucket of one step. It costs one more read
of the new texts and one of the old parts, against encoding, which takes a hundred times longer.

Not for chunks, whose vectors may know the text around them. Not from parts that stay, either: a few new shards would
have all of the dataset's hashes read, three requests a part, for the texts that they repeat; nor from those that only
an earlier manifest names, which would double what is read and joined each time that all shards are written anew.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from encoders.space import digest
from jobs.cargo import as_vectors, grouped
from jobs.errors import CorpusError, OutputError
from jobs.footers import Columns
from jobs.fragments import part_path
from jobs.holdings import Holdings
from jobs.parquet import open_plain, reason_of
from jobs.plan import Plan
from jobs.records import CARRIED, PartRecord, Receipt
from jobs.rows import Reading, read_rows, text_hashes
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.storage import Store, open_store
from jobs.threads import in_threads

SMALL_BYTES = 256 * 2**20
_THREADS = 16
_PLACE_BITS = 32  # a place is a part's number, then a row's
_ROW_MASK = 2**_PLACE_BITS - 1

KEYS = pa.schema(
    [("text_hash", pa.binary(16)), ("fragment", pa.int32()), ("view", pa.int32()), ("place", pa.int64())]
)
MATCHES = pa.schema([("fragment", pa.int32()), ("part", pa.int32()), ("row", pa.int32())])


@dataclass(frozen=True)
class OldPart:
    """A part that falls away, and the view that it is of."""

    view: str
    record: PartRecord


@dataclass(frozen=True)
class CarryPlan:
    """Which fragments want vectors, and where vectors are.

    Attributes:
        work: What is to be made; of views that some old part has.
        parts: Those of the dataset first, else in an order of their own, for the first of two equal texts is taken.
        sources: Digest of these parts.
    """

    work: tuple[Work, ...]
    parts: tuple[OldPart, ...]
    sources: str

    @property
    def num_bytes(self) -> int:
        """To be read, compressed."""
        texts = sum(work.fragment.num_bytes for work in self.work)
        return texts + sum(part.record.num_bytes for part in self.parts)

    def path(self, work: Work) -> str:
        """Where the vectors of one fragment go."""
        return f"{CARRIED}/{digest([work.id, self.sources])}.parquet"

    def to_json(self) -> bytes:
        """As the bytes that travel."""
        return _CARRY_PLAN.dump_json(self)

    @staticmethod
    def from_json(content: bytes) -> CarryPlan:
        """Back from the bytes that travelled."""
        return _CARRY_PLAN.validate_json(content)


_CARRY_PLAN = TypeAdapter(CarryPlan)


def plan_carrying(
    plan: Plan, holdings: Holdings, views: Sequence[ViewSpec], reading: Reading
) -> tuple[CarryPlan, tuple[Work, ...]]:
    """What may be carried over, and the work that nothing can be carried to.

    A fragment that lacks views of both kinds is split in two.
    """
    if reading.long_text is not None and reading.long_text.chunks:
        return CarryPlan((), (), ""), plan.work
    specs = {str(spec.view): spec for spec in views}
    stay = {part.path for receipt in plan.existing for part in receipt.parts.values()}
    stay |= {path for work in plan.work for path in work.parts.values()}
    found: dict[str, OldPart] = {}
    for receipts in _sources(holdings, reading):
        fresh = [
            OldPart(name, part)
            for receipt in receipts
            for name, part in receipt.parts.items()
            if part.path not in stay
            and part.path not in found
            and part.num_rows
            and part.num_chunked is None
            and holdings.files.get(part.path) == part.num_bytes
            and name in specs
            and part.path == _path_in(specs[name], receipt)
        ]
        found |= {part.record.path: part for part in sorted(fresh, key=lambda part: part.record.path)}
    old = list(found.values())
    sources = {part.view for part in old}
    carrying: list[Work] = []
    rest: list[Work] = []
    for work in plan.work:
        for some, parts in (
            (carrying, {view: path for view, path in work.parts.items() if view in sources}),
            (rest, {view: path for view, path in work.parts.items() if view not in sources}),
        ):
            if parts:
                some.append(replace(work, parts=parts))
    return CarryPlan(tuple(carrying), tuple(old), digest(list(found))), tuple(rest)


def _sources(holdings: Holdings, reading: Reading) -> Iterator[Sequence[Receipt]]:
    """Receipts of parts without chunks whose texts were cut where this run would cut them, or not at all."""
    manifest, long_text = holdings.manifest, reading.long_text
    if manifest is not None and long_text in (None, manifest.reading.long_text):
        yield manifest.receipts
    if long_text is None:  # else nobody knows which texts their attempts have rejected
        yield holdings.loose


def _path_in(spec: ViewSpec, receipt: Receipt) -> str:
    """Where the vectors of a fragment are that this view's may be compared with."""
    view = spec.view
    return part_path(receipt.fragment, receipt.shard, view.task, view.role, spec.space.id, receipt.take)


def carry_over(
    run: RunSpec, store: Store, plan: CarryPlan, on_cluster: Callable[[RunSpec, CarryPlan], None]
) -> tuple[Work, ...]:
    """Bring the vectors of each fragment together; returns the work, which then says where they are.

    What an attempt that was killed had saved is kept, and a note says for which fragments all was done.

    Raises:
        OutputError: A part of the dataset is damaged.
        CorpusError: A new shard cannot be read.
    """
    known = {entry.path for entry in store.list(CARRIED)}
    for note in [path for path in known if path.endswith(".json")]:
        known |= set(json.loads(store.read(note)))
    todo = replace(plan, work=tuple(work for work in plan.work if plan.path(work) not in known))
    if todo.work:
        if todo.num_bytes <= SMALL_BYTES:
            carry_here(run, todo)
        else:
            on_cluster(run, todo)
        paths = sorted(map(todo.path, todo.work))
        store.create(f"{CARRIED}/{digest(paths)}.json", json.dumps(paths).encode())
    saved = {entry.path for entry in store.list(CARRIED)}
    return tuple(
        replace(work, carried=plan.path(work)) if plan.path(work) in saved else work for work in plan.work
    )


def carry_here(run: RunSpec, plan: CarryPlan) -> None:
    """All steps in this process."""
    steps = Steps(run, plan)
    keys = in_threads(steps.keys, range(len(plan.work) + len(plan.parts)), _THREADS)
    matches = match(pa.concat_tables(keys))
    by_part = [rows for _, rows in grouped(matches, "part")]
    vectors = list(in_threads(steps.fetch, by_part, _THREADS))
    if vectors:
        steps.save(pa.concat_tables(vectors))


def match(keys: pa.Table) -> pa.Table:
    """Where the vectors of new texts are; of equal old texts in one view, the first part's first row."""
    new = keys.filter(pc.less(keys["place"], 0)).select(["text_hash", "fragment"])
    old = keys.filter(pc.greater_equal(keys["place"], 0))
    first = old.group_by(["text_hash", "view"]).aggregate([("place", "min")])
    found = new.join(first, keys="text_hash", join_type="inner")
    places = found["place_min"].to_numpy()
    return pa.table(
        {
            "fragment": found["fragment"].combine_chunks(),
            "part": pa.array((places >> _PLACE_BITS).astype(np.int32)),
            "row": pa.array((places & _ROW_MASK).astype(np.int32)),
        },
        schema=MATCHES,
    )


class Steps:
    """The steps that touch storage; load it once in each process."""

    def __init__(self, run: RunSpec, plan: CarryPlan) -> None:
        self._run = run
        self._plan = plan
        self._corpus, self._output = open_store(run.corpus), open_store(run.output)
        columns = run.reading.columns
        self._reading = replace(
            run.reading,
            columns=Columns(columns.id_column, columns.text_columns, ()),
            carried=pa.schema([run.reading.carried.field(columns.id_column)]),
        )
        self._views = sorted({part.view for part in plan.parts})

    def keys(self, number: int) -> pa.Table:
        """What one file has to say: a fragment of the work, or behind those a part."""
        num_fragments = len(self._plan.work)
        return self._new_keys(number) if number < num_fragments else self._old_keys(number - num_fragments)

    def _new_keys(self, number: int) -> pa.Table:
        """Hashes of a fragment's texts, each once."""
        try:
            fragment = self._plan.work[number].fragment
            texts = read_rows(self._corpus, fragment, self._reading, self._run.max_fragment_bytes).texts
        except CorpusError:
            if not self._run.skip_bad_shards:
                raise
            texts = []
        return _keys(text_hashes(texts).unique(), fragment=number)

    def _old_keys(self, number: int) -> pa.Table:
        """Hashes of a part's texts, and where they stand."""
        part = self._plan.parts[number]
        try:
            with self._output.open(part.record.path) as file:
                hashes = open_plain(file).read(["text_hash"])["text_hash"]
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(part, reason_of(error)) from error
        if len(hashes) != part.record.num_rows:
            raise self._damaged(part, f"it has {len(hashes)} rows, not {part.record.num_rows}")
        return _keys(hashes.combine_chunks(), part=number, view=self._views.index(part.view))

    def fetch(self, matches: pa.Table) -> pa.Table:
        """The vectors that some of the parts have for fragments; a part is read once."""
        return pa.concat_tables(self._fetch(*rows) for rows in grouped(matches, "part"))

    def _fetch(self, number: int, matches: pa.Table) -> pa.Table:
        part = self._plan.parts[number]
        try:
            content = self._output.read(part.record.path)
        except OSError as error:
            raise self._damaged(part, str(error)) from error
        if hashlib.sha256(content).hexdigest() != part.record.sha256:
            raise self._damaged(part, "its checksum is not the one that the manifest has")
        table = open_plain(io.BytesIO(content)).read()
        vectors = as_vectors(table["embedding"])
        width = vectors.shape[1] * vectors.itemsize
        table = pa.table(
            {
                "text_hash": table["text_hash"],
                "num_tokens": table["num_tokens"],
                "truncated": table["truncated"],
                # as bytes, which joins and shuffles take as they are
                "embedding": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(width), len(vectors), [None, pa.py_buffer(np.ascontiguousarray(vectors))]
                ),
            }
        ).take(matches["row"])
        view = pa.array([part.view] * matches.num_rows, pa.string())
        return table.add_column(0, "fragment", matches["fragment"]).add_column(1, "view", view)

    def save(self, vectors: pa.Table) -> int:
        """One file a fragment, of the texts that have a vector in each of its views; returns how many texts."""
        num_texts = 0
        for number, rows in grouped(vectors, "fragment"):
            work = self._plan.work[number]
            counts = rows.group_by("text_hash").aggregate([("view", "count")])
            whole = counts.filter(pc.equal(counts["view_count"], len(work.parts)))["text_hash"]
            rows = rows.filter(pc.is_in(rows["text_hash"], value_set=whole.combine_chunks()))
            if not rows.num_rows:
                continue
            rows = rows.drop_columns(["fragment"]).sort_by(
                [("view", "ascending"), ("text_hash", "ascending")]
            )
            sink = pa.BufferOutputStream()
            pq.write_table(
                rows,
                sink,
                compression="none",
                use_dictionary=["view"],
                write_statistics=False,
                write_page_checksum=True,  # or what comes to harm here gets a right checksum with its new part
            )
            self._output.create(self._plan.path(work), sink.getvalue().to_pybytes())
            num_texts += len(whole)
        return num_texts

    def _damaged(self, part: OldPart, reason: str) -> OutputError:
        return OutputError(
            f"{self._run.output.uri}/{part.record.path} is damaged: {' '.join(reason.split())}; vectors were to be "
            "carried over from it. Bring it back, remove it (its texts are then embedded anew), or set "
            "output.carry_over=false"
        )


def _keys(hashes: pa.Array, *, fragment: int = -1, part: int = -1, view: int = -1) -> pa.Table:
    rows = np.arange(len(hashes), dtype=np.int64)
    places = rows + (part << _PLACE_BITS) if part >= 0 else np.full(len(hashes), -1, np.int64)
    numbers = [pa.array(np.full(len(hashes), number, np.int32)) for number in (fragment, view)]
    return pa.Table.from_arrays([hashes.cast(pa.binary(16)), *numbers, pa.array(places)], schema=KEYS)
