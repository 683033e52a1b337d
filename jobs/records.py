"""What is written beside the parts: receipts while a run is under way, and the manifest that makes it count.

    OUT/_receipts/<digest>.json     a fragment is complete in some views; gone once a manifest holds its content
    OUT/_rejects/.../<digest>.parquet
    OUT/_ranges/<digest>.json       of int8 vectors, before the first of them is written; gone like receipts
    OUT/_ids/<digest>.bits          what the ids of a fragment are recognised by (jobs/id_bits.py)
    OUT/_lock.json                  who has the output, while a run is under way (jobs/lease.py)
    OUT/_carried/<digest>.parquet   vectors of the dataset before, for one fragment of the next; gone likewise
    OUT/_manifest.json              the live parts; writing it is the commit
    OUT/_changes/.../<digest>       ids that a commit added, updated and deleted; see `jobs.changes`
    OUT/_manifests/                 manifests that were live before, see jobs.manifests

Names that begin with "_" are left out by pyarrow, Spark, Ray and pandas when they open the folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from encoders.quantization import Ranges
from encoders.space import digest
from jobs.footers import Columns
from jobs.fragments import Cut

MANIFEST = "_manifest.json"
RECEIPTS = "_receipts"
REJECTS = "_rejects"
RANGES = "_ranges"
CARRIED = "_carried"
CHANGES = "_changes"
IDS = "_ids"
MANIFESTS = "_manifests"


def receipt_path(receipt: str) -> str:
    """Where a receipt is that no manifest holds yet."""
    return f"{RECEIPTS}/{receipt}.json"


def bits_path(fragment: str) -> str:
    """Where the bits of a fragment's ids are."""
    return f"{IDS}/{fragment}.bits"


