"""History and sweep: the last few datasets stay whole, orphans get their grace, and nobody else's file is touched."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import OutputBusyError, OutputError, StorageError
from jobs.files import kind_of
from jobs.fragments import Fragment
from jobs.manifests import (
    digest_of,
    earlier,
    find_kept,
    find_live,
    id_of,
    keep_aside,
    list_kept,
    next_commit_time,
    path_of,
    read_kept,
    read_live,
)
from jobs.records import MANIFEST, MANIFESTS, RECEIPTS, Manifest, bits_path
from jobs.sweep import is_tidy
from tests.jobs.builders import (
    DOCUMENT,
    clean,
    commit,
    embed,
    finish,
    plan_of,
    stock_of,
    store_of,
    write_shard,
)

HOUR = 3600
STALE = f"task=retrieval/role=query/part-{'0' * 32}.parquet"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for name in ("a", "b"):
        write_shard(folder, f"{name}.parquet", {"id": range(20), "text": ["t"] * 20}, row_group_size=10)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def change(corpus: Path, number: int) -> None:
    write_shard(corpus, "b.parquet", {"id": range(number + 1), "text": ["u"] * (number + 1)})


def history(out: Path) -> list[Manifest]:
    """Every manifest that can be read, the live one first."""
    store = store_of(out)
    live = read_live(store)
    return [live, *(read_kept(store, kept) for kept in earlier(list_kept(store), live))]


def is_whole(out: Path, manifest: Manifest) -> bool:
    files = [file for receipt in manifest.receipts for file in receipt.files()]
    return all(
        (out / file.path).is_file() and (out / file.path).stat().st_size == file.num_bytes for file in files
    )


def paths_of(manifest: Manifest) -> set[str]:
    return {file.path for receipt in manifest.receipts for file in receipt.files()}


def parts_in(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("part-*")}


def make_old(path: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_manifests_as_wanted_stay_readable_and_whole(corpus: Path, out: Path, keep: int) -> None:
    digests = []
    for number in range(keep + 2):
        change(corpus, number)
        embed(corpus, out, keep_manifests=keep)
        digests.append(read_live(store_of(out)).digest)
    kept = history(out)
    assert [manifest.digest for manifest in kept] == digests[: -keep - 1 : -1]
    assert all(is_whole(out, manifest) for manifest in kept)
    assert parts_in(out) == set().union(*map(paths_of, kept))
    assert len(list_kept(store_of(out))) == keep - 1


def has_its_configuration(manifest: Manifest) -> bool:
    return manifest.run is not None and manifest.run.configuration == {"of": manifest.digest}


def test_each_manifest_has_the_configuration_of_the_run_that_committed_it(corpus: Path, out: Path) -> None:
    for number in range(3):
        change(corpus, number)
        embed(corpus, out, keep_manifests=3)
    kept = history(out)
    assert len(kept) == 3
    assert all(map(has_its_configuration, kept))


def test_another_configuration_of_the_same_dataset_is_the_same_dataset(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    live = read_live(store_of(out))
    assert live.run is not None
    other = live.model_copy(update={"run": live.run.model_copy(update={"python": "4"}), "checksum": "0"})
    assert live.equals(other)
    assert live.digest == other.digest
    assert not live.equals(live.model_copy(update={"corpus": "another"}))


def test_times_of_commits_go_up_even_if_the_clock_does_not(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    tomorrow = read_live(store_of(out)).model_copy(update={"committed_at": "2999-01-01T00:00:00.999+00:00"})
    assert next_commit_time(tomorrow) == "2999-01-01T00:00:01.000+00:00"
    assert next_commit_time(None) < "2999"


def test_a_corpus_that_is_as_it_was_costs_nothing_and_counts_once(corpus: Path, out: Path) -> None:
    shard = corpus / "b.parquet"
    embed(corpus, out, keep_manifests=3)
    first, time_of_first = shard.read_bytes(), shard.stat().st_mtime_ns
    change(corpus, 5)
    embed(corpus, out, keep_manifests=3)
    shard.write_bytes(first)
    os.utime(shard, ns=(time_of_first, time_of_first))
    assert embed(corpus, out, keep_manifests=3).work == ()
    live, *older = history(out)
    assert [manifest.digest == live.digest for manifest in older] == [False]
    assert len(list_kept(store_of(out))) == 1


def test_parts_of_an_earlier_dataset_and_of_the_live_one_are_vouched_for_once(
    corpus: Path, out: Path
) -> None:
    embed(corpus, out)
    plan = plan_of(corpus, (DOCUMENT,), stock_of(out))
    commit(out, plan, list(plan.existing), corpus, keep_manifests=2)
    plan = embed(corpus, out, keep_manifests=2)
    assert plan.work == ()
    paths = [file.path for receipt in read_live(store_of(out)).receipts for file in receipt.files()]
    assert (len(paths), len(set(paths))) == (8, 8)


class KilledError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("step", range(4))
def test_a_kill_at_any_step_of_a_commit_leaves_all_right_and_the_next_run_mends_it(
    corpus: Path, out: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        change(corpus, number)
        embed(corpus, out, keep_manifests=2)
    store, steps = store_of(out), iter(range(100))
    before = history(out)
    change(corpus, 2)
    plan = plan_of(corpus, holdings=stock_of(out))
    receipts = [*plan.existing, *(finish(out, work) for work in plan.work)]

    def dying(name: str) -> Any:
        whole = getattr(type(store), name)

        def half(self: Any, *arguments: Any) -> Any:
            if next(steps) == step:
                raise KilledError
            return whole(self, *arguments)

        return half

    with monkeypatch.context() as patch:
        for name in ("create", "swap", "delete"):
            patch.setattr(type(store), name, dying(name))
        with pytest.raises(KilledError):
            commit(out, plan, receipts, corpus, keep_manifests=2, orphan_grace_hours=24)
    kept = history(out)
    committed = step >= 2
    assert (kept[0] == before[0]) != committed
    assert is_whole(out, kept[0])
    assert is_whole(out, kept[1])
    assert all(map(has_its_configuration, kept))

    assert embed(corpus, out, keep_manifests=2).work == ()
    if committed:  # the command sweeps where nothing has changed; `embed` here commits the same once more
        assert history(out)[0].digest == kept[0].digest
    live, *older = history(out)
    assert [manifest.digest for manifest in older] == [before[0].digest]
    assert parts_in(out) == paths_of(live) | paths_of(older[0])
    assert all(map(has_its_configuration, [live, *older]))


def test_orphans_stay_for_their_grace_and_go_after_it(corpus: Path, out: Path) -> None:
    orphans = [
        STALE,
        f"_rejects/rejects-{'1' * 32}.parquet",
        f"_receipts/{'2' * 32}.json",
        f"_ranges/{'3' * 32}.json",
        f"task=retrieval/role=query/.{'4' * 32}.tmp",
        f".{'5' * 32}.tmp",
    ]
    embed(corpus, out)
    live = read_live(store_of(out))
    for path in orphans:
        store_of(out).create(path, b"left")
        make_old(out / path, 23)
    clean(out, live, orphan_grace_hours=24)
    assert all((out / path).exists() for path in orphans)
    for path in orphans:
        make_old(out / path, 25)
    clean(out, live, orphan_grace_hours=24)
    assert not any((out / path).exists() for path in orphans)
    assert is_whole(out, live)


def test_orphans_make_an_output_untidy_and_history_does_too(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    assert is_tidy(stock_of(out), 1)
    store_of(out).create(f"task=retrieval/.{'4' * 32}.tmp", b"left")
    assert not is_tidy(stock_of(out), 1)
    (out / f"task=retrieval/.{'4' * 32}.tmp").unlink()
    store_of(out).create(STALE, b"left")
    assert not is_tidy(stock_of(out), 1)
    (out / STALE).unlink()
    keep_aside(store_of(out))  # of what is live, so it may stay
    assert is_tidy(stock_of(out), 1)
    change(corpus, 1)
    embed(corpus, out, keep_manifests=2)
    assert is_tidy(stock_of(out), 2)
    assert not is_tidy(stock_of(out), 1)


def test_what_falls_out_of_the_history_goes_at_once_and_has_no_grace(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    first = paths_of(read_live(store_of(out)))
    change(corpus, 0)
    embed(corpus, out, keep_manifests=2, orphan_grace_hours=24)
    assert first <= parts_in(out)
    change(corpus, 1)
    embed(corpus, out, keep_manifests=2, orphan_grace_hours=24)
    assert not first <= parts_in(out)


def lost() -> None:
    raise OutputBusyError("the lease is another's")


def test_who_has_lost_the_output_removes_nothing(corpus: Path, out: Path) -> None:
    embed(corpus, out)
    store_of(out).create(STALE, b"left")
    with pytest.raises(OutputBusyError, match="another's"):
        clean(out, read_live(store_of(out)), confirm=lost)
    assert (out / STALE).exists()


def test_a_run_that_wakes_after_another_one_has_published_removes_nothing(corpus: Path, out: Path) -> None:
    # It was suspended between its commit and its sweep, and has no grace for what its manifest does not name.
    embed(corpus, out)
    suspended, version = find_live(store_of(out))
    change(corpus, 5)
    embed(corpus, out, keep_manifests=2)
    before = {str(path) for path in out.rglob("*")}
    with pytest.raises(OutputBusyError, match=r"another run published into .* is its to remove"):
        clean(out, suspended, version)
    assert {str(path) for path in out.rglob("*")} == before
    assert is_whole(out, read_live(store_of(out)))


def test_an_output_that_is_lost_within_a_sweep_loses_no_more_than_a_batch(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.sweep._BATCH", 2)
    embed(corpus, out)
    orphans = [STALE.replace("0" * 32, f"{number:032}") for number in range(7)]
    for path in orphans:
        store_of(out).create(path, b"left")
    looks = iter([lambda: None, lambda: None, lost])
    with pytest.raises(OutputBusyError):
        clean(out, read_live(store_of(out)), confirm=lambda: next(looks)())
    assert [(out / path).exists() for path in orphans].count(False) == 4


def test_receipts_of_what_is_published_go_at_once_and_those_of_others_stay(corpus: Path, out: Path) -> None:
    others = [finish(out, work) for work in plan_of(corpus, fragment_rows=20).work]
    embed(corpus, out, orphan_grace_hours=24)
    left = {path.stem for path in (out / RECEIPTS).iterdir()}
    assert left == {receipt.id for receipt in others}
    assert {part.path for receipt in others for part in receipt.parts.values()} <= parts_in(out)


FOREIGN = [
    "task=retrieval/role=query/part-0.parquet",
    "task=retrieval/role=query/mine.parquet",
    "task=retrieval/role=query/README.md",
    f"task=retrieval/part-{'0' * 32}.parquet.bak",
    f"task=retrieval/part-{'0' * 31}G.parquet",
    f"other/part-{'0' * 32}.parquet",
    f"other/.{'0' * 32}.tmp",
    "_rejects/notes.parquet",
    "_receipts/x.json",
    "_ranges/x.json",
    f"_manifests/{'0' * 32}.json",
    "_manifests/before the migration.json",
    "_lock.json",
    "_other/x.parquet",
    f"part-{'0' * 32}.parquet",
]


@pytest.mark.parametrize("keep", [1, 3])
def test_files_with_names_that_are_not_ours_are_never_touched(corpus: Path, out: Path, keep: int) -> None:
    for path in FOREIGN:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(b"mine")
        make_old(out / path, 1000)
        assert kind_of(path) is None
    for number in range(4):
        change(corpus, number)
        embed(corpus, out, keep_manifests=keep)
    assert all((out / path).read_bytes() == b"mine" for path in FOREIGN)
    live, *older = history(out)
    assert parts_in(out) - set(FOREIGN) == set().union(*map(paths_of, [live, *older]))


def test_every_name_that_we_give_is_known(corpus: Path, out: Path) -> None:
    plan = plan_of(corpus)
    fragment: Fragment = plan.fragments[0]
    deep = fragment.part_path(DOCUMENT.view, DOCUMENT.space).replace("/part-", "/lang=a%2Fb\n/x=__/part-")
    assert kind_of(deep) == "part"
    embed(corpus, out)
    keep_aside(store_of(out))
    (kept,) = list_kept(store_of(out))
    assert kind_of(path_of(kept)) == "manifest"
    assert all(kind_of(path) == "part" for path in parts_in(out))


def test_a_kept_manifest_that_was_edited_is_refused_before_anything_is_removed(
    corpus: Path, out: Path
) -> None:
    for number in range(2):
        change(corpus, number)
        embed(corpus, out, keep_manifests=2)
    (kept,) = list_kept(store_of(out))
    path = out / path_of(kept)
    path.write_text(path.read_text().replace('"corpus":"', '"corpus":"/else'))
    before = parts_in(out)
    for attempt in (lambda: stock_of(out), lambda: embed(corpus, out)):
        with pytest.raises(OutputError, match=r"edited or renamed; put back what was there, or remove it"):
            attempt()
    path.write_text("{}")
    with pytest.raises(OutputError, match=r"is no manifest .* or remove it"):
        stock_of(out)
    assert parts_in(out) == before


def test_a_manifest_of_another_version_keeps_its_name(corpus: Path, out: Path) -> None:
    """A field with a default is new in this version, so the file lacks what a dump of it has."""
    embed(corpus, out)
    content = json.loads((out / MANIFEST).read_text())
    assert content.pop("ranges") == {}
    (out / MANIFEST).write_text(json.dumps(content))
    keep_aside(store_of(out))
    (kept,) = list_kept(store_of(out))
    assert digest_of(kept) != read_live(store_of(out)).digest
    assert read_kept(store_of(out), kept) == read_live(store_of(out))


def test_a_manifest_is_found_by_the_beginning_of_its_id_or_digest(corpus: Path, out: Path) -> None:
    for number in range(3):
        change(corpus, number)
        embed(corpus, out, keep_manifests=3)
    store = store_of(out)
    live, one, other = history(out)
    assert find_kept(store, id_of(one), live) == id_of(one)
    assert find_kept(store, other.digest[:12], live) == id_of(other)
    for wanted, problem in (
        ("2", "is the beginning of several manifests"),
        ("f" * 32, "is no manifest that is kept there"),
        ("", "is no manifest|several"),
        (live.digest, "is the live manifest"),
    ):
        with pytest.raises(OutputError, match=problem) as caught:
            find_kept(store, wanted, live)
        assert id_of(one) in str(caught.value)


def test_a_file_that_cannot_be_deleted_is_an_error_and_the_manifest_stands(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(corpus, out)
    store_of(out).create(STALE, b"left")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(StorageError, match="could not delete"):
        clean(out, read_live(store_of(out)))
    assert (out / MANIFESTS).exists() is False
    assert is_whole(out, read_live(store_of(out)))


def test_the_bits_of_ids_stay_as_long_as_a_dataset_that_is_kept_holds_their_fragment(
    corpus: Path, out: Path
) -> None:
    def keep(number: int) -> list[str]:
        """A run that looks at the ids of shard b; where the bits of its fragments are."""
        change(corpus, number)
        plan = embed(corpus, out, keep_manifests=2, orphan_grace_hours=24)
        paths = [bits_path(one.id) for one in plan.fragments if one.shard.path == "b.parquet"]
        for path in paths:
            store_of(out).create(path, b"bits")
        return paths

    first, second = keep(1), keep(2)
    store_of(out).create(bits_path("0" * 32), b"of nobody yet")
    assert not is_tidy(stock_of(out), 1)
    there = {path.name for path in (out / "_ids").iterdir()}
    assert {Path(path).name for path in (*first, *second)} | {f"{'0' * 32}.bits"} == there
    third = keep(3)  # the first dataset falls out of the history, and with it what only it had
    left = {path.name for path in (out / "_ids").iterdir()}
    assert left == there - {Path(path).name for path in first} | {Path(path).name for path in third}
    clean(out, read_live(store_of(out)))
    assert {f"_ids/{path.name}" for path in (out / "_ids").iterdir()} == set(third)
    assert is_tidy(stock_of(out), 1)
