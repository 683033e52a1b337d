"""The configuration is one frozen tree, or one error that says everything that is wrong with it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.config import JobConfig, config_reference, dump_config, load_config, parse_yaml
from jobs.errors import ConfigurationError
from jobs.footers import Columns
from jobs.reference import FLAGS
from jobs.storage import Location

REQUIRED: list[tuple[str, object]] = [
    ("input.uri", "/corpus"),
    ("encoder.model", "org/name"),
    ("output.uri", "/vectors"),
    ("output.views", ["retrieval/document"]),
]

# For every field, values that are allowed and equal to what the configuration then holds in JSON.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "input.uri": st.sampled_from(["/a", "/a/*.parquet", "s3://bucket/a/b@c:d"]),
    "input.id_column": st.sampled_from(["key", "id", "text"]),
    "input.text_columns": st.lists(st.text(min_size=1), min_size=1, unique=True),
    "input.text_joiner": st.text(),
    "input.keep_columns": st.lists(st.sampled_from(["a", "b", "text2"]), unique=True),
    "input.fragment_rows": st.integers(min_value=1),
    "input.max_fragment_bytes": st.integers(min_value=1),
    "input.on_bad_shard": st.sampled_from(["fail", "skip"]),
    "input.on_changed_shard": st.sampled_from(["fail", "replan"]),
    "input.on_duplicate_id": st.sampled_from(["fail", "keep_first", "keep_all"]),
    "input.endpoint_url": st.none(),
    "input.anonymous": st.just(False),
    "encoder.model": st.sampled_from(["org/name", "/models/name", "./name"]),
    "encoder.revision": st.none() | st.sampled_from(["main", "0" * 40]),
    "encoder.trust_remote_code": st.just([]),
    "encoder.prompt": st.just("auto"),
    "encoder.prompts": st.dictionaries(
        st.from_regex(r"[a-z0-9-]+", fullmatch=True),
        st.dictionaries(st.sampled_from(["query", "document"]), st.text()),
    ),
    "encoder.instruction": st.none()
    | st.text()
    | st.dictionaries(
        st.sampled_from(["retrieval", "code"]),
        st.text() | st.dictionaries(st.sampled_from(["query", "document"]), st.text()),
    ),
    "encoder.protocol": st.none()
    | st.sampled_from(["intfloat/e5-base-v2", {"pooling": "cls", "truncate_dims": [8]}]),
    "encoder.adapters": st.dictionaries(
        st.from_regex(r"[a-z0-9-]+", fullmatch=True),
        st.sampled_from(["none", "/adapters/a", "org/name/a@main"]),
    ),
    "encoder.truncate_dim": st.none() | st.integers(min_value=1),
    "encoder.force_truncate_dim": st.just(False),
    "encoder.normalize": st.none() | st.booleans(),
    "encoder.max_seq_length": st.none() | st.integers(min_value=1),
    "encoder.long_text": st.sampled_from(["truncate", "reject"]),
    "encoder.chunk_tokens": st.none(),
    "encoder.chunk_overlap": st.just(0),
    "encoder.dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    "encoder.precision": st.sampled_from(["float32", "float16", "int8", "binary"]),
    "encoder.ranges_from": st.none(),
    "compute.device": st.just("auto"),  # on the others some of the next ones would be ignored
    "compute.min_actors": st.integers(min_value=1, max_value=4),
    "compute.max_actors": st.none() | st.integers(min_value=4),
    "compute.cpus_per_actor": st.none() | st.integers(min_value=1),
    "compute.gpus_per_actor": st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    "compute.max_batch_tokens": st.just("auto") | st.integers(min_value=1),
    "compute.preflight": st.booleans(),
    "compute.tokenize_concurrency": st.none() | st.integers(min_value=1),
    "compute.ray_address": st.none() | st.just("local"),
    "compute.num_cpus": st.none() | st.integers(min_value=1),
    "compute.no_progress_timeout_seconds": st.integers(min_value=1),
    "output.uri": st.sampled_from(["/b", "s3://bucket/b"]),
    "output.views": st.lists(
        st.fixed_dictionaries(
            {
                "task": st.sampled_from(["retrieval", "code"]),
                "role": st.sampled_from(["query", "document", None]),
            }
        ),
        min_size=1,
        unique_by=lambda view: (view["task"], view["role"]),
    ),
    "output.endpoint_url": st.none(),
    "output.compression_level": st.integers(min_value=1, max_value=22),
    "output.row_group_rows": st.integers(min_value=1),
    "output.calibration_rows": st.none(),
    "output.max_rejected_rows": st.none() | st.integers(min_value=0),
    "output.max_rejected_fraction": st.floats(min_value=0, max_value=1),
    "output.keep_manifests": st.integers(min_value=1),
    "output.orphan_grace_hours": st.floats(min_value=0, max_value=1e6),
    "output.lease_wait_seconds": st.integers(min_value=0),
    "output.retry_rejects": st.booleans(),
    "output.carry_over": st.booleans(),
    "output.overwrite": st.booleans(),
}

OVERRIDES = st.fixed_dictionaries({}, optional=VALUES).map(lambda chosen: list(chosen.items()))


def load(*overrides: tuple[str, object]) -> JobConfig:
    return load_config(None, [*REQUIRED, *overrides])


def refused(*overrides: tuple[str, object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(*overrides)
    return str(caught.value)


def write(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def value_at(config: JobConfig, name: str) -> object:
    section, field = name.split(".")
    return dump_config(config)[section][field]  # type: ignore[index]


def test_the_values_below_cover_every_field() -> None:
    assert list(VALUES) == [field.name for field in config_reference()]


@given(OVERRIDES)
def test_an_override_sets_its_field_and_no_other(overrides: list[tuple[str, object]]) -> None:
    config, plain = load(*overrides), load()
    given_values = dict(overrides)
    for name in VALUES:
        assert value_at(config, name) == given_values.get(name, value_at(plain, name))


@given(OVERRIDES, st.randoms())
def test_the_order_of_overrides_of_different_fields_is_irrelevant(
    overrides: list[tuple[str, object]], random: Any
) -> None:
    shuffled = list(overrides)
    random.shuffle(shuffled)
    assert load(*shuffled) == load(*overrides)


@given(OVERRIDES)
def test_a_dumped_configuration_loads_as_an_equal_one(overrides: list[tuple[str, object]]) -> None:
    config = load(*overrides)
    through_json = json.loads(json.dumps(dump_config(config)))
    through_yaml = parse_yaml(yaml.safe_dump(through_json, allow_unicode=False), "dump")
    assert through_yaml == through_json
    assert JobConfig.model_validate(through_yaml) == config


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(VALUES))
            | st.text()
            | st.from_regex(r"(input|encoder)\.[a-z_.]+", fullmatch=True),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
                ),
                max_leaves=5,
            ),
        ),
        max_size=4,
    )
)
def test_whatever_is_given_makes_a_configuration_or_one_configuration_error(
    overrides: list[tuple[str, object]],
) -> None:
    try:
        load(*overrides)
    except ConfigurationError as error:
        lengths = [len(line) for line in str(error).splitlines()]
    else:
        lengths = []
    assert max(lengths, default=0) < 600


def test_overrides_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "encoder: {model: org/name, dtype: float32, precision: float16}\ncompute:\n")
    config = load_config(path, [*REQUIRED, ("encoder.dtype", "float16")])
    assert (config.encoder.dtype, config.encoder.precision) == ("float16", "float16")
    assert config.encoder.prompt == "auto"


def test_an_override_leaves_nodes_alone_that_a_yaml_alias_shares(tmp_path: Path) -> None:
    path = write(tmp_path, "input: &store {uri: s3://b/x, endpoint_url: 'http://h:9000'}\noutput: *store\n")
    config = load_config(
        path, [("output.uri", "s3://b/y"), ("output.views", "clustering"), ("encoder.model", "m")]
    )
    assert (config.input.uri, config.output.uri) == ("s3://b/x", "s3://b/y")
    assert config.output.location() == Location("s3://b/y", "http://h:9000")


def test_an_override_reaches_into_prompts() -> None:
    config = load(("encoder.prompts", {"code": {"query": "a"}}), ("encoder.prompts.code.document", ""))
    assert config.encoder.prompts == {"code": {"query": "a", "document": ""}}


def test_the_tree_is_frozen_equal_by_value_and_can_be_pickled() -> None:
    config = load()
    with pytest.raises(ValidationError, match="frozen"):
        config.input.id_column = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.output = config.output  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config == load()


def test_location_and_columns_say_what_was_configured() -> None:
    config = load(
        ("input.uri", "s3://corpora/wiki"),
        ("input.endpoint_url", "http://localhost:9000"),
        ("input.anonymous", True),
        ("input.text_columns", ["title", "body"]),
        ("input.keep_columns", "title"),
    )
    assert config.input.location() == Location("s3://corpora/wiki", "http://localhost:9000", anonymous=True)
    assert config.input.columns() == Columns("id", ("title", "body"), ("title",))


def test_a_lone_item_stands_for_a_list_of_one() -> None:
    config = load(("input.text_columns", "body"), ("output.views", {"task": "code", "role": "query"}))
    assert config.input.text_columns == ("body",)
    assert [str(view) for view in config.output.views] == ["code/query"]


def test_short_and_long_views_are_equal() -> None:
    short = load(("output.views", ["retrieval/query", "clustering"]))
    long = load(("output.views", [{"task": "retrieval", "role": "query"}, {"task": "clustering"}]))
    assert short == long


def test_a_text_column_may_be_kept_or_be_the_id() -> None:
    config = load(
        ("input.id_column", "text"), ("input.text_columns", ["text", "b"]), ("input.keep_columns", ["b"])
    )
    assert config.input.columns() == Columns("text", ("text", "b"), ("b",))


def test_home_is_expanded_in_local_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    config = load(("input.uri", "~/corpus/*.parquet"), ("output.uri", "~/v"), ("encoder.model", "~/m"))
    assert config.input.uri == "/home/u/corpus/*.parquet"
    assert (config.output.uri, config.encoder.model) == ("/home/u/v", "/home/u/m")


@pytest.mark.parametrize(
    ("unknown", "closest"),
    [
        ("encoder.modle", "encoder.model"),
        ("input.id_colum", "input.id_column"),
        ("input.revision", "encoder.revision"),
        ("compute.batch_tokens", "compute.max_batch_tokens"),
        ("encoder.pooled.x", "encoder"),
        ("inputs.uri", "input"),
    ],
)
def test_an_unknown_key_is_refused_with_the_closest_name(unknown: str, closest: str) -> None:
    message = refused((unknown, "x"))
    assert "unknown key; the closest known name is " + closest in message
    assert unknown.removesuffix(".uri").removesuffix(".x") in message


def test_an_unknown_key_of_a_view_is_refused_with_the_closest_name() -> None:
    assert "output.views.0.rol: unknown key; the closest known name is output.views.0.role" in refused(
        ("output.views", [{"task": "code", "rol": "query"}])
    )


def test_an_override_outside_any_section_is_refused_with_the_closest_name() -> None:
    assert "encoder.model" in refused(("model", "x"))


def test_a_dotted_key_in_yaml_is_refused_with_its_mended_form(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"compute\.device: a dotted key; in YAML write it as compute: {device: \.\.\.}",
    ):
        load_config(write(tmp_path, "compute.device: cpu"), REQUIRED)


@pytest.mark.parametrize("field", [field for field in config_reference() if field.default == "required"])
def test_a_missing_required_field_names_its_flag(field: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(None, [one for one in REQUIRED if one[0] != field.name])
    assert f"{field.name}: missing; give {FLAGS[field.name]}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("input.fragment_rows", 0, "given 0; allowed: integer > 0 (--fragment-rows)"),
        ("input.fragment_rows", "ten", "given 'ten'; allowed: integer > 0"),
        ("input.fragment_rows", True, "given True; allowed: integer > 0"),
        ("input.text_columns", [], "given []; allowed: text | list of text, at least one (--text-column)"),
        (
            "input.text_columns",
            ["a", 3],
            "input.text_columns.1: given 3; allowed: string; put text in quotes",
        ),
        ("input.text_joiner", None, 'given null; allowed: text; put text in quotes, also an empty one: ""'),
        ("input.id_column", "", "given ''; allowed: text, not empty"),
        ("input.anonymous", "yes", "given 'yes'; allowed: true | false"),
        ("encoder.revision", 1234567, "given 1234567; allowed: text | null; put text in quotes"),
        (
            "encoder.dtype",
            "fp16",
            "given 'fp16'; allowed: auto | float32 | bfloat16 | float16 | int8 (--dtype)",
        ),
        ("encoder.prompts", {"code": {"passage": "x"}}, "allowed: 'query' or 'document'"),
        ("encoder.prompts", {"Code": {}}, "lower-case"),
        ("encoder.prompts", {"code": "x"}, "encoder.prompts.code: given 'x'; allowed: {task: {role: text}}"),
        ("input.uri", "--dry-run", "given '--dry-run', which is a flag"),
        ("compute.gpus_per_actor", float("nan"), "given nan"),
        ("compute.gpus_per_actor", 1.5, "whole number"),
        (
            "compute.max_batch_tokens",
            "many",
            "given 'many'; allowed: auto | integer > 0 (--max-batch-tokens)",
        ),
        ("output.compression_level", 23, "given 23; allowed: integer 1 to 22"),
        ("output.views", [], "at least one"),
        ("output.views", ["Retreival"], "lower-case"),
        ("output.views", ["retrieval/passage"], "output.views.0.role: given 'passage'"),
        ("output.views", [3], "output.views.0: given 3; allowed: list of task or task/role"),
        ("output.views", ["clustering", {"task": "clustering"}], "'clustering' more than once"),
        ("input.keep_columns", ["a", "a"], "'a' more than once"),
        ("input.text_columns", ["a", "a"], "'a' more than once"),
        ("input.keep_columns", ["id"], "kept anyway"),
        ("input.keep_columns", ["ID"], "'ID', and the id column 'id' is kept anyway"),
        ("input.keep_columns", ["lang", "title", "Lang"], "'lang' and 'Lang', which are one column in SQL"),
        ("input.keep_columns", ["Role"], "column 'Role' would clash with the output's own 'role'"),
        ("input.id_column", "TASK", "column 'TASK' would clash with the output's own 'task'"),
        ("input.keep_columns", ["text_hash"], "would clash with the output's own 'text_hash'"),
        ("input.id_column", "embedding", "would clash with the output's own 'embedding'"),
        ("input.anonymous", True, "s3:// only"),
        ("output.endpoint_url", "http://h:1", "s3:// only"),
        ("input.uri", "gs://bucket/x", "scheme is unknown; allowed"),
        ("input.uri", "s3:/bucket/x", "lacks the //"),
        ("encoder.model", "https://huggingface.co/org/name", "Hub id"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_given_and_what_is_allowed(
    name: str, wrong: object, said: str
) -> None:
    message = refused((name, wrong))
    assert said in message
    assert name.partition(".")[0] in message


@pytest.mark.parametrize("revision", [None, "main", "ABCDEF", "a" * 39])
def test_remote_code_needs_a_full_commit_hash(revision: str | None) -> None:
    code = ("encoder.trust_remote_code", [f"org/name@{'a' * 40}"])
    assert "40 hexadecimal digits" in refused(code, ("encoder.revision", revision))
    assert load(code, ("encoder.revision", "a" * 40)).encoder.trust_remote_code == tuple(code[1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (True, "true would run whatever code"),
        (["org/name"], "org/name@commit"),
        (["org/name@main"], "org/name@commit"),
        ([f"name@{'a' * 40}"], "org/name@commit"),
        ([f"org/name@{'a' * 39}"], "org/name@commit"),
        ([f"../name/x@{'a' * 40}"], "org/name@commit"),
    ],
)
def test_code_runs_from_a_list_of_commits_only(given: object, said: str) -> None:
    assert said in refused(("encoder.trust_remote_code", given), ("encoder.revision", "a" * 40))


def test_no_code_may_run_where_nothing_is_said() -> None:
    assert load().encoder.trust_remote_code == ()
    assert load(("encoder.trust_remote_code", False)).encoder.trust_remote_code == ()


def test_options_that_would_be_ignored_together_are_refused() -> None:
    assert "prompt: none" in refused(
        ("encoder.prompt", "none"), ("encoder.prompts", {"code": {"query": "x"}})
    )
    assert "max_actors is 1" in refused(("compute.max_actors", 1), ("compute.min_actors", 2))
    assert "num_cpus" in refused(("compute.num_cpus", 1), ("compute.ray_address", "host:6379"))
    assert "gpus_per_actor is 0.5" in refused(("compute.device", "cpu"), ("compute.gpus_per_actor", 0.5))
    assert "cpus_per_actor is 2" in refused(("compute.device", "cuda"), ("compute.cpus_per_actor", 2))


def test_columns_that_are_read_and_not_kept_may_differ_in_case_only() -> None:
    columns = load(("input.text_columns", ["Title", "title"]), ("input.keep_columns", ["TITLE"])).input
    assert columns.columns().names == ("id", "TITLE", "Title", "title")


def test_what_concerns_int8_is_refused_without_it() -> None:
    int8, ranges = ("encoder.precision", "int8"), ("encoder.ranges_from", "s3://bucket/other")
    rows = ("output.calibration_rows", 100)
    assert load(int8, ranges).encoder.ranges_from == "s3://bucket/other"
    assert load(int8, rows).output.calibration_rows == 100
    assert "ranges_from is for precision int8, and precision is binary" in refused(
        ranges, ("encoder.precision", "binary")
    )
    for others in ((), (int8, ranges)):
        assert "\n  output.calibration_rows is for encoder.precision=int8" in refused(rows, *others)


def test_every_problem_is_named_in_one_error() -> None:
    message = refused(("input.fragment_rows", 0), ("encoder.modle", "x"), ("compute.device", "tpu"))
    assert "3 problems" in message
    assert all(name in message for name in ("input.fragment_rows", "encoder.modle", "compute.device"))


def test_a_long_value_is_shown_in_at_most_80_characters() -> None:
    message = refused(("encoder.dtype", "x" * 1000))
    assert "x" * 70 in message
    assert "x" * 80 not in message


@pytest.mark.parametrize(
    "secret_uri",
    [
        "s3://KEY:HUSH@bucket/x",
        "s3://KEY:HU/SH@bucket/x",
        "s3://HUSH@bucket",
        "s3://KEY:HUSH",
        "https://KEY:HUSH@host/x",
        "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=HUSH",
        "file://KEY:HUSH@host/x",
    ],
)
@pytest.mark.parametrize(
    "name",
    ["input.uri", "output.uri", "input.endpoint_url", "encoder.model", "compute.device", "output.views"],
)
def test_a_secret_in_a_uri_is_refused_and_never_repeated(name: str, secret_uri: str) -> None:
    for value in (secret_uri, [secret_uri], {"uri": secret_uri}):
        with pytest.raises(ConfigurationError) as caught:
            load((name, value))
        message = str(caught.value)
        assert name.removesuffix(".views") in message
        assert not any(part in message for part in ("HUSH", "HU/SH", "SH@"))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_secret_in_a_key_or_an_address_is_never_repeated(tmp_path: Path) -> None:
    assert "HUSH" not in refused(
        ("input.uri", "s3:/KEY:HUSH@bucket"), ("output.uri", ["s3:/KEY:HUSH@bucket"])
    )
    assert "HUSH" not in refused(("compute.ray_address", "ray://user:HUSH@host:10001"))
    assert "HUSH" not in refused(("s3://KEY:HUSH@bucket.x", "y"))
    for text in (
        "s3://KEY:HUSH@bucket: x",
        "uri: 's3://KEY:HUSH@b': x",
        "{a: [s3://KEY:HUSH@b",
        "- s3://K:HUSH@b",
    ):
        with pytest.raises(ConfigurationError) as caught:
            load_config(write(tmp_path, text), REQUIRED)
        assert "HUSH" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        load_config("s3://KEY:HUSH@bucket/job.yaml", REQUIRED)
    assert "HUSH" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["input: {uri: a}\ninput: {uri: b}", "input: {uri: a, uri: b}", "{a: 1, 'a': 2}"]
)
def test_a_key_given_twice_in_yaml_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"job.yaml, line \d+, column \d+: key '\w+' is given twice"):
        load_config(write(tmp_path, text), REQUIRED)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: 2024-13-45",
        "a: !!bool x",
        "a: !!python/object:os.system {}",
        "a: 1\n---\nb: 2",
        "\tx",
        "? [a]\n: b",
    ],
)
def test_what_is_no_yaml_is_one_configuration_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"job\.yaml"):
        load_config(write(tmp_path, text), REQUIRED)


@pytest.mark.parametrize("tag", ["object/apply", "object/new"])
def test_yaml_runs_no_code(tmp_path: Path, tag: str) -> None:
    marker = tmp_path / "marker"
    text = f"input:\n  uri: !!python/{tag}:os.system ['mkdir {marker}']\n"
    yaml.unsafe_load(text)
    marker.rmdir()
    with pytest.raises(ConfigurationError, match=rf"job\.yaml, line 2, .*python/{tag}:os\.system"):
        load_config(write(tmp_path, text), REQUIRED)
    with pytest.raises(ConfigurationError, match=r"--set, line 1, .*os\.system"):
        parse_yaml(text.partition("uri: ")[2], "--set")
    assert not marker.exists()


def test_a_file_that_is_missing_or_no_text_or_no_mapping_is_one_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*nothing\.yaml.* \(No such file"):
        load_config(str(tmp_path / "nothing.yaml"), REQUIRED)
    (tmp_path / "bytes.yaml").write_bytes(b"PAR1\xff\x00\xfe")
    (tmp_path / "latin.yaml").write_bytes("input: {uri: café}".encode("latin-1"))
    (tmp_path / "nul.yaml").write_bytes(b"PAR1\0")
    for name in ("bytes", "latin", "nul"):
        with pytest.raises(
            ConfigurationError, match=rf"{name}\.yaml is no text in UTF-8; .* given with --input"
        ):
            load_config(str(tmp_path / f"{name}.yaml"), REQUIRED)
    with pytest.raises(ConfigurationError, match="line 2, column 1: a tab; YAML is indented with spaces"):
        load_config(write(tmp_path, "input:\n\turi: a"), REQUIRED)
    (tmp_path / "utf16.yaml").write_bytes("encoder: {model: größe}".encode("utf-16"))
    assert load_config(str(tmp_path / "utf16.yaml"), REQUIRED[:1] + REQUIRED[2:]).encoder.model == "größe"
    with pytest.raises(ConfigurationError, match="allowed: a mapping of input, encoder, compute, output"):
        load_config(write(tmp_path, "[input]"), REQUIRED)
    with pytest.raises(ConfigurationError, match="input: given 3; allowed: a mapping of fields"):
        load_config(write(tmp_path, "input: 3"), REQUIRED[1:])
    with pytest.raises(ConfigurationError, match=r"cannot set .input\.uri.: .input. is 3, not a mapping"):
        load_config(write(tmp_path, "input: 3"), REQUIRED)


def test_an_empty_file_is_no_configuration(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n"), REQUIRED) == load()


def test_every_field_has_a_description_a_type_and_a_default_in_yaml() -> None:
    config = load()
    for field in config_reference():
        assert field.description.endswith("."), field
        assert field.summary, field
        assert field.type, field
        if field.default != "required":
            assert parse_yaml(field.default, field.name) == value_at(config, field.name)


def test_every_flag_names_a_field() -> None:
    assert set(FLAGS) <= {field.name for field in config_reference()}
    assert len(set(FLAGS.values())) == len(FLAGS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("encoder.prompt", "none"), ("encoder.instruction", "Find it")], "an instruction is given"),
        ([("encoder.force_truncate_dim", True)], "force_truncate_dim is true, and truncate_dim is null"),
        ([("encoder.prompts", {"STS": {}, "text-matching": {}})], "two names of the task 'text-matching'"),
        ([("encoder.adapters", {"STS": "/a", "similarity": "/b"})], "two names of the task 'text-matching'"),
        (
            [("encoder.instruction", {"Clustering": "a", "clustering": "b"})],
            "two names of the task 'clustering'",
        ),
        ([("encoder.instruction", {"retrieval": {"passage": "a"}})], "encoder.instruction"),
        ([("encoder.protocol", 3)], "encoder.protocol: given 3; allowed: model id"),
    ],
)
def test_what_would_be_ignored_or_is_ambiguous_is_refused(
    overrides: list[tuple[str, object]], message: str
) -> None:
    assert message in refused(*overrides)


def test_mtebs_task_types_are_other_names_of_the_tasks() -> None:
    config = load(
        ("output.views", ["STS", "Reranking/query"]), ("encoder.prompts", {"Clustering": {"document": ""}})
    )
    # As given, until the model has said whether it tells such a type apart.
    assert [str(view) for view in config.output.views] == ["STS", "Reranking/query"]
    assert config.encoder.prompts == {"clustering": {"document": ""}}