class _Record(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """A file of the output: where it is, and what must be in it."""

    path: str
    num_bytes: int
    sha256: str


class PartRecord(FileRecord):
    """The embeddings of one fragment in one view.

    Attributes:
        num_rows: Vectors.
        num_tokens: What the model saw for them.
        num_truncated: Vectors whose text the model did not see whole.
        num_chunked: Rows of the corpus that the vectors are chunks of; None where each row has one vector.
    """

    num_rows: int
    num_tokens: int
    num_truncated: int
    num_chunked: int | None = None

    @property
    def num_embedded(self) -> int:
        """Rows of the corpus that have a vector here."""
        return self.num_rows if self.num_chunked is None else self.num_chunked


class Receipt(_Record):
    """Proof that a fragment is complete in some views: rows = rows with vectors in each part + rejected rows.

    Attributes:
        fragment: The fragment's id.
        shard: Path of its shard in the corpus.
        num_rows: Rows read.
        rejected: Rows without a vector, by reason.
        rejects: Where those rows are named; None where there are none.
        parts: By view.
        take: Of the fragment.
    """

    fragment: str
    shard: str
    num_rows: int
    rejected: Mapping[str, int]
    rejects: FileRecord | None
    parts: Mapping[str, PartRecord]
    take: int = 0

    @property
    def id(self) -> str:
        """Digest of the parts; names the receipt's file while no manifest holds it."""
        return digest(sorted(part.path for part in self.parts.values()))

    @property
    def num_rejected(self) -> int:
        """Rows without a vector."""
        return sum(self.rejected.values())

    @property
    def balances(self) -> bool:
        """Whether every row that was read has a vector in each view, or is a reject."""
        return all(part.num_embedded + self.num_rejected == self.num_rows for part in self.parts.values())

    def files(self) -> list[FileRecord]:
        """The files that the receipt vouches for."""
        return [*self.parts.values(), *([self.rejects] if self.rejects else [])]


class ShardRecord(_Record):
    """A shard that the dataset was made from, and its fragments, so that an unchanged one need not be opened."""

    path: str
    version: str
    cuts: tuple[Cut, ...]


class ViewRecord(_Record):
    """What the vectors of one view are; `dim` counts dimensions, also where eight of them share a byte."""

    task: str
    role: str
    space_id: str
    space_name: str
    model: str
    revision: str
    adapter: str | None
    prompt: str
    suffix: str | None = None  # what stands behind a text, where the model wants something there
    dim: int
    precision: str
    normalized: bool
    ranges_digest: str | None = None


class RangesRecord(_Record):
    """The ranges of a task's int8 vectors, without which nobody can read them.

    Attributes:
        ranges: Ends of each dimension's range.
        sample: Digest of what they were calibrated on: space, views, fragments and rows.
        num_vectors: Of that sample.
    """

    ranges: Ranges
    sample: str
    num_vectors: int


class BadShardRecord(_Record):
    """A shard that was skipped, on purpose."""

    path: str
    version: str
    reason: str


class LongTextRecord(_Record):
    """What becomes of texts that are too long for the model; where there is none, their rest is cut.

    Attributes:
        mode: `reject`, `chunk` or `late_chunk`.
        chunk_tokens: Tokens of a chunk; None for as many as fit.
        chunk_overlap: Tokens that a chunk repeats of the one before.
        prompts: All of the run's, prefix and suffix, sorted: the longest decides what fits, for all views alike.
    """

    mode: str
    chunk_tokens: int | None
    chunk_overlap: int
    prompts: tuple[tuple[str, str], ...]

    @property
    def chunks(self) -> bool:
        """Whether a row may have several vectors."""
        return self.mode != "reject"


class ReadingRecord(_Record):
    """How rows became texts, and the types of what was carried along."""

    id_column: str
    text_columns: tuple[str, ...]
    text_joiner: str
    keep_columns: tuple[str, ...]
    carried: tuple[tuple[str, str], ...]
    carried_schema: str  # the same as a base64 Arrow schema
    long_text: LongTextRecord | None = None

    @property
    def columns(self) -> Columns:
        """What was read."""
        return Columns(self.id_column, self.text_columns, self.keep_columns)

    @property
    def digest(self) -> str:
        """Part of every fragment's id. Type names stand in for the schema's bytes, which a release may change."""
        unsaid = {"long_text"} if self.long_text is None else set()
        return digest(self.model_dump(mode="json", exclude={"carried_schema", *unsaid}))


class EncoderRecord(_Record):
    """How an encoder computed, where a configuration may say `auto`.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: Number format.
        max_batch_tokens: Of its batches.
    """

    device: str
    dtype: str
    max_batch_tokens: int


class RunRecord(_Record):
    """What a run was told and made of, for people: two runs may make the same dataset.

    Attributes:
        configuration: All of it, defaults included.
        python: Its version.
        packages: Versions.
        encoders: Each way in which its encoders computed; none where it embedded nothing.
    """

    configuration: Mapping[str, Any]
    python: str
    packages: Mapping[str, str]
    encoders: tuple[EncoderRecord, ...] = ()


# Of the manifest's fields, those that say nothing of what the dataset is.
CIRCUMSTANCES = frozenset({"committed_at", "run", "checksum"})


class Manifest(_Record):
    """The live dataset.

    Attributes:
        layout: Of these records.
        committed_at: UTC, ISO 8601.
        corpus: URI of the input.
        reading: How rows became texts.
        fragment_rows: Rows that a fragment should have.
        views: By view.
        ranges: By task; of int8 vectors only.
        shards: What was read.
        bad_shards: What was skipped.
        receipts: What was written.
        repeated_ids: Rows whose id an earlier one has, which are rejects, as ranges, by the fragment that they would be
            in otherwise; None where nobody looked.
        run: That committed it.
        checksum: Of the file's bytes but for this field; None where it was not read from a file.
    """

    layout: int = 1
    committed_at: str
    corpus: str
    reading: ReadingRecord
    fragment_rows: int
    views: Mapping[str, ViewRecord]
    ranges: Mapping[str, RangesRecord] = {}
    shards: tuple[ShardRecord, ...]
    bad_shards: tuple[BadShardRecord, ...]
    receipts: tuple[Receipt, ...]
    repeated_ids: Mapping[str, str] | None = None
    run: RunRecord | None = None
    checksum: str | None = None

    def equals(self, other: Manifest) -> bool:
        """Whether both are the same dataset, whenever and by whom they were committed; cheaper than two digests."""
        return self.model_copy(update={name: getattr(other, name) for name in CIRCUMSTANCES}) == other

    @property
    def num_rows(self) -> int:
        """Rows of the corpus."""
        return sum({receipt.fragment: receipt.num_rows for receipt in self.receipts}.values())

    def num_vectors(self) -> dict[str, int]:
        """Vectors by view."""
        counts: Counter[str] = Counter(dict.fromkeys(self.views, 0))
        for receipt in self.receipts:
            counts.update({view: part.num_rows for view, part in receipt.parts.items()})
        return dict(counts)

    def rejected(self) -> dict[str, int]:
        """Rows without a vector, by reason; a row counts once, however many views lack it."""
        by_fragment = {receipt.fragment: receipt.rejected for receipt in self.receipts}
        return dict(sum((Counter(rejected) for rejected in by_fragment.values()), Counter()))

    def bits_paths(self) -> set[str]:
        """Where the bits of its fragments' ids may be; of those that lose rows to earlier ones, before they do."""
        return {bits_path(one) for one in (*(r.fragment for r in self.receipts), *(self.repeated_ids or ()))}

    @property
    def digest(self) -> str:
        """Equal datasets, equal digests."""
        return digest(self.model_dump(mode="json", exclude=set(CIRCUMSTANCES)))
