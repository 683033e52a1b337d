"""What a person sees while it runs.

Fragments are what is counted as done; rows and tokens give the speed and the time left. A terminal gets a live bar,
a log file a line now and then.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jobs.records import EncoderRecord, Receipt

_LOG_EVERY_SECONDS = 10.0  # where fragments are finished
_SIGN_EVERY_SECONDS = 60.0  # where none is
_BEGINNING = "loading the model, then the first fragments"


@dataclass
class Tally:
    """Sums over what this run did.

    Attributes:
        rows: Rows of finished fragments.
        vectors: Vectors written, over all views.
        prompts: For how many prompts texts were tokenized, summed over fragments.
        encodings: How often they were encoded: for each distinct prompt and adapter, summed over fragments.
        tokens: Tokens encoded in all of these.
        carried: Vectors written that the dataset had before.
        padding: Tokens computed for nothing.
        why_padded: Fragments by what kept their encoder from packing texts end to end; "" of those that were packed.
        truncated: Vectors whose text the model did not see whole.
        rejected: Rows without a vector, by reason.
        seconds: Time spent by stage, summed over workers.
        halved_budget: Tokens of a batch, where memory was too little for more; 0 where it was enough.
        preflight: The worst cosine that an encoder saw of itself, by what it compared its vectors with.
        encoders: Seconds that each encoder was at work (`encode`) and without a fragment (`starved`), by its name.
        ways: In which encoders computed what they encoded.
        receipts: Of the finished fragments.
    """

    rows: int = 0
    vectors: int = 0
    prompts: int = 0
    encodings: int = 0
    carried: int = 0
    tokens: int = 0
    padding: int = 0
    why_padded: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    halved_budget: int = 0
    preflight: dict[str, float] = field(default_factory=dict)
    encoders: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ways: set[EncoderRecord] = field(default_factory=set)
    receipts: list[Receipt] = field(default_factory=list)

    def add(self, spent: Mapping[str, Any]) -> None:
        """Take in what the writer says of one fragment."""
        receipt = Receipt.model_validate_json(spent["receipt"])
        self.receipts.append(receipt)
        self.rows += receipt.num_rows
        self.vectors += sum(part.num_rows for part in receipt.parts.values())
        self.truncated += sum(part.num_truncated for part in receipt.parts.values())
        self.rejected.update(receipt.rejected)
        self.prompts += spent["num_prompts"]
        self.encodings += spent["num_encodings"]
        self.carried += spent["num_carried"]
        self.tokens += spent["num_encoded_tokens"]
        self.padding += spent["num_padding"]
        self.why_padded[spent["why_padded"]] += 1
        if spent["num_encoded_tokens"]:
            self.ways.add(EncoderRecord(**{name: spent[name] for name in EncoderRecord.model_fields}))
        if spent["budget_halved"]:
            self.halved_budget = min(
                spent["max_batch_tokens"], self.halved_budget or spent["max_batch_tokens"]
            )
        if compared := spent["preflight_compared"]:
            self.preflight[compared] = min(spent["preflight_cosine"], self.preflight.get(compared, 1.0))
        for what in ("encode", "starved"):
            self.encoders[spent["actor"]][what] += spent[f"{what}_seconds"]
        for stage in ("read", "tokenize", "encode", "write"):
            self.seconds[stage] += spent[f"{stage}_seconds"]

    def starved_percent(self) -> dict[str, float]:
        """Of its time from its first fragment to its last, what each encoder waited for the next one."""
        return {
            name: 100 * seconds["starved"] / max(seconds.total(), 1e-9)
            for name, seconds in self.encoders.items()
        }


class ProgressLine:
    """Shows how far a run is; use as a context, and call `update` after each fragment.

    A log gets a line after fragments, and one a minute as long as none is done: a model may take minutes to load, and
    the first fragments too.
    """

    def __init__(
        self, console: Console, num_fragments: int, num_rows: int, sign_seconds: float = _SIGN_EVERY_SECONDS
    ) -> None:
        self._console = console
        self._num_fragments = num_fragments
        self._num_rows = num_rows
        self._sign_seconds = sign_seconds
        self._tally = Tally()
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.fields[fragments]}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=num_rows, fragments=self._fragments(0), speed=_BEGINNING)
        self._done = threading.Event()
        self._signs = threading.Thread(target=self._give_signs, name="progress", daemon=True)

    def _fragments(self, done: int) -> str:
        return f"{done}/{self._num_fragments} fragments"

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        if not self._console.is_terminal:
            self._signs.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._signs.is_alive():
            self._signs.join()
        self._bar.stop()

    def update(self, tally: Tally) -> None:
        """Show the state after another fragment."""
        self._tally = tally
        done = self._fragments(len(tally.receipts))
        self._bar.update(self._task, completed=tally.rows, fragments=done, speed=self._speed())
        now = time.monotonic()
        finished = len(tally.receipts) == self._num_fragments
        if not self._console.is_terminal and (now - self._last_line > _LOG_EVERY_SECONDS or finished):
            self._print()

    def _give_signs(self) -> None:
        while not self._done.wait(self._last_line + self._sign_seconds - time.monotonic()):
            if time.monotonic() - self._last_line >= self._sign_seconds:
                self._print()

    def _print(self) -> None:
        self._last_line = time.monotonic()
        rows, done = self._tally.rows, len(self._tally.receipts)
        elapsed = self._last_line - self._started
        left = f"{_as_time(elapsed / rows * (self._num_rows - rows))} left" if rows else "time left unknown"
        self._console.print(
            f"{self._fragments(done)}, {rows:,}/{self._num_rows:,} rows, {self._speed()}, {_as_time(elapsed)} "
            f"elapsed, {left}",
            highlight=False,
        )

    def _speed(self) -> str:
        if not self._tally.receipts:
            return _BEGINNING
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return f"{self._tally.rows / elapsed:,.0f} rows/s, {self._tally.tokens / elapsed:,.0f} tokens/s"


def _as_time(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
