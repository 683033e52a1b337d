"""Bad input is refused with what was given and how to mend it, or becomes rejects; nothing is lost in silence."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file

from encoders.encoder import Encoder
from encoders.protocol import resolve_protocol
from encoders.tokenizer import Tokenizer
from tests.encoders.repositories import TEXTS, edit_weights, write_repository
from tests.integration.commands import Outcome
from tests.integration.conftest import (
    Dataset,
    Embed,
    embed_here,
    manifest_of,
    parts,
    read_view,
    rejects_of,
    snapshot,
    write_corpus,
)


@dataclass(frozen=True)
class Case:
    """A corpus to damage, an output, and the command between them."""

    corpus: Path
    out: Path
    model: Path

    def write(self, name: str, table: pa.Table | dict[str, Any], **options: Any) -> Path:
        path = self.corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
        return path

    def run(
        self, *arguments: str, task: Sequence[str] = ("--task", "retrieval", "--role", "document")
    ) -> Outcome:
        paths = ("--input", str(self.corpus), "--output", str(self.out), "--model", str(self.model))
        # what a test names again wins
        kept = [
            part
            for pair in zip(paths[::2], paths[1::2], strict=True)
            if pair[0] not in arguments
            for part in pair
        ]
        return embed_here(*kept, *task, "--max-actors", "1", *arguments)

    def refused(self, exit_code: int, *told: str, arguments: Sequence[str] = (), **others: Any) -> Outcome:
        """Run; it must fail, say these things, print nothing for machines and leave the output as it was."""
        before = snapshot(self.out)
        outcome = self.run(*arguments, **others)
        assert outcome.exit_code == exit_code, outcome.stderr
        for text in told:
            assert text in outcome.stderr, outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert outcome.stdout == ""
        assert snapshot(self.out) == before
        return outcome


@pytest.fixture
def case(tmp_path: Path, model: Path, embed: Embed) -> Case:
    assert embed is embed_here
    return Case(tmp_path / "corpus", tmp_path / "out", model)


GOOD = {"id": [1, 2], "text": ["a", "b"]}


# Columns and types: the footers tell, before anything is read


@pytest.mark.parametrize("place", [0, 13, 19])
def test_a_column_that_one_shard_of_many_lacks(case: Case, place: int) -> None:
    for number in range(20):
        case.write(f"{number:02}.parquet", {"id": [1], "text" if number != place else "body": ["a"]})
    case.refused(1, f"'{place:02}.parquet' lacks the columns 'text'", "it has 'id', 'body'")


@pytest.mark.parametrize("place", [0, 19])
def test_a_column_that_one_shard_of_many_has(case: Case, place: int) -> None:
    for number in range(20):
        case.write(f"{number:02}.parquet", {"id": [1], "text" if number == place else "body": ["a"]})
    case.refused(1, f"'{1 if place == 0 else 0:02}.parquet' lacks the columns 'text'")


def test_a_column_that_all_shards_lack(case: Case) -> None:
    for name in "bcd":
        case.write(f"{name}.parquet", {"id": [1], "body": ["a"]})
    (case.corpus / "a.parquet").write_bytes(b"")  # which says nothing of columns
    case.refused(2, "'b.parquet' lacks the columns 'text'", "it has 'id', 'body'")


def test_a_wanted_column_of_a_wrong_type_is_no_bad_shard(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.write("b.parquet", {"id": [1], "text": [1.5]})
    skip = ("--set", "input.on_bad_shard=skip")
    case.refused(1, "'b.parquet': the text column 'text' has type double", arguments=skip)


def test_a_type_that_drifts_in_the_last_of_fifty_shards(case: Case) -> None:
    for number in range(50):
        case.write(f"{number:02}.parquet", {"id": [1 if number < 49 else "1"], "text": ["a"]})
    case.refused(1, "type drift in column 'id'", "int64 in 49 shards", "string in '49.parquet'")


class Unpickling(pa.ExtensionType):  # type: ignore[misc]
    """What a crafted file names: a type whose deserialisation is somebody's code."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "test.embed.unpickling")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Unpickling:
        return cls()


