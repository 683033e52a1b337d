"""Fragments beside each other in one encoder are what they are one after the other; and who must be alone is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.encoder import Encoded, Encoder
from encoders.merging import AdaptedBackbone
from encoders.preflight import Preflight
from encoders.tokenized import TokenizedTexts
from jobs.blocks import fragments_at_once
from jobs.cargo import unpack_table
from jobs.encode import EncodeFragment
from jobs.read import Reader
from jobs.turns import Clock, Turns
from tests.encoders.adapter_repositories import write_jina_v5
from tests.encoders.repositories import TEXTS
from tests.jobs.builders import write_shard
from tests.jobs.test_blocks import work_of
from tests.jobs.test_encodings import VIEWS
from tests.jobs.test_stages import Bench, row_of

AT_ONCE = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jina_v5(tmp_path_factory.mktemp("model") / "v5", "small")


@pytest.fixture
def bench(tmp_path: Path, model: Path) -> Bench:
    write_shard(
        tmp_path / "corpus",
        "s.parquet",
        {"id": range(60), "text": [f"{TEXTS[n % 6]} {n}" for n in range(60)]},
    )
    return Bench(tmp_path / "corpus", tmp_path / "out", model, VIEWS)


def test_fragments_side_by_side_have_the_vectors_of_fragments_in_turn_bit_for_bit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five encodings by four adapters, so the weights change under fragments unless somebody sees to it."""
    most = now = 0
    lock, real = threading.Lock(), Encoder.encode_what_fits

    def counted(self: Encoder, texts: TokenizedTexts) -> Encoded:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        try:
            return real(self, texts)
        finally:
            with lock:
                now -= 1

    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    expected = unpack_table(EncodeFragment(spec)(row), "vectors")
    monkeypatch.setattr(Encoder, "encode_what_fits", counted)
    stage = EncodeFragment(replace(spec, fragments_at_once=AT_ONCE))
    with ThreadPoolExecutor(AT_ONCE + 1) as threads:
        encoded = list(threads.map(stage, [row] * 12))
    for one in encoded:
        assert unpack_table(one, "vectors").select(expected.column_names).equals(expected)
    assert 2 <= most <= AT_ONCE


def test_each_encoding_is_proven_once_and_the_plain_path_is_let_go(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven: list[str | None] = []
    prove = Preflight.prove

    def counted(self: Preflight, texts: TokenizedTexts) -> bool:
        proven.append(self._encoder.adapter)
        return prove(self, texts)

    monkeypatch.setattr(Preflight, "prove", counted)
    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    stage = EncodeFragment(replace(spec, fragments_at_once=AT_ONCE))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(stage, [row] * 8))
    assert sorted(map(str, proven)) == sorted(str(one.adapter) for one in spec.encodings(work))
    assert not stage._preflight.is_open


