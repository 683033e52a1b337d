"""A shard that is replaced or removed between the plan and its reading is noticed; a run may list anew and go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

import jobs.embed
from jobs.lease import LOCK
from jobs.storage import Location
from tests.chaos.datasets import Reader, assert_same, published
from tests.chaos.plain import embed as rebuild
from tests.integration.commands import shard
from tests.integration.conftest import Embed, Outcome, manifest_of, read_view

pytestmark = pytest.mark.slow

REPLAN = ("--set", "input.on_changed_shard=replan", "--set", "output.orphan_grace_hours=0")


@dataclass(frozen=True)
class Case:
    """A corpus of two shards, reached by `arguments`, and what can happen to it."""

    arguments: tuple[str, ...]
    out: Path
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]


@pytest.fixture(params=["disk", "s3"])
def case(request: pytest.FixtureRequest, tmp_path: Path, model: Path) -> Case:
    if request.param == "disk":
        corpus = tmp_path / "corpus"
        corpus.mkdir()

        def put(name: str, content: bytes) -> None:
            (corpus / name).write_bytes(content)

        def remove(name: str) -> None:
            (corpus / name).unlink()

        source = ["--input", str(corpus)]
    else:
        uri = f"{request.getfixturevalue('s3')}/corpus"
        endpoint = request.getfixturevalue("s3_server")
        fs = S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

        def put(name: str, content: bytes) -> None:
            fs.pipe_file(f"{uri}/{name}", content, ACL="public-read")

        def remove(name: str) -> None:
            fs.rm_file(f"{uri}/{name}")

        # Ray's workers may have been started before there was a server: all that they need is in the configuration.
        source = ["--input", uri, "--set", f"input.endpoint_url={endpoint}", "--set", "input.anonymous=true"]
    for name in ("a", "b"):
        put(f"{name}.parquet", shard(name, 40))
    where = [*source, "--output", str(tmp_path / "out"), "--model", str(model), "--dtype", "float32"]
    task = ["--task", "retrieval", "--role", "document", "--fragment-rows", "20", "--max-actors", "1"]
    return Case((*where, *task, "--set", "output.max_rejected_fraction=0.1"), tmp_path / "out", put, remove)


def after_the_plan(monkeypatch: pytest.MonkeyPatch, happens: Callable[[int], None]) -> list[int]:
    """Let something happen each time that a plan has been made; the list counts plans."""
    plans: list[int] = []
    real = jobs.embed.make_plan

    def make_plan(*arguments: Any, **more: Any) -> Any:
        plan = real(*arguments, **more)
        plans.append(len(plans))
        happens(len(plans))
        return plan

    monkeypatch.setattr(jobs.embed, "make_plan", make_plan)
    return plans


def failed(case: Case, outcome: Outcome, *told: str) -> None:
    assert outcome.exit_code == 1, outcome.stderr
    for text in told:
        assert text in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (case.out / "_manifest.json").exists()
    assert not (case.out / LOCK).exists()


def test_a_replaced_shard_fails_the_run_and_is_named(
    case: Case, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_the_plan(monkeypatch, lambda _: case.put("b.parquet", shard("new", 40)))
    failed(
        case,
        embed(*case.arguments),
        "b.parquet has changed since it was listed",
        "run the same command again",
    )


@pytest.mark.parametrize("on_bad_shard", ["fail", "skip"])
def test_a_removed_shard_fails_the_run_and_is_no_bad_shard(
    case: Case, embed: Embed, monkeypatch: pytest.MonkeyPatch, on_bad_shard: str
) -> None:
    after_the_plan(monkeypatch, lambda _: case.remove("b.parquet"))
    outcome = embed(*case.arguments, "--set", f"input.on_bad_shard={on_bad_shard}")
    failed(case, outcome, "b.parquet is gone since it was listed")


@pytest.mark.parametrize("case", ["disk", pytest.param("s3", marks=pytest.mark.chaos)], indirect=True)
def test_a_run_that_may_plan_anew_embeds_what_is_there_now(
    case: Case, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def happens(plan: int) -> None:
        if plan == 1:
            case.put("b.parquet", shard("new", 60))
            case.put("c.parquet", shard("c", 20))
        elif plan == 2:
            case.remove("c.parquet")

    plans = after_the_plan(monkeypatch, happens)
    with Reader(Location(str(case.out))) as reader:
        outcome = embed(*case.arguments, *REPLAN)
    summary = outcome.summary
    assert len(plans) == 3
    assert outcome.stderr.count("Listing the corpus anew") == 2
    assert summary["rows"] == 100
    assert summary["embedded"] + summary["existing"] == 95
    assert [one["path"] for one in manifest_of(case.out)["shards"]] == ["a.parquet", "b.parquet"]
    ids = read_view(case.out)["id"].to_pylist()
    assert {name.partition("-")[0] for name in ids} == {"a", "new"}
    assert len(ids) == 95
    parts = list(case.out.glob("task=*/**/part-*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 95
    clean = case.out.with_name("clean")
    rebuild(*(str(clean) if one == str(case.out) else one for one in (*case.arguments, *REPLAN)))
    assert_same(published(Location(str(case.out))), published(Location(str(clean))), 100)
    assert reader.faults == []
    assert len(reader.seen) == 1


@pytest.mark.parametrize("case", ["disk"], indirect=True)
def test_a_corpus_that_is_written_anew_as_a_whole_is_another_one_and_no_other_disk(
    case: Case, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def happens(plan: int) -> None:
        if plan == 1:
            case.remove("a.parquet")
            case.remove("b.parquet")
            case.put("new.parquet", shard("new", 40))

    plans = after_the_plan(monkeypatch, happens)
    failed(case, embed(*case.arguments), "written anew since it was listed", "run the same command again")
    for name in ("a", "b"):
        case.put(f"{name}.parquet", shard(name, 40))
    case.remove("new.parquet")
    plans.clear()
    summary = embed(*case.arguments, *REPLAN).summary
    assert len(plans) == 2
    assert summary["rows"] == 40
    assert [one["path"] for one in manifest_of(case.out)["shards"]] == ["new.parquet"]


@pytest.mark.parametrize("case", ["disk"], indirect=True)
def test_a_corpus_that_never_rests_fails_the_run_in_the_end(
    case: Case, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.embed._MOST_REPLANS", 1)
    plans = after_the_plan(monkeypatch, lambda plan: case.put("b.parquet", shard(f"new{plan}", 40)))
    failed(case, embed(*case.arguments, *REPLAN), "b.parquet has changed since it was listed")
    assert len(plans) == 2
