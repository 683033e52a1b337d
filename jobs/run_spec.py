"""What every worker of a run is told: one small picklable value, the same for all fragments."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import TypeAdapter

from encoders.family import Prompt
from encoders.protocol import Protocol
from encoders.quantization import QUANTIZED, Ranges
from encoders.space import Space, digest
from encoders.tasks import View
from jobs.encoder_section import Dtype
from jobs.errors import FileChangedError, StorageError
from jobs.footers import MAX_FRAGMENT_BYTES
from jobs.fragments import Fragment
from jobs.rows import Reading
from jobs.storage import Location
from jobs.storage_failures import REST

# Of a run, that workers die of; finding one takes minutes where models are large.
MOST_DEADLY_ROWS = 100


@dataclass(frozen=True)
class ViewSpec:
    """One view of the run.

    Attributes:
        view: Task and role.
        prompt: The bytes that go around a text.
        space: Where its vectors may be compared.
        labels: What its parts say of themselves.
        adapter: The name of what the task adds to the backbone's weights; None is nothing.
        ranges: Those of int8 vectors, None for all others.
    """

    view: View
    prompt: Prompt
    space: Space
    labels: Mapping[str, str]
    adapter: str | None = None
    ranges: Ranges | None = None

    @property
    def encoding(self) -> Encoding:
        """What its vectors are made of."""
        return Encoding(self.prompt, self.adapter)


class Encoding(NamedTuple):
    """What decides the vectors of a text: views that agree in it share them."""

    prompt: Prompt
    adapter: str | None


@dataclass(frozen=True)
class RunSpec:
    """How this run reads, encodes and writes.

    Attributes:
        corpus: Root of the shards.
        reading: How rows become texts.
        skip_bad_shards: Turn the rows of an undecodable shard into rejects rather than fail.
        protocol: How texts become vectors.
        views: What is produced.
        device: `cpu` or `cuda`.
        num_threads: CPU threads of an encoder; None where it does not compute on the CPU.
        dtype: Of the computation.
        precision: Of the stored vectors.
        preflight: Whether an encoder compares itself with the plain path first.
        max_batch_tokens: Padded tokens of a forward pass, or `auto`.
        output: Root of the dataset.
        compression_level: Of zstd.
        row_group_rows: Of the parts.
        max_fragment_bytes: That the columns of a fragment may take once they are decoded.
        deaths: Name of the Ray actor that knows what workers died of; "" outside the pipeline.
        most_deadly: Rows that may go without a vector because workers die of them.
        landmarks: Files on the driver's disk; of each group a worker must see one, or it has another disk.
        sign_seconds: How often a worker that has a fragment in hand says so.
        fragments_at_once: That an encoder may have in hand at the same time, if its threads share batches.
    """

    corpus: Location
    reading: Reading
    skip_bad_shards: bool
    protocol: Protocol
    views: tuple[ViewSpec, ...]
    device: str
    num_threads: int | None
    dtype: Dtype
    precision: str
    preflight: bool
    max_batch_tokens: int | Literal["auto"]
    output: Location
    compression_level: int
    row_group_rows: int
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES
    deaths: str = ""
    most_deadly: int = MOST_DEADLY_ROWS
    landmarks: tuple[tuple[str, ...], ...] = ()
    sign_seconds: float = 60.0
    fragments_at_once: int = 1

    def check_disk(self) -> None:
        """Refuse to work where the paths of the corpus and the output are not those that the driver sees.

        Raises:
            StorageError: They are not. A writer would make parts that nobody finds.
            FileChangedError: They are not, or the corpus is another one since it was listed: only the driver can tell.
        """
        for group in self.landmarks:
            if any(Path(path).exists() for path in group):
                continue
            if group[0].startswith(f"{self.corpus.uri}/") and Path(self.corpus.uri).is_dir():
                raise FileChangedError(
                    f"{other_disk(group[0])}; or all of the corpus was written anew since it was listed: {REST}"
                )
            raise StorageError(other_disk(group[0]))

    @property
    def encoded_precision(self) -> str:
        """Of vectors between encoder and writer, which quantises: two views may share vectors, but not ranges."""
        return "float32" if self.precision in QUANTIZED else self.precision

    def specs(self, work: Work) -> list[ViewSpec]:
        """What is missing of a fragment, in the run's order."""
        return [spec for spec in self.views if str(spec.view) in work.parts]

    def prompts(self, work: Work) -> list[Prompt]:
        """The distinct prompts of that: texts are tokenized once for each."""
        return list(dict.fromkeys(spec.prompt for spec in self.specs(work)))

    def encodings(self, work: Work) -> list[Encoding]:
        """The distinct prompts and adapters of that: texts are encoded once for each."""
        return list(dict.fromkeys(spec.encoding for spec in self.specs(work)))

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """All that an encoder of this run needs."""
        return tuple(dict.fromkeys(spec.adapter for spec in self.views))


@dataclass(frozen=True)
class Work:
    """One row of the pipeline: a fragment, and the parts of it that are still missing.

    Attributes:
        fragment: What is read.
        parts: Path of each missing part, by view.
        num_sampled: Rows to take, spread evenly; None: all of them.
        carried: File of the vectors that need not be made; None where all are.
    """

    fragment: Fragment
    parts: Mapping[str, str]
    num_sampled: int | None = None
    carried: str | None = None

    @property
    def id(self) -> str:
        """Digest of what is to be made; names the receipt."""
        return digest(sorted(self.parts.values()))

    def to_json(self) -> bytes:
        """As the bytes that travel."""
        return _WORK.dump_json(self)

    @staticmethod
    def from_json(content: bytes) -> Work:
        """Back from the bytes that travelled."""
        return _WORK.validate_json(content)


_WORK = TypeAdapter(Work)


def other_disk(path: str) -> str:
    """What a worker says that does not see a path of the driver's."""
    return (
        f"a worker on {platform.node()} does not see {path}: paths of a corpus and an output must be "
        "on a file system that all nodes of the cluster share; use one, or s3:// URIs"
    )
