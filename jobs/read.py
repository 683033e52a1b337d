"""First stage: a fragment's row groups become rows, rejects and token ids. CPU only."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from encoders.tokenizer import TokenizedTexts, Tokenizer
from jobs.cargo import pack, token_columns
from jobs.errors import CorpusError
from jobs.rows import NO_TOKENS, Rows, read_rows, text_hashes, unreadable_rows
from jobs.run_spec import RunSpec, Work
from jobs.storage import open_store


class Reader:
    """Reads and tokenizes; load it once in each process."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._store = open_store(run.corpus)
        self._tokenizer = Tokenizer(run.protocol)
        prompts = ["", *(spec.prompt for spec in run.views)]
        # Under which an empty text has no token; none where the tokenizer adds special tokens, as most do.
        self._emptying_prompts = [one for one in prompts if not self._tokenizer.prepare([""], one).lengths[0]]

    def __call__(self, row: pa.Table) -> pa.Table:
        """Read and tokenize one fragment."""
        work = Work.from_json(row["work"][0].as_py())
        started = time.perf_counter()
        rows = self._read(work)
        if work.num_sampled is not None:
            rows = rows.sample(work.num_sampled)
        read = time.perf_counter()
        rows, tokenized = self._tokenize(rows, work)
        tokens: dict[str, pa.Array] = {}
        for key, texts in enumerate(tokenized):
            tokens |= token_columns(key, texts)
        return pack(
            {
                "work": work.to_json(),
                "rows": rows.carried.append_column("text_hash", text_hashes(rows.texts)),
                "rejects": rows.rejects,
                "tokens": pa.table(tokens),
                "read_seconds": read - started,
                "tokenize_seconds": time.perf_counter() - read,
            }
        )

    def _read(self, work: Work) -> Rows:
        try:
            return read_rows(self._store, work.fragment, self._run.reading)
        except CorpusError:
            if not self._run.skip_bad_shards:
                raise
            return unreadable_rows(work.fragment, self._run.reading)

    def _tokenize(self, rows: Rows, work: Work) -> tuple[Rows, list[TokenizedTexts]]:
        """Token ids for each distinct prompt; texts that come out empty are rejects.

        That a text is empty bare or under one of the run's prompts counts for all views, also for those made earlier
        or later: which views happen to be missing must not decide which rows one of them holds.
        """
        prompts = self._run.prompts(work)
        asked = dict.fromkeys([*prompts, *self._emptying_prompts])
        tokenized = [self._tokenizer.prepare(rows.texts, prompt) for prompt in asked]
        empty = np.logical_or.reduce([texts.lengths == 0 for texts in tokenized])
        if not empty.any():
            return rows, tokenized[: len(prompts)]
        shard = work.fragment.shard.path
        kept = rows.without(np.flatnonzero(empty).tolist(), NO_TOKENS, self._run.reading, shard)
        return kept, [texts.take(np.flatnonzero(~empty)) for texts in tokenized[: len(prompts)]]
