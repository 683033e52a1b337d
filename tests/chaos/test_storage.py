"""A storage service that fails a tenth or a third of the requests, and a disk that is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from jobs.lease import LOCK
from jobs.record_files import read_manifest
from jobs.storage import Location, open_store
from tests.chaos.corpora import change_corpus, num_rows_of, shard, write_corpus
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.dying import Point
from tests.chaos.faulty_s3 import EXPIRED, FAULTS, HANG, faulty_s3
from tests.chaos.plain import attempt, rebuild
from tests.chaos.sites import Site, location, on_cluster, through
from tests.integration.clusters import Cluster
from tests.stores import put

SHARDS = {"half=0/s0.parquet": "s0", "half=1/s1.parquet": "s1"}
NUM_ROWS = 250
MEBIBYTE = 2**20


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, pytest.param(0.3, marks=pytest.mark.chaos)])
def test_a_run_passes_though_requests_fail(
    cluster: Cluster, model: Path, s3: str, s3_server: str, share: float
) -> None:
    store = open_store(Location(f"{s3}/corpus", s3_server))
    for path, name in SHARDS.items():
        put(store, path, shard(name, NUM_ROWS))
    site = replace(on_cluster(cluster, model, Path(), Path()), corpus=f"{s3}/corpus", out=f"{s3}/out")
    with (
        faulty_s3(s3_server, share, seed=round(share * 100)) as proxy,
        Reader(Location(site.out, s3_server)) as reader,
    ):
        first = through(site, proxy.url).run()
        assert first.exit_code == 0, first.stderr
        # and what is there changes: listings, reads, the commit and the sweep, all through the same proxy
        put(store, "half=0/s0.parquet", shard("s0", NUM_ROWS, seed=1))
        store.delete(["half=1/s1.parquet"])
        put(store, "half=1/new.parquet", shard("new", NUM_ROWS))
        second = through(site, proxy.url).run()
        assert second.exit_code == 0, second.stderr
    kinds = {kind for kind, _ in proxy.injected}
    assert {"GET", "PUT", "HEAD", "LIST", "COMMIT", "DELETE"} <= kinds
    assert len({fault for _, fault in proxy.injected}) == len(FAULTS)
    assert sum(proxy.injected.values()) > share * proxy.num_requests / 2
    clean = site.at(f"{s3}/clean")
    rebuild(through(clean, s3_server))
    found, wanted = (published(Location(one.out, s3_server)) for one in (site, clean))
    assert_same(found, wanted, 2 * NUM_ROWS)
    assert reader.faults == []
    assert len(reader.seen) == 2
    print(share, proxy.num_requests, dict(proxy.injected), first.seconds, second.seconds)  # noqa: T201


@pytest.mark.slow
def test_a_request_that_is_never_answered_is_given_up_and_made_again(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(config_kwargs: dict[str, Any], **others: Any) -> S3FileSystem:
        """It waits a second for an answer, and not a minute."""
        assert config_kwargs["read_timeout"] <= 60
        return S3FileSystem(config_kwargs={**config_kwargs, "read_timeout": 1}, **others)

    monkeypatch.setattr("jobs.s3.S3FileSystem", hasty)
    with faulty_s3(s3_server, 1e-9, seed=1, faults=[HANG]) as proxy:  # the first request of each kind
        store = open_store(Location(s3, proxy.url))
        assert store.create("a", b"once")
        assert not store.create("a", b"twice")
        assert store.read("a") == b"once"
        version = store.read_version("a")[1]
        assert store.swap("a", b"swapped", version) is not None
        with store.open("a") as file:
            assert file.read() == b"swapped"
        assert [entry.path for entry in store.list()] == ["a"]
        store.delete(["a"])
        assert not store.exists("a")
    assert {kind for kind, _ in proxy.injected} >= {"GET", "PUT", "HEAD", "LIST", "DELETE"}
    assert proxy.num_given_up == len(proxy.injected)


def test_credentials_that_expire_in_the_middle_end_the_run_and_with_fresh_ones_it_goes_on(
    model: Path, s3: str, s3_server: str
) -> None:
    corpus = open_store(Location(f"{s3}/corpus", s3_server))
    put(corpus, "half=0/s0.parquet", shard("s0", NUM_ROWS))
    site = Site(model, corpus.location.uri, f"{s3}/out", {}, Path())
    with faulty_s3(s3_server, 0.0, seed=3, faults=[EXPIRED]) as proxy:
        assert attempt(*through(site.at(f"{s3}/clean"), proxy.url).arguments()).exit_code == 0
        proxy.sound_requests, proxy.share = 3 * proxy.num_requests // 2, 1.0
        expired = attempt(*through(site, proxy.url).arguments())
        assert expired.exit_code == 1
        assert "the credentials have expired" in expired.stderr
        assert "Traceback" not in expired.stderr
        assert sum(proxy.injected.values()) < 5  # nobody tries again and again
        out = open_store(Location(site.out, s3_server))
        assert read_manifest(out) is None
        out.delete([LOCK])  # its process, which this one is, would be gone
        proxy.share = 0.0
        again = attempt(*through(site, proxy.url).arguments())
    assert 0 < again.summary["existing"] < NUM_ROWS - 5
    found, wanted = (published(Location(uri, s3_server)) for uri in (site.out, f"{s3}/clean"))
    assert_same(found, wanted, NUM_ROWS)


@pytest.mark.chaos
def test_a_large_upload_through_faults_is_whole_or_not_there(s3: str, s3_server: str) -> None:
    content = bytes(101 * MEBIBYTE)  # s3fs sends it in pieces
    with faulty_s3(s3_server, 0.3, seed=5) as proxy:
        store = open_store(Location(s3, proxy.url))
        for number in range(3):
            store.create(f"part-{number}", content)
            assert not store.create(f"part-{number}", b"a late twin")
    assert sum(proxy.injected.values()) > 3
    plain = open_store(Location(s3, s3_server))
    assert [entry.size_bytes for entry in plain.list()] == [len(content)] * 3
    assert all(plain.read(entry.path) == content for entry in plain.list())


@contextmanager
def disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of its own size."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "taskvec-test", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path, num_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(folder)], check=True)


@pytest.mark.chaos
def test_a_full_disk_ends_the_run_and_with_room_the_same_command_goes_on(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 2, NUM_ROWS)
    clean = on_cluster(cluster, model, corpus, tmp_path / "clean")
    with disk(tmp_path / "disk", 64 * 1024) as small:
        site = clean.at(small / "out")
        full = site.run()
        assert full.exit_code == 1
        assert "No space left on device" in full.stderr
        assert "make room on the disk and run the same command again" in full.stderr
        assert "Traceback" not in full.stderr
        assert not (small / "out" / "_manifest.json").exists()
        assert not list(small.rglob("*.tmp"))
        enlarge(small, 16 * MEBIBYTE)
        assert site.run().exit_code == 0
        rebuild(clean)
        old = published(location(clean))
        assert_same(published(location(site)), old, num_rows_of(corpus))

        # and a disk that is full in the very commit
        change_corpus(corpus, NUM_ROWS)
        assert site.run(Point("jobs.finish:publish")).exit_code == -9
        used = sum(path.stat().st_size for path in small.rglob("*") if path.is_file())
        with Reader(location(site)) as reader:
            enlarge(small, (used // 4096 + 128) * 4096)
            fill(small / "ballast")
            full = site.run()
            assert full.exit_code == 1
            assert "make room on the disk and run the same command again" in full.stderr
            assert published(location(site)) == old
            (small / "ballast").unlink()
            assert site.run().summary["embedded"] == 0
        assert reader.faults == []
        changed = clean.at(tmp_path / "changed")
        rebuild(changed)
        assert_same(published(location(site)), published(location(changed)), num_rows_of(corpus))


def fill(path: Path) -> None:
    """Until there is no room for one more byte."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
