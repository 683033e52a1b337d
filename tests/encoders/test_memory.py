"""What does not fit the memory goes through in pieces, or is named; every other vector is the same."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.copies import Fetch, from_device
from encoders.encoder import Encoder
from encoders.errors import EncoderError
from encoders.memory import is_out_of_memory
from encoders.protocol import resolve_protocol
from encoders.stretches import Stretches
from encoders.tokenizer import TokenizedTexts, Tokenizer
from tests.encoders.repositories import TEXTS, write_repository

SOME = [f"{TEXTS[n % len(TEXTS)]} {n}" + " word" * (n % 11) for n in range(60)]
BUDGET = 400


def refuse_above(encoder: Encoder, num_tokens: int, error: Callable[[], Exception]) -> list[int]:
    """Let the backbone run out of memory above so many tokens; the list counts the tokens of each try."""
    tried: list[int] = []

    def hook(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        tried.append(kwargs["input_ids"].numel())
        if tried[-1] > num_tokens:
            raise error()

    encoder._adapted.module.register_forward_pre_hook(hook, with_kwargs=True)
    return tried


def of_the_cpu() -> Exception:
    """The real error of the CPU's allocator."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float32)
    return caught.value


@dataclass(frozen=True)
class Case:
    """A repository, texts under its tokenizer, and the vectors that they should have."""

    folder: Path
    texts: TokenizedTexts
    expected: np.ndarray

    def encoder(self, num_threads: int | None = None, num_queued: int = 0) -> Encoder:
        protocol = resolve_protocol(str(self.folder))
        encoder = Encoder.load(protocol, device="cpu", max_batch_tokens=BUDGET, num_threads=num_threads)
        encoder._num_queued = num_queued
        return encoder


