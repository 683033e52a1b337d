"""Which shards a URI means."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from jobs.corpus import Corpus, Shard, list_corpus, partition_values, refuse_overlap
from jobs.errors import ConfigurationError, CorpusError
from jobs.storage import Location, open_store


@pytest.fixture(params=["disk", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else str(request.getfixturevalue("s3"))


def fill(base: str, *paths: str) -> None:
    store = open_store(Location(base))
    for path in paths:
        store.create(path, path.encode())


def shards(base: str, uri: str = "") -> list[str]:
    return [shard.path for shard in list_corpus(Location(base + uri)).shards]


def test_a_folder_is_listed_recursively_sorted_and_only_parquet_names_count(base: str) -> None:
    fill(
        base,
        "c/b/2.parquet",
        "c/a.PQ",
        "c/b/1.parq",
        "c/notes.txt",
        "c/x.parquet.crc",
        "c/parquet",
        "d.parquet",
    )
    assert shards(base, "/c") == shards(base, "/c/") == ["a.PQ", "b/1.parq", "b/2.parquet"]
    assert shards(base) == ["c/a.PQ", "c/b/1.parq", "c/b/2.parquet", "d.parquet"]


def test_names_below_the_root_that_start_with_underscore_or_dot_do_not_count(base: str) -> None:
    fill(base, "_c/a.parquet", "_c/_b.parquet", "_c/_tmp/a.parquet", "_c/.x/a.parquet", "_c/y/.z/a.parquet")
    assert shards(base, "/_c") == ["a.parquet"]
    assert shards(base, "/_c/**") == ["a.parquet"]


def test_a_file_that_is_named_is_the_corpus_and_its_folder_the_root(base: str) -> None:
    fill(base, "c/a.parquet", "c/a.parquet.parquet", "c/_b.parquet")
    corpus = list_corpus(Location(base + "/c/a.parquet"))
    assert [shard.path for shard in corpus.shards] == ["a.parquet"]
    assert corpus.location == Location(base + "/c")
    assert shards(base, "/c/_b.parquet") == ["_b.parquet"]


def test_a_folder_with_a_parquet_name_is_a_folder(base: str) -> None:
    fill(base, "out.parquet/part-0.parquet")
    assert shards(base, "/out.parquet") == ["part-0.parquet"]


@pytest.mark.parametrize(
    ("pattern", "root", "found"),
    [
        ("/c/*.parquet", "/c", ["1.parquet", "22.parquet"]),
        ("/c/?.parquet", "/c", ["1.parquet"]),
        ("/c/[0-2].parquet", "/c", ["1.parquet"]),
        ("/c/[!1]*.parquet", "/c", ["22.parquet"]),
        ("/c/*/*.parquet", "/c", ["lang=de/1.parquet", "lang=en/1.parquet"]),
        ("/c/lang=d*/1.parquet", "/c", ["lang=de/1.parquet"]),
        ("/c/lang=en/*", "/c/lang=en", ["1.parquet"]),
        ("/*/1.parquet", "", ["c/1.parquet"]),
    ],
)
def test_a_glob_stays_within_a_folder_and_its_root_is_what_stands_before_it(
    base: str, pattern: str, root: str, found: list[str]
) -> None:
    fill(
        base,
        "c/1.parquet",
        "c/22.parquet",
        "c/lang=de/1.parquet",
        "c/lang=en/1.parquet",
        "c/_x/1.parquet",
        "c/n",
    )
    corpus = list_corpus(Location(base + pattern))
    assert [shard.path for shard in corpus.shards] == found
    assert corpus.location == Location(base + root)


def test_two_stars_go_through_any_number_of_folders(base: str) -> None:
    fill(base, "c/1.parquet", "c/a/2.parquet", "c/a/b/3.parquet", "c/a/b/x", "d/1.parquet")
    assert shards(base, "/c/**") == shards(base, "/c/**/*.parquet")
    assert shards(base, "/c/**/*.parquet") == ["1.parquet", "a/2.parquet", "a/b/3.parquet"]
    assert shards(base, "/**/b/*") == ["c/a/b/3.parquet"]


def test_empty_files_are_listed(base: str) -> None:
    open_store(Location(base)).create("c/a.parquet", b"")
    (shard,) = list_corpus(Location(base + "/c")).shards
    assert shard.size_bytes == 0


def test_a_shard_opens_below_the_root_with_its_version(base: str) -> None:
    fill(base, "c/lang=en/a b.parquet")
    corpus: Corpus = pickle.loads(pickle.dumps(list_corpus(Location(base + "/c"))))
    (shard,) = corpus.shards
    with open_store(corpus.location).open(shard.path, shard.version) as file:
        assert len(file.read()) == shard.size_bytes > 0


def test_partitions_stand_as_they_are_in_the_path_and_decode_to_values(base: str) -> None:
    fill(base, "c/lang=z%C3%BC%2Fx/year=__HIVE_DEFAULT_PARTITION__/plain/a=b.parquet")
    corpus = list_corpus(Location(base + "/c"))
    (shard,) = corpus.shards
    assert shard.partitions == "lang=z%C3%BC%2Fx/year=__HIVE_DEFAULT_PARTITION__"
    assert partition_values(shard) == {"lang": "zü/x", "year": None}
    assert corpus.partition_keys == ("lang", "year")


def test_a_corpus_without_partitions_has_no_keys(base: str) -> None:
    fill(base, "c/=x/a.parquet", "c/b.parquet")
    corpus = list_corpus(Location(base + "/c"))
    assert corpus.partition_keys == ()
    assert [shard.partitions for shard in corpus.shards] == ["", ""]


def test_values_may_be_empty_and_hold_equal_signs() -> None:
    assert partition_values(Shard("a=/b=x=y/f.parquet", "", 1)) == {"a": "", "b": "x=y"}


@pytest.mark.parametrize(
    "other", ["a.parquet", "year=1/lang=en/a.parquet", "lang=en/a.parquet", "lang=en/month=1/a.pq"]
)
def test_shards_with_other_partition_keys_are_refused_with_two_that_differ(base: str, other: str) -> None:
    fill(base, "c/lang=de/year=1/a.parquet", "c/" + other)
    with pytest.raises(CorpusError, match="disagree about their partition folders") as caught:
        list_corpus(Location(base + "/c"))
    assert "lang=de/year=1/a.parquet" in str(caught.value)
    assert other in str(caught.value)


@pytest.mark.parametrize(
    ("path", "told"), [("a=1/a=2/f.parquet", "stands twice"), ("a=%FF/f.parquet", "UTF-8")]
)
def test_partition_folders_that_cannot_be_decoded_are_refused(path: str, told: str) -> None:
    with pytest.raises(CorpusError, match=told):
        partition_values(Shard(path, "", 1))


def test_no_shards_is_an_error_that_tells_what_was_seen_and_what_is_allowed(base: str) -> None:
    fill(base, *(f"c/{index}.csv" for index in range(5)))
    with pytest.raises(ConfigurationError) as caught:
        list_corpus(Location(base + "/c"))
    for told in (base + "/c", "5 other files", "'0.csv', '1.csv', '2.csv'", ".parquet, .parq, .pq"):
        assert told in str(caught.value)
    assert "3.csv" not in str(caught.value)


@pytest.mark.parametrize("uri", ["/c/missing.parquet", "/missing", "/missing/*.parquet", "/c/a.csv"])
def test_what_does_not_exist_or_is_no_parquet_file_is_a_configuration_error(base: str, uri: str) -> None:
    fill(base, "c/a.csv")
    with pytest.raises(ConfigurationError, match=r"there are no (files|shards)"):
        list_corpus(Location(base + uri))


def test_a_glob_of_folders_finds_nothing_and_says_how_to_name_files(base: str) -> None:
    fill(base, "c/lang=en/a.parquet")
    with pytest.raises(ConfigurationError, match=r"names files, not folders: 'folder/\*\*/\*\.parquet'"):
        list_corpus(Location(base + "/c/lang=*"))


def test_patterns_that_cannot_be_understood_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot understand the pattern"):
        list_corpus(Location(f"{tmp_path}/a**b/*.parquet"))
    with pytest.raises(ConfigurationError, match="wildcard in the bucket's name"):
        list_corpus(Location("s3://buck*/a.parquet"))


@pytest.mark.parametrize(
    ("source", "target", "overlaps"),
    [
        ("/c", "/c", True),
        ("/c", "/c/out", True),
        ("/c", "", True),
        ("/c/**/*.parquet", "/c/out", True),
        ("/c/*.parquet", "/c", True),
        ("/c/a.parquet", "/c", True),
        ("/c", "/out", False),
        ("/c", "/c-out", False),
        ("/c/*.parquet", "/c/out", False),
        ("/c/a.parquet", "/c/out", False),
    ],
)
def test_an_output_that_holds_shards_or_would_be_taken_for_some_is_refused(
    base: str, source: str, target: str, *, overlaps: bool
) -> None:
    fill(base, "c/a.parquet")
    input_, output = Location(base + source), Location(base + target)
    if not overlaps:
        refuse_overlap(list_corpus(input_), input_, output)
        return
    with pytest.raises(ConfigurationError, match="overlaps the input"):
        refuse_overlap(list_corpus(input_), input_, output)