def crafted(num_rows: int = 2) -> pa.ExtensionArray:
    return pa.ExtensionArray.from_storage(Unpickling(), pa.array([b"x"] * num_rows))


@pytest.mark.parametrize("depth", ["top", "in a struct", "in a list"])
def test_an_extension_type_in_a_wanted_column_is_refused_by_the_footer(case: Case, depth: str) -> None:
    column = {
        "top": crafted(),
        "in a struct": pa.StructArray.from_arrays([crafted()], ["x"]),
        "in a list": pa.ListArray.from_arrays([0, 1, 2], crafted()),
    }[depth]
    path = case.write("a.parquet", {**GOOD, "kept": column})
    # no page is read: there is none left
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(content[:4] + b"\0" * (len(content) - footer - 4) + content[-footer:])
    case.refused(
        2,
        "'kept",
        "extension type 'test.embed.unpickling'",
        "plain storage type",
        arguments=["--keep-column", "kept"],
    )


# Ids


def test_an_id_that_stands_twice_is_refused_before_anything_is_written(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.write("b.parquet", {"id": [3, 2], "text": ["a", "b"]})
    told = ("1 of 4 rows", "(2 in 'b.parquet' row 1, before in 'a.parquet' row 1)", "input.on_duplicate_id=")
    assert case.refused(1, *told).seconds < 20


# Places


def test_a_corpus_that_is_not_there(case: Case) -> None:
    case.refused(2, str(case.corpus), "nothing exists there; check the path")


def test_a_folder_without_parquet(case: Case) -> None:
    case.corpus.mkdir()
    (case.corpus / "data.csv").write_text("id,text\n1,a\n")
    case.refused(2, "there are no shards at", "'data.csv'", ".parquet")


def test_a_corpus_without_a_single_row(case: Case) -> None:
    empty = {"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}
    case.write("a.parquet", empty)
    case.write("b.parquet", empty)
    case.refused(1, "has 2 shards and not one row")


def test_a_corpus_that_lost_all_its_rows_does_not_empty_the_dataset(case: Case, dataset: Dataset) -> None:
    case.write("a.parquet", {"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())})
    before = snapshot(dataset.out)
    outcome = case.run("--output", str(dataset.out), "--overwrite")
    assert outcome.exit_code == 1
    assert "not one row" in outcome.stderr
    assert snapshot(dataset.out) == before


def test_an_output_inside_the_input(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.refused(2, "overlaps the input", arguments=["--output", str(case.corpus / "vectors")])
    assert not (case.corpus / "vectors").exists()


def test_an_input_inside_the_output(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.refused(2, "overlaps the input", arguments=["--output", str(case.corpus.parent)])


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_an_output_that_is_a_file(case: Case, arguments: Sequence[str]) -> None:
    case.write("a.parquet", GOOD)
    case.out.write_text("mine")
    outcome = case.run(*arguments)
    assert outcome.exit_code == 2, outcome.stderr
    assert str(case.out) in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert case.out.read_text() == "mine"


def test_an_output_among_the_files_that_ray_unpacks_for_a_job(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.write("a.parquet", GOOD)
    here = tmp_path / "session_x" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    case.refused(2, f"the output {here}/vectors", "absolute path", "s3://", arguments=["--output", "vectors"])
    assert not list(here.iterdir())


# Models, tasks, configuration


def test_a_model_that_is_not_there(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.refused(2, "/no/such/model", arguments=["--model", "/no/such/model"])


def test_a_model_whose_weights_only_an_encoder_finds_wanting(case: Case, tmp_path: Path) -> None:
    case.write("a.parquet", GOOD)
    model = write_repository(tmp_path / "holes")
    edit_weights(model, **{"encoder.layer.0.attention.self.query.weight": None})
    outcome = case.run("--model", str(model))
    assert outcome.exit_code == 1, outcome.stderr  # encoders were started, and the model may be mended
    assert "its weights do not fill BertModel: 1 are missing" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (case.out / "_manifest.json").exists()


def test_an_encoder_whose_vectors_are_plausible_and_wrong_is_stopped_by_the_preflight(
    case: Case, tmp_path: Path
) -> None:
    """T5 clamps what overflows in float16, and goes on; nothing else would tell."""
    case.write("a.parquet", {"id": range(len(TEXTS)), "text": TEXTS})
    model = write_repository(tmp_path / "overflowing", "t5")
    name = "encoder.block.0.layer.0.SelfAttention.o.weight"
    edit_weights(model, **{name: 9e4 * load_file(model / "model.safetensors")[name]})
    outcome = case.run("--model", str(model), "--dtype", "float16", task=("--task", "clustering"))
    assert outcome.exit_code == 1, outcome.stderr
    said = " ".join(outcome.stderr.split())
    assert "texts encoded together in float16 have a cosine of 0.9" in said
    assert "to the plain path (one text, no padding), and 0.99 is the least" in said
    assert "Traceback" not in said
    assert not (case.out / "_manifest.json").exists()
    assert parts(case.out) == {}
    protocol = resolve_protocol(str(model))
    encoder = Encoder.load(protocol, device="cpu", dtype="float16")
    vectors = encoder.encode(Tokenizer(protocol).prepare(TEXTS)).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)  # plausible, as was said


def test_a_hub_that_cannot_be_reached_is_no_wrong_command(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case.write("a.parquet", GOOD)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    case.refused(1, "'org/name' is no folder here", "ConnectError", arguments=["--model", "org/name"])


def test_a_task_that_the_model_does_not_have(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.refused(
        2, "no prompt for code/query", "'query', 'document'", task=("--task", "code", "--role", "query")
    )
    case.refused(2, "no prompt for clustering/document", "encoder.prompt=none", task=("--task", "clustering"))


def test_retrieval_without_a_role(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.refused(2, "'retrieval'", "role: query or role: document", task=("--task", "retrieval"))


def test_an_unknown_key_in_the_yaml_file(case: Case, tmp_path: Path) -> None:
    case.write("a.parquet", GOOD)
    (tmp_path / "job.yaml").write_text("input: {text_colum: body}\n")
    case.refused(
        2, "input.text_colum: unknown key", "input.text_columns", arguments=[str(tmp_path / "job.yaml")]
    )


def test_a_gpu_that_this_machine_does_not_have(case: Case) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    case.write("a.parquet", GOOD)
    outcome = case.refused(
        2, "this machine has 0", "compute.device=cpu", "compute.ray_address", arguments=["--device", "cuda"]
    )
    assert outcome.seconds < 60


def test_more_encoders_than_this_machine_has_cores(case: Case) -> None:
    case.write("a.parquet", GOOD)
    three = ["--set", "compute.min_actors=3", "--max-actors", "3"]
    case.refused(2, "3 encoders (compute.min_actors)", "Ray has 2", arguments=three)
    case.refused(2, "3 encoders (compute.min_actors)", "Ray has 2", arguments=[*three, "--dry-run"])


def test_more_cores_for_an_encoder_than_this_machine_has(case: Case) -> None:
    case.write("a.parquet", GOOD)
    case.refused(
        2, "64 cores (compute.cpus_per_actor)", "Ray has 2", arguments=["--set", "compute.cpus_per_actor=64"]
    )


# Names that clash


@pytest.mark.parametrize("key", ["task", "role", "embedding", "num_tokens", "truncated", "text_hash", "Task"])
def test_a_partition_key_that_the_output_uses_itself(case: Case, key: str) -> None:
    case.write(f"{key}=1/a.parquet", GOOD)
    case.refused(2, f"partitioned by {key!r}", "rename the folders")


@pytest.mark.parametrize("key", ["id", "ID"])
def test_a_partition_key_that_is_the_id_column(case: Case, key: str) -> None:
    case.write(f"{key}=1/a.parquet", GOOD)
    case.refused(2, "the id column 'id' is also a partition key", "rename")


@pytest.mark.parametrize("also_in_the_file", [True, False])
def test_a_partition_key_that_is_to_be_kept(case: Case, *, also_in_the_file: bool) -> None:
    case.write("lang=en/a.parquet", {**GOOD, "lang": ["en", "en"]} if also_in_the_file else GOOD)
    case.refused(
        2, "keep_columns holds 'lang'", "partition key", "leave it out", arguments=["--keep-column", "lang"]
    )


def test_partition_keys_that_differ_in_case_only(case: Case) -> None:
    case.write("lang=en/Lang=de/a.parquet", GOOD)
    case.refused(2, "partitioned by 'Lang' twice", "rename the folders")


def test_shards_with_different_partition_keys(case: Case) -> None:
    case.write("lang=en/a.parquet", GOOD)
    case.write("b.parquet", GOOD)
    case.refused(1, "disagree about their partition folders", "'b.parquet' has none")


def test_a_shard_whose_name_is_no_utf8(case: Case) -> None:
    case.write("a.parquet", GOOD)
    os.rename(case.corpus / "a.parquet", os.fsencode(case.corpus) + b"/caf\xe9.parquet")  # noqa: PTH104
    case.refused(1, "caf", "UTF-8", "rename")


# An output that holds something else


def test_an_output_in_another_space_is_replaced_only_on_purpose(case: Case, dataset: Dataset) -> None:
    shutil.copytree(dataset.out, case.out)
    held = manifest_of(case.out)["views"]["retrieval/document"]["space_name"]
    views = "output.views=[retrieval/query, retrieval/document]"
    others = ["--input", str(dataset.corpus), "--set", views]
    outcome = case.refused(
        2, held, "/16/float32", "overwrite", arguments=[*others, "--truncate-dim", "16"], task=()
    )
    assert "cannot be compared" in outcome.stderr
    case.refused(2, held, "/float16", arguments=[*others, "--precision", "float16"], task=())


def test_a_run_with_fewer_views_than_the_output_holds(case: Case, dataset: Dataset) -> None:
    before = snapshot(dataset.out)
    outcome = case.run("--input", str(dataset.corpus), "--output", str(dataset.out))
    assert outcome.exit_code == 2
    assert "holds the view retrieval/query" in outcome.stderr
    assert "list all views" in outcome.stderr
    assert snapshot(dataset.out) == before


def test_a_run_over_another_corpus_than_the_output_was_made_from(case: Case, dataset: Dataset) -> None:
    case.write("a.parquet", GOOD)
    before = snapshot(dataset.out)
    views = "output.views=[retrieval/query, retrieval/document]"
    outcome = case.run("--output", str(dataset.out), "--set", views, task=())
    assert outcome.exit_code == 2
    for told in (str(dataset.corpus), str(case.corpus), "overwrite"):
        assert told in outcome.stderr
    assert snapshot(dataset.out) == before


# Shards that are no shards


def test_shards_that_cannot_be_opened_fail_the_run_and_all_are_counted(case: Case) -> None:
    case.write("a.parquet", GOOD)
    (case.corpus / "empty.parquet").write_bytes(b"")
    (case.corpus / "cut.parquet").write_bytes(case.write("whole.parquet", GOOD).read_bytes()[:-6])
    case.refused(
        1,
        "2 of 4 shards cannot be read",
        "cut.parquet: not a readable Parquet file",
        "empty.parquet: the file is empty",
        "input.on_bad_shard=skip",
    )


def test_a_corpus_of_bad_shards_only_is_never_published(case: Case) -> None:
    case.corpus.mkdir()
    (case.corpus / "empty.parquet").write_bytes(b"")
    case.refused(1, "empty.parquet", arguments=["--set", "input.on_bad_shard=fail"])
    case.refused(1, "not one row", arguments=["--set", "input.on_bad_shard=skip"])


def damage_pages(path: Path) -> None:
    """Overwrite what stands between the first bytes and the footer."""
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(content[:4] + b"\xff" * (len(content) - footer - 4) + content[-footer:])


def test_pages_that_cannot_be_decoded_fail_the_run(case: Case) -> None:
    case.write("a.parquet", GOOD)
    damage_pages(case.write("pages.parquet", {"id": range(50), "text": ["t"] * 50}))
    outcome = case.run()
    assert outcome.exit_code == 1
    assert "shard 'pages.parquet' cannot be read" in outcome.stderr
    assert "input.on_bad_shard=skip" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (case.out / "_manifest.json").exists()


# Rows without a vector, and how many are too many


def test_a_run_that_rejects_too_much_publishes_nothing_and_goes_on_once_more_is_allowed(case: Case) -> None:
    texts = [None if n % 10 == 3 else f"text {n}" for n in range(100)]
    case.write("a.parquet", {"id": range(100), "text": texts})
    outcome = case.run()
    assert outcome.exit_code == 1
    for told in (
        "10 of 100 rows",
        "null_text 10",
        "output.max_rejected_fraction=0.01",
        f"{case.out}/_rejects",
    ):
        assert told in outcome.stderr
    assert outcome.stdout == ""
    assert not (case.out / "_manifest.json").exists()
    assert [row["id"] for row in rejects_of(case.out)] == list(range(3, 100, 10))
    rows = ("--set", "output.max_rejected_rows=9", "--set", "output.max_rejected_fraction=1")
    again = case.run(*rows)
    assert (again.exit_code, "output.max_rejected_rows=9" in again.stderr) == (1, True)
    summary = case.run("--set", "output.max_rejected_fraction=0.1").summary
    assert (summary["embedded"], summary["existing"], summary["rejected"]) == (0, 90, 10)


def test_a_run_stops_as_soon_as_it_is_sure_that_it_rejects_too_much(case: Case) -> None:
    case.write("a.parquet", {"id": range(4000), "text": pa.nulls(4000, pa.string())}, row_group_size=10)
    outcome = case.run("--fragment-rows", "10", "--set", "output.max_rejected_rows=15")
    assert outcome.exit_code == 1
    assert "at least 20 of 4,000 rows" in outcome.stderr
    assert len(list((case.out / "_receipts").iterdir())) < 400


# One corpus with everything that can be wrong with a row


FIRST = ("--set", "input.on_duplicate_id=keep_first")
ODD_IDS = ["../../x", "/etc/passwd", "a/b", "%2F..", "", "größe 日本", "a\0b\n", "x" * 2_000_000]


def damaged_strings(values: list[bytes | None]) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory, model: Path, embed: Embed) -> tuple[Case, Outcome]:
    assert embed is embed_here
    folder = tmp_path_factory.mktemp("messy")
    case = Case(folder / "corpus", folder / "out", model)
    text = ["one", "two", "three"]
    case.write("good.parquet", {"id": ["g0", "g1", "g2"], "text": text})
    case.write("null text.parquet", {"id": ["t0", "t1", "t2"], "text": ["one", None, ""]})
    case.write("null id.parquet", {"id": [None, "i1", None], "text": ["one", "two", None]})
    case.write("all null.parquet", {"id": ["n0", "n1"], "text": pa.nulls(2)})
    case.write("bad utf8.parquet", {"id": ["u0", "u1"], "text": damaged_strings([b"one", b"caf\xe9"])})
    case.write("bad id.parquet", {"id": damaged_strings([b"x0", b"\xff\xfe"]), "text": ["one", "two"]})
    case.write("dictionary.parquet", {"id": ["d0", "d1", "d2"], "text": pa.array(text).dictionary_encode()})
    case.write("large.parquet", {"id": ["l0", "l1", "l2"], "text": pa.array(text, pa.large_string())})
    case.write("binary.parquet", {"id": ["b0", "b1", "b2"], "text": [b"one", b"caf\xe9", None]})
    case.write(
        "view.parquet",
        {"id": pa.array(["v0"], pa.string_view()), "text": pa.array(["one"], pa.string_view())},
    )
    case.write("zero.parquet", {"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    case.write("extension.parquet", {"id": ["e0", "e1"], "text": ["one", "two"], "other": crafted()})
    case.write("repeated.parquet", {"id": ["r", "r", "r"], "text": ["one", "one", "two"]})
    case.write("odd ids.parquet", {"id": ODD_IDS, "text": ["one"] * len(ODD_IDS)})
    case.write("long.parquet", {"id": ["big"], "text": ["word " * 400_000]})
    # shapes that are merely odd
    case.write(
        "row groups.parquet", {"id": [f"s{n}" for n in range(30)], "text": ["t"] * 30}, row_group_size=1
    )
    case.write("giant.parquet", {"id": [f"z{n}" for n in range(1500)], "text": ["t"] * 1500})
    for number in range(20):
        case.write(f"tiny/{number}.parquet", {"id": [f"y{number}"], "text": ["t"]})
    damage_pages(case.write("pages.parquet", {"id": [f"p{n}" for n in range(7)], "text": ["t"] * 7}))
    (case.corpus / "empty.parquet").write_bytes(b"")
    (case.corpus / "cut.parquet").write_bytes((case.corpus / "good.parquet").read_bytes()[:-6])
    return case, embed_messy(case)


def embed_messy(case: Case) -> Outcome:
    # more encoders than there is room for, which must not keep the helpers from starting
    allowed = ("--set", "input.on_bad_shard=skip", "--set", "output.max_rejected_fraction=0.05", *FIRST)
    return case.run(*allowed, "--fragment-rows", "1000", "--max-actors", "5")


REASONS: dict[str, list[tuple[str | None, str, int]]] = {
    "null text.parquet": [("t1", "null_text", 1)],
    "null id.parquet": [(None, "null_id", 0), (None, "null_id", 2)],
    "all null.parquet": [("n0", "null_text", 0), ("n1", "null_text", 1)],
    "bad utf8.parquet": [("u1", "undecodable", 1)],
    "bad id.parquet": [(None, "undecodable", 1)],
    "repeated.parquet": [("r", "duplicate_id", 1), ("r", "duplicate_id", 2)],
    "binary.parquet": [("b1", "undecodable", 1), ("b2", "null_text", 2)],
    "pages.parquet": [(None, "unreadable_shard", row) for row in range(7)],
}


def test_every_reject_is_named_with_its_reason_its_shard_and_its_row(messy: tuple[Case, Outcome]) -> None:
    case, _ = messy
    found: dict[str, list[tuple[Any, ...]]] = {}
    for reject in rejects_of(case.out):
        found.setdefault(reject["shard"], []).append((reject["id"], reject["reason"], reject["row"]))
    assert found == REASONS


def test_rows_read_are_vectors_and_rejects(messy: tuple[Case, Outcome]) -> None:
    case, outcome = messy
    summary = outcome.summary
    num_rejects = sum(map(len, REASONS.values()))
    assert summary["rejected"] == num_rejects
    assert summary["rows"] == summary["embedded"] + num_rejects
    assert summary["rows"] == 3 + 3 + 3 + 2 + 2 + 2 + 3 + 3 + 3 + 1 + 0 + 2 + 3 + 8 + 1 + 30 + 1500 + 20 + 7
    assert read_view(case.out).num_rows == summary["embedded"]
    counts = Counter(reason for rejects in REASONS.values() for _, reason, _ in rejects)
    for reason, count in counts.items():
        assert f"{reason} {count}" in outcome.stderr


def test_every_other_row_has_its_vector(messy: tuple[Case, Outcome]) -> None:
    ids = Counter(read_view(messy[0].out)["id"].to_pylist())
    rejected = {reject[0] for rejects in REASONS.values() for reject in rejects}
    expected = Counter(
        row["id"]
        for path in messy[0].corpus.rglob("*.parquet")
        if path.name not in ("empty.parquet", "cut.parquet", "pages.parquet", "bad id.parquet")
        for row in pq.ParquetFile(path).read(columns=["id"]).to_pylist()
        if row["id"] is not None and row["id"] not in rejected
    )
    assert ids == expected + Counter(["x0", "r"])
    assert all(ids[odd] == 1 for odd in ODD_IDS)


def test_nothing_is_written_beside_the_output(messy: tuple[Case, Outcome]) -> None:
    case, _ = messy
    assert sorted(path.name for path in case.out.parent.iterdir()) == ["corpus", "out"]


def test_equal_texts_get_equal_vectors_however_their_column_is_laid_out(messy: tuple[Case, Outcome]) -> None:
    rows = {row["id"]: row for row in read_view(messy[0].out).to_pylist()}
    for name in ("d0", "l0", "b0", "v0", "x0", "e0"):
        assert rows[name]["text_hash"] == rows["g0"]["text_hash"]
        assert rows[name]["embedding"] == pytest.approx(rows["g0"]["embedding"], abs=1e-6)
    assert rows["big"]["truncated"]


def test_skipped_shards_stand_in_the_manifest_and_in_the_summary(messy: tuple[Case, Outcome]) -> None:
    case, outcome = messy
    skipped = {shard["path"]: shard["reason"] for shard in manifest_of(case.out)["bad_shards"]}
    assert skipped.keys() == {"cut.parquet", "empty.parquet"}
    assert "empty" in skipped["empty.parquet"]
    assert "skipped shards" in outcome.stderr
    assert "cut.parquet, empty.parquet" in outcome.stderr
    assert "zero.parquet" in {shard["path"] for shard in manifest_of(case.out)["shards"]}


def test_a_rerun_over_bad_input_does_nothing(messy: tuple[Case, Outcome]) -> None:
    case, first = messy
    before = snapshot(case.out)
    again = embed_messy(case).summary
    assert (again["embedded"], again["existing"]) == (0, first.summary["embedded"])
    assert (again["rows"], again["rejected"]) == (first.summary["rows"], first.summary["rejected"])
    assert snapshot(case.out) == before


def test_skipped_shards_come_in_once_they_are_mended(messy: tuple[Case, Outcome]) -> None:
    case, first = messy
    case.write("empty.parquet", {"id": ["m0"], "text": ["mended"]})
    case.write("cut.parquet", {"id": ["m1"], "text": ["mended"]})
    case.write("pages.parquet", {"id": [f"p{n}" for n in range(7)], "text": ["t"] * 7})
    # which no longer needs to skip, nor keeps what it replaces
    outcome = case.run("--fragment-rows", "1000", "--set", "output.keep_manifests=1", *FIRST)
    assert outcome.summary["embedded"] == 9
    assert outcome.summary["rejected"] == first.summary["rejected"] - 7
    assert manifest_of(case.out)["bad_shards"] == []
    assert "pages.parquet" not in {reject["shard"] for reject in rejects_of(case.out)}


def test_overwriting_replaces_the_dataset_and_its_parts_go(
    messy: tuple[Case, Outcome], tmp_path: Path
) -> None:
    case, _ = messy
    old = parts(case.out)
    corpus = write_corpus(tmp_path / "corpus", ("x.parquet",), 20)
    only = ("--set", "output.keep_manifests=1")
    outcome = case.run("--input", str(corpus), "--truncate-dim", "8", "--overwrite", *only)
    assert outcome.summary["embedded"] == 20
    assert old.keys() & parts(case.out).keys() == set()
    assert len(parts(case.out)) == 1
    assert rejects_of(case.out) == []
    assert manifest_of(case.out)["views"]["retrieval/document"]["dim"] == 8