# Texts end to end, and padded.
@pytest.fixture(scope="module", params=["bert", "t5"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = write_repository(tmp_path_factory.mktemp("model"), request.param)
    protocol = resolve_protocol(str(folder))
    texts = Tokenizer(protocol).prepare(SOME)
    return Case(folder, texts, Encoder.load(protocol, device="cpu").encode(texts).vectors)


@pytest.mark.parametrize(
    ("num_threads", "num_queued"), [(1, 0), (3, 0), (1, 1)], ids=["one by one", "threads", "as on a card"]
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, of_the_cpu, MemoryError])
def test_batches_that_do_not_fit_are_halved_and_the_vectors_are_the_same(
    case: Case, error: Callable[[], Exception], num_threads: int, num_queued: int
) -> None:
    encoder = case.encoder(num_threads, num_queued)
    tried = refuse_above(encoder, 120, error)
    encoded = encoder.encode(case.texts)
    np.testing.assert_allclose(encoded.vectors, case.expected, atol=1e-6)
    assert len(encoded.lost) == 0
    assert (encoder.max_batch_tokens, encoder.budget_halved) == (BUDGET // 4, True)
    tried.clear()
    encoder.encode(case.texts)
    assert max(tried) <= BUDGET // 4  # remembered: nothing fails a second time


@pytest.mark.parametrize("failures", [1, None], ids=["once", "always"])
def test_callers_side_by_side_halve_the_budget_no_more_often_than_one(
    case: Case, failures: int | None
) -> None:
    """What one of them learns of the memory must not add up to nothing."""
    encoder = case.encoder(num_threads=3)
    assert encoder.shares_threads
    left = itertools.repeat(None) if failures is None else iter([None] * failures)
    lock = threading.Lock()

    def fail(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > 120:
            with lock:
                is_short = next(left, "no") is None
            if is_short:
                raise MemoryError

    encoder._adapted.module.register_forward_pre_hook(fail, with_kwargs=True)
    with ThreadPoolExecutor(8) as callers:
        encoded = list(callers.map(encoder.encode, [case.texts] * 8))
    for one in encoded:
        np.testing.assert_allclose(one.vectors, case.expected, atol=1e-6)
    assert encoder.max_batch_tokens == BUDGET // (2 if failures else 4)


def test_a_batch_that_is_queued_and_then_does_not_fit_is_halved_too(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may find out only while the work is done, that is, when its end is waited for."""
    failed_at: list[int] = []

    def late(vectors: torch.Tensor) -> Fetch:
        fetch = from_device(vectors)

        def wait() -> np.ndarray:
            if len(vectors) > 8:
                failed_at.append(len(tried))
                raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")
            return fetch()

        return wait

    monkeypatch.setattr("encoders.encoder.from_device", late)
    encoder = case.encoder(1, num_queued=1)
    tried = refuse_above(encoder, 10**9, MemoryError)
    encoded = encoder.encode(case.texts)
    np.testing.assert_allclose(encoded.vectors, case.expected, atol=1e-6)
    assert encoder.budget_halved
    assert max(tried[failed_at[0] - 1 :]) > BUDGET // 2  # the one behind it was under way
    assert max(tried[failed_at[0] :]) <= BUDGET // 2


def test_the_vectors_of_a_queue_are_those_of_one_batch_after_the_other(case: Case) -> None:
    one_by_one, queued = (case.encoder(1, num_queued).encode(case.texts) for num_queued in (0, 1))
    np.testing.assert_array_equal(queued.vectors, one_by_one.vectors)
    assert queued.num_padding == one_by_one.num_padding


@pytest.mark.parametrize("num_queued", [0, 1])
def test_after_a_batch_that_does_not_fit_no_other_as_large_is_tried(case: Case, num_queued: int) -> None:
    encoder = case.encoder(1, num_queued)
    tried = refuse_above(encoder, 120, torch.OutOfMemoryError)
    encoder.encode(case.texts)
    assert sum(tokens > BUDGET // 2 for tokens in tried) == 1


@pytest.mark.parametrize("num_queued", [0, 1])
def test_a_text_that_does_not_fit_alone_is_named_and_all_others_have_their_vectors(
    case: Case, num_queued: int
) -> None:
    limit = int(case.texts.lengths.max()) - 1
    longest = np.flatnonzero(case.texts.lengths > limit)
    encoder = case.encoder(1 if num_queued else 2, num_queued)
    refuse_above(encoder, limit, torch.OutOfMemoryError)
    encoded = encoder.encode_what_fits(case.texts)
    assert encoded.lost.tolist() == longest.tolist()
    assert np.isnan(encoded.vectors[longest]).all()
    others = np.setdiff1d(np.arange(len(case.texts)), longest)
    np.testing.assert_allclose(encoded.vectors[others], case.expected[others], atol=1e-6)
    with pytest.raises(
        EncoderError, match=rf"{len(longest)} of 60 texts do not fit .* of {limit + 1} tokens"
    ):
        encoder.encode(case.texts)


def test_a_text_that_fits_once_it_is_alone_is_not_lost(case: Case) -> None:
    encoder = case.encoder(2)
    failures = iter(range(4))

    def hook(*_: Any) -> None:
        if next(failures, None) is not None:
            raise torch.OutOfMemoryError

    encoder.max_batch_tokens = 1
    encoder._adapted.module.register_forward_pre_hook(hook)
    encoded = encoder.encode(case.texts)
    np.testing.assert_allclose(encoded.vectors, case.expected, atol=1e-6)
    assert not encoder.budget_halved


def test_stretches_of_a_lost_text_are_lost_with_it(case: Case) -> None:
    lengths = case.texts.lengths
    half = lengths // 2
    starts = np.stack([np.zeros_like(half), half], 1).reshape(-1)
    counts = np.stack([half, lengths - half], 1).reshape(-1)
    texts = replace(case.texts, stretches=Stretches(np.arange(61) * 2, starts, counts))
    expected = case.encoder().encode(texts).vectors
    encoder = case.encoder(2)
    refuse_above(encoder, int(lengths.max()) - 1, torch.OutOfMemoryError)
    encoded = encoder.encode_what_fits(texts)
    assert len(encoded.lost) > 0
    gone = texts.stretches.places(encoded.lost) if texts.stretches else None
    assert np.flatnonzero(np.isnan(encoded.vectors).all(1)).tolist() == np.asarray(gone).tolist()
    kept = np.setdiff1d(np.arange(120), np.asarray(gone))
    np.testing.assert_allclose(encoded.vectors[kept], expected[kept], atol=1e-6)


def test_another_error_is_not_taken_for_too_little_memory(case: Case) -> None:
    encoder = case.encoder(1)
    refuse_above(encoder, 120, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        encoder.encode(case.texts)
    assert not encoder.budget_halved
    assert not is_out_of_memory(ValueError("can't allocate memory"))
