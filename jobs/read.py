"""First stage: a fragment's row groups become rows, rejects and token ids. CPU only.

What is open is a fragment whose rows are read; `jobs.deaths` then has some of them tokenized alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoders.chunking import Chunker
from encoders.family import Prompt
from encoders.late_chunking import LateChunker
from encoders.token_preflight import prove_tokens
from encoders.tokenized import TokenizedTexts
from encoders.tokenizer import Tokenizer
from jobs.cargo import pack, token_columns
from jobs.carried import carried_hashes
from jobs.errors import CorpusError
from jobs.long_texts import chunk_rows
from jobs.rows import KILLED_WORKER, NO_TOKENS, TOO_LONG, Rows, read_rows, text_hashes, unreadable_rows
from jobs.run_spec import RunSpec, Work
from jobs.storage import open_store

# Characters of a text that nearly always hold a token.
_BEGINNING = 64


class Opened(NamedTuple):
    """A fragment whose rows are read, and how long that took."""

    work: Work
    rows: Rows
    seconds: float


class Reader:
    """Reads and tokenizes; load it once in each process.

    Raises:
        StorageError: This machine does not see the corpus or the output.
    """

    def __init__(self, run: RunSpec) -> None:
        run.check_disk()
        self._run = run
        self._store, self._output = open_store(run.corpus), open_store(run.output)
        self._tokenizer = Tokenizer(run.protocol)
        prompts = [Prompt(), *(spec.prompt for spec in run.views)]
        # Under which an empty text has no token; none where the tokenizer adds special tokens, as most do.
        self._emptying_prompts = [one for one in prompts if not self._tokenizer.prepare([""], one).lengths[0]]
        long_text = run.reading.long_text
        # Under which a text must fit, or be a reject; none in the other modes.
        self._limiting_prompts = prompts[1:] if long_text is not None and long_text.mode == "reject" else []
        self._chunker = self._make_chunker()
        # Late chunks are found in the whole text's tokens, so there every text is compared.
        self._unproven = set(prompts[1:]) if run.preflight else set()

    def _make_chunker(self) -> Chunker | None:
        """What cuts texts, in the modes that do."""
        long_text = self._run.reading.long_text
        if long_text is None or not long_text.chunks:
            return None
        prompts = [spec.prompt for spec in self._run.views]
        if long_text.mode == "late_chunk":
            return LateChunker(self._tokenizer, prompts, long_text.chunk_tokens, long_text.chunk_overlap)
        prompts += self._emptying_prompts
        return Chunker(self._tokenizer, prompts, long_text.chunk_tokens, long_text.chunk_overlap)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Read and tokenize one fragment."""
        return self.run(self.open(row))

    def open(self, row: pa.Table) -> Opened:
        """Read it."""
        work = Work.from_json(row["work"][0].as_py())
        started = time.perf_counter()
        rows = self._read(work)
        if work.num_sampled is not None:
            rows = rows.sample(work.num_sampled)
        return Opened(work, rows, time.perf_counter() - started)

    def keep(self, opened: Opened, numbers: npt.NDArray[np.int64]) -> Opened:
        """Only the rows of these numbers."""
        kept = np.flatnonzero(np.isin(opened.rows.row_numbers, numbers))
        return opened._replace(rows=opened.rows.take(kept.tolist()))

    def reject(self, opened: Opened, numbers: npt.NDArray[np.int64]) -> Opened:
        """Without the rows of these numbers, of which workers die."""
        places = np.flatnonzero(np.isin(opened.rows.row_numbers, numbers)).tolist()
        shard = opened.work.fragment.shard.path
        return opened._replace(rows=opened.rows.without(places, KILLED_WORKER, self._run.reading, shard))

    def run(self, opened: Opened) -> pa.Table:
        """Tokenize it."""
        work, rows, read_seconds = opened
        started = time.perf_counter()
        rows, tokenized, num_prompts, sources = self._tokenize_fresh(rows, work)
        tokens: dict[str, pa.Array] = {}
        for key, texts in enumerate(tokenized):
            tokens |= token_columns(key, texts)
        return pack(
            {
                "work": work.to_json(),
                "rows": rows.carried.append_column("text_hash", text_hashes(rows.texts)),
                "row_numbers": pa.table({"row": pa.array(rows.row_numbers, pa.int64())}),
                "rejects": rows.rejects,
                "tokens": pa.table(tokens),
                "num_prompts": num_prompts,
                "sources": pa.table({"source": sources}),
                "read_seconds": read_seconds,
                "tokenize_seconds": time.perf_counter() - started,
            }
        )

    def _read(self, work: Work) -> Rows:
        try:
            return read_rows(self._store, work.fragment, self._run.reading, self._run.max_fragment_bytes)
        except CorpusError:
            if not self._run.skip_bad_shards:
                raise
            return unreadable_rows(work.fragment, self._run.reading)

    def _tokenize_fresh(self, rows: Rows, work: Work) -> tuple[Rows, list[TokenizedTexts], int, pa.Array]:
        """Token ids of the texts whose vectors are not carried over; and of each row its number among the carried.

        A text that is carried was no reject before, and would be none now: the same texts, the same prompts.
        """
        if work.carried is None:
            rows, tokenized, num_prompts = self._tokenize(rows, work)
            return rows, tokenized, num_prompts, pa.nulls(len(rows.texts), pa.int32())
        sources = pc.index_in(text_hashes(rows.texts), value_set=carried_hashes(self._output, work))
        is_fresh = sources.is_null().to_numpy(zero_copy_only=False)
        fresh, tokenized, num_prompts = self._tokenize(rows.take(np.flatnonzero(is_fresh).tolist()), work)
        kept = np.flatnonzero(~is_fresh | np.isin(rows.row_numbers, fresh.row_numbers))
        return (
            replace(rows.take(kept.tolist()), rejects=fresh.rejects),
            tokenized,
            num_prompts,
            sources.take(pa.array(kept)),
        )

    def _tokenize(self, rows: Rows, work: Work) -> tuple[Rows, list[TokenizedTexts], int]:
        """Token ids for each distinct prompt; texts that come out empty or, if so wanted, too long are rejects.

        And for how many prompts all texts were tokenized.

        That a text is empty bare or under one of the run's prompts counts for all views, also for those made earlier
        or later: which views happen to be missing must not decide which rows one of them holds. So it is with texts
        that are too long, and with where they are cut.
        """
        if isinstance(self._chunker, LateChunker):
            return self._chunk_late(self._chunker, rows, work)
        shard = work.fragment.shard.path
        if self._chunker is not None:
            rows = chunk_rows(rows, self._chunker.cut(rows.texts), self._run.reading, shard)
        prompts = self._run.prompts(work)
        asked = dict.fromkeys([*prompts, *self._limiting_prompts])
        tokenized = {prompt: self._tokenizer.prepare(rows.texts, prompt) for prompt in asked}
        for prompt in self._unproven.intersection(asked) if rows.texts else ():
            prove_tokens(self._tokenizer, rows.texts, prompt, tokenized[prompt])
            self._unproven.remove(prompt)
        wanted = [tokenized[prompt] for prompt in prompts]
        elsewhere = [self._are_empty(rows.texts, one) for one in self._emptying_prompts if one not in asked]
        empty = np.logical_or.reduce([*(texts.lengths == 0 for texts in tokenized.values()), *elsewhere])
        none = np.zeros_like(empty)
        too_long = np.logical_or.reduce([none, *(tokenized[one].truncated for one in self._limiting_prompts)])
        if not (empty | too_long).any():
            return rows, wanted, len(asked)
        rows = rows.without(np.flatnonzero(empty).tolist(), NO_TOKENS, self._run.reading, shard)
        rows = rows.without(np.flatnonzero(too_long[~empty]).tolist(), TOO_LONG, self._run.reading, shard)
        kept = np.flatnonzero(~(empty | too_long))
        return rows, [texts.take(kept) for texts in wanted], len(asked)

    def _are_empty(self, texts: Sequence[str], prompt: Prompt) -> npt.NDArray[np.bool_]:
        """Which texts have no token under a prompt that they are not embedded with; most begin with one."""
        beginnings = [text[:_BEGINNING] for text in texts]
        empty: npt.NDArray[np.bool_] = self._tokenizer.prepare(beginnings, prompt).lengths == 0
        unsure = np.flatnonzero(empty).tolist()
        empty[unsure] = self._tokenizer.prepare([texts[row] for row in unsure], prompt).lengths == 0
        return empty

    def _chunk_late(
        self, chunker: LateChunker, rows: Rows, work: Work
    ) -> tuple[Rows, list[TokenizedTexts], int]:
        """A row a chunk, and the token ids of the texts that the chunks were cut from."""
        chunks, tokenized = chunker.cut_in_place(rows.texts)
        kept = np.flatnonzero(chunks.counts)
        rows = chunk_rows(rows, chunks, self._run.reading, work.fragment.shard.path)
        return rows, [tokenized[prompt].take(kept) for prompt in self._run.prompts(work)], len(tokenized)