def count_encoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From here on: how many fragments are encoded now, each a little longer than it takes."""
    encoding, lock, real = 0, threading.Lock(), Encoder.encode_what_fits

    def encode(self: Encoder, texts: TokenizedTexts) -> Encoded:
        nonlocal encoding
        with lock:
            encoding += 1
        time.sleep(0.02)
        try:
            return real(self, texts)
        finally:
            with lock:
                encoding -= 1

    monkeypatch.setattr(Encoder, "encode_what_fits", encode)
    return lambda: encoding


def test_the_plain_path_is_let_go_while_no_fragment_is_encoded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go_under: list[int] = []
    close = Preflight.close

    def let_go(self: Preflight) -> None:
        let_go_under.append(num_encoding())
        close(self)

    bench.views = VIEWS[:1]
    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    stage = EncodeFragment(replace(spec, fragments_at_once=AT_ONCE))
    num_encoding = count_encoding(monkeypatch)
    monkeypatch.setattr(Preflight, "close", let_go)
    with ThreadPoolExecutor(AT_ONCE + 1) as threads:
        list(threads.map(stage, [row] * 12))
    assert let_go_under
    assert not any(let_go_under)


@pytest.mark.parametrize("most", [1, AT_ONCE])
def test_a_text_that_did_not_fit_beside_others_is_tried_once_more_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """By its own adapter, though another one is in use by then. Where none was beside it, it is given up at once."""
    real, tried = Encoder.encode_what_fits, []
    is_alone = False

    def cramped(self: Encoder, texts: TokenizedTexts) -> Encoded:
        tried.append(len(texts))
        encoded = real(self, texts)
        if is_alone:
            return encoded
        lost = np.array([0, 3])
        encoded.vectors[lost] = np.nan
        return replace(encoded, lost=lost)

    class Watched(Turns):
        @contextlib.contextmanager
        def alone(self) -> Iterator[None]:
            nonlocal is_alone
            with super().alone():
                stage._encoder.use_adapter(
                    spec.adapters[0 if stage._encoder.adapter != spec.adapters[0] else 1]
                )
                is_alone = True
                yield
                is_alone = False

    bench.views = (VIEWS[0], VIEWS[4])
    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    expected = unpack_table(EncodeFragment(spec)(row), "vectors")
    monkeypatch.setattr(Encoder, "encode_what_fits", cramped)
    stage = EncodeFragment(replace(spec, fragments_at_once=AT_ONCE, preflight=False))
    stage._turns = Watched(most)
    vectors = unpack_table(stage(row), "vectors")
    if most == 1:
        assert tried == [60, 60]
        assert vectors.num_rows == 58
    else:
        assert tried == [60, 2, 60, 2]
        assert vectors.select(expected.column_names).equals(expected)


def test_a_model_whose_threads_share_no_batches_has_one_fragment_at_a_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "shares_threads", False)
    spec, _ = bench.run()
    assert EncodeFragment(replace(spec, fragments_at_once=AT_ONCE))._turns.most == 1


def test_a_run_of_several_adapters_changes_no_weights_while_a_fragment_is_encoded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_under: list[int] = []
    activate = AdaptedBackbone.activate

    def switch(self: AdaptedBackbone, name: str | None) -> None:
        if name != self.active:
            changed_under.append(num_encoding())
        activate(self, name)

    spec, work = bench.run()
    row = Reader(spec)(row_of(work))
    stage = EncodeFragment(replace(spec, fragments_at_once=AT_ONCE))
    num_encoding = count_encoding(monkeypatch)
    monkeypatch.setattr(AdaptedBackbone, "activate", switch)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(stage, [row] * 8))
    assert len(changed_under) >= 3
    assert not any(changed_under)


def test_what_goes_wrong_while_one_prepares_leaves_the_others_their_turns() -> None:
    turns = Turns(2)

    def fail() -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"), turns.beside_others(lambda: False, fail):
            raise AssertionError
        with pytest.raises(KeyError), turns.beside_others(lambda: True, fail):
            raise KeyError
        with pytest.raises(KeyError), turns.alone():
            raise KeyError
    with turns.beside_others(lambda: True, fail), turns.beside_others(lambda: True, fail):
        assert not turns._permits.acquire(blocking=False)


def test_what_one_has_made_ready_others_who_waited_for_it_use_beside_him() -> None:
    turns, state, made = Turns(3), [""], []
    all_in = threading.Barrier(3, timeout=30)

    def make() -> None:
        made.append(threading.get_ident())
        time.sleep(0.1)  # the others come and wait
        state[0] = "ready"

    def use(_: int) -> None:
        with turns.beside_others(lambda: state[0] == "ready", make):
            all_in.wait()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(use, range(3)))
    assert len(made) == 1


def test_many_that_want_different_things_all_get_their_turn() -> None:
    turns, state, done = Turns(3), [""], []

    def want(name: str) -> None:
        for _ in range(50):
            with turns.beside_others(lambda: state[0] == name, lambda: state.__setitem__(0, name)):
                assert state[0] == name
        done.append(name)

    threads = [threading.Thread(target=want, args=(name,), daemon=True) for name in "aabbcc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(done) == list("aabbcc")


def test_what_two_do_at_the_same_time_counts_once() -> None:
    clock = Clock()
    began = time.perf_counter()
    assert clock.begin() == 0.0
    time.sleep(0.1)
    assert clock.begin() == 0.0
    time.sleep(0.1)
    worked = clock.end()
    time.sleep(0.1)
    worked += clock.end()
    total = time.perf_counter() - began
    assert 0.3 <= worked <= total
    time.sleep(0.2)
    idle = clock.begin()
    assert 0.2 <= idle <= time.perf_counter() - began - worked
    assert clock.end() < 0.1


@pytest.mark.parametrize(
    ("rows", "num_threads", "at_once"),
    [
        ([500] * 40, 1, 1),  # nothing to share
        ([500] * 40, 2, 2),  # the next one's batches follow the last ones of this
        ([500] * 40, 8, 3),
        ([10_000] * 4, 8, 2),
        ([10] * 1000, 8, 9),  # a batch each, one for each thread, and one that comes next
        ([1] * 1000, 2, 3),
        ([0, 0], 8, 9),
        ([], 8, 9),
    ],
)
def test_an_encoder_has_so_many_fragments_in_hand_that_no_thread_waits(
    rows: list[int], num_threads: int, at_once: int
) -> None:
    assert fragments_at_once(work_of(rows), num_threads) == at_once


def test_rows_that_need_no_encoding_make_a_fragment_small() -> None:
    work = work_of([10_000] * 8)
    assert fragments_at_once(work, 8) == 2
    assert fragments_at_once([replace(piece, num_sampled=10) for piece in work], 8) == 9
    assert fragments_at_once([replace(piece, carried="a file") for piece in work], 8) == 9
