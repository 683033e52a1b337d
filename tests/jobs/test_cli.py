"""The command line makes the configuration that YAML file, flags and --set say together, or a usage error."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import __version__
from jobs.cli import EXAMPLE_YAML, EXAMPLES, Invocation, command, parse
from jobs.config import config_reference, load_config
from jobs.errors import ConfigurationError
from jobs.reference import FLAGS

REQUIRED = ["--input", "/corpus", "--output", "/vectors", "--model", "org/name"]
TASK = ["--task", "clustering"]


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(EXAMPLE_YAML)
    return str(path)


def help_text(width: int = 100) -> str:
    with command.make_context(None, [], resilient_parsing=True, terminal_width=width) as context:
        return command.get_help(context)


def usage_error(*argv: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        parse(argv)
    assert caught.value.exit_code == 2
    return caught.value.format_message()


def test_flags_alone_make_a_configuration() -> None:
    invocation = parse([*REQUIRED, *TASK])
    assert not invocation.dry_run
    assert invocation.config == load_config(
        None,
        [
            ("input.uri", "/corpus"),
            ("output.uri", "/vectors"),
            ("encoder.model", "org/name"),
            ("output.views", ["clustering"]),
        ],
    )


def test_every_flag_sets_its_field() -> None:
    config = parse(
        shlex.split(
            "--input /c --output /o --model m --revision 1234567 --task code --role query --id-column key "
            "--text-column a --text-column b --keep-column c --keep-column d --device cpu --dtype float32 "
            "--precision float16 --truncate-dim 8 --max-actors 3 --num-cpus 2 --ray-address local "
            "--fragment-rows 7 --max-batch-tokens 99 --prompt none --overwrite"
        )
    ).config
    assert (config.input.uri, config.output.uri, config.encoder.model) == ("/c", "/o", "m")
    assert config.encoder.revision == "1234567"
    assert [str(view) for view in config.output.views] == ["code/query"]
    assert config.input.columns().id_column == "key"
    assert (config.input.text_columns, config.input.keep_columns) == (("a", "b"), ("c", "d"))
    assert (config.encoder.dtype, config.encoder.precision) == ("float32", "float16")
    assert (config.encoder.truncate_dim, config.encoder.prompt) == (8, "none")
    assert (config.compute.device, config.compute.max_actors, config.compute.num_cpus) == ("cpu", 3, 2)
    assert (config.compute.ray_address, config.compute.max_batch_tokens) == ("local", 99)
    assert (config.input.fragment_rows, config.output.overwrite) == (7, True)


def test_a_flag_that_is_not_given_leaves_the_yaml_file_alone(job: str) -> None:
    assert parse([job]).config == load_config(job, [])


def test_flags_and_set_win_over_the_yaml_file(job: str) -> None:
    config = parse([job, "--model", "other", "--set", "input.text_columns=[body]"]).config
    assert (config.encoder.model, config.input.text_columns) == ("other", ("body",))
    assert config.input.uri == "s3://corpora/wiki"


def test_task_replaces_the_views_of_the_yaml_file(job: str) -> None:
    assert [str(view) for view in parse([job, *TASK]).config.output.views] == ["clustering"]
    assert [str(view) for view in parse([job]).config.output.views] == ["retrieval/document", "clustering"]


def test_the_values_of_set_are_yaml() -> None:
    config = parse(
        [
            *REQUIRED,
            *TASK,
            *("--set", "encoder.normalize=false"),
            *("--set", "compute.gpus_per_actor=0.5"),
            *("--set", 'input.text_joiner="\\n= "'),
            *("--set", "encoder.revision='12'"),
            *("--set", "encoder.max_seq_length=null"),
            *("--set", "encoder.prompts.code={query: 'a=b: '}"),
        ]
    ).config
    assert config.encoder.normalize is False
    assert config.compute.gpus_per_actor == 0.5
    assert config.input.text_joiner == "\n= "
    assert config.encoder.revision == "12"
    assert config.encoder.max_seq_length is None
    assert config.encoder.prompts == {"code": {"query": "a=b: "}}


@given(
    st.integers(min_value=1), st.booleans(), st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
)
def test_a_flag_and_its_set_are_the_same(rows: int, anonymous: bool, column: str) -> None:
    column = f"c{column}"
    quoted = "'" + column.replace("'", "''") + "'"
    common = [
        *REQUIRED[2:],
        *TASK,
        "--input",
        "s3://b/c",
        "--set",
        f"input.anonymous={str(anonymous).lower()}",
    ]
    by_flag = parse([*common, "--fragment-rows", str(rows), "--id-column", column])
    by_set = parse([*common, "--set", f"input.fragment_rows={rows}", "--set", f"input.id_column={quoted}"])
    assert by_flag == by_set


@pytest.mark.parametrize(
    "twice",
    [
        ["--model", "m", "--set", "encoder.model=n"],
        ["--set", "encoder.model=n", "--model", "m"],
        ["--task", "code", "--set", "output.views=[a]"],
        ["--set", "encoder.dtype=auto", "--set", "encoder.dtype=auto"],
        ["--set", "encoder.prompts={}", "--set", "encoder.prompts.code.query=x"],
        ["--set", "encoder.prompts.code.query=x", "--set", "encoder.prompts={}"],
    ],
)
def test_a_field_that_is_set_twice_is_refused(twice: list[str]) -> None:
    assert "set the same field; keep one" in usage_error(*twice)


def test_fields_that_share_the_start_of_a_name_are_no_clash() -> None:
    config = parse(
        [*REQUIRED, *TASK, "--set", "encoder.prompt=auto", "--set", "encoder.prompts={a: {}}"]
    ).config
    assert config.encoder.prompts == {"a": {}}


def test_wrong_arguments_are_usage_errors() -> None:
    assert "needs a task" in usage_error(*REQUIRED, "--role", "query")
    assert "section.field=value" in usage_error("--set", "encoder.model")
    assert "--outptu" in usage_error("--outptu", "x")
    assert "is not one of 'auto', 'cpu', 'cuda'" in usage_error("--device", "tpu")
    assert "is not a valid integer" in usage_error("--truncate-dim", "many")
    assert "unexpected extra argument" in usage_error("a.yaml", "b.yaml")


def test_a_usage_error_shows_the_usage_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(["--role", "query"])
    caught.value.show()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(
        "Usage: python -m jobs.embed [OPTIONS] [CONFIG]\nTry 'python -m jobs.embed --help'"
    )


def test_a_wrong_configuration_is_a_configuration_error_that_names_flags() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse([])
    assert all(flag in str(caught.value) for flag in ("--input", "--output", "--model", "--task"))
    with pytest.raises(ConfigurationError, match=r"--set encoder\.prompts, line 1"):
        parse([*REQUIRED, *TASK, "--set", "encoder.prompts={a: 1, a: 2}"])
    with pytest.raises(ConfigurationError, match=r"allowed: auto \| integer > 0"):
        parse([*REQUIRED, *TASK, "--max-batch-tokens", "many"])
    with pytest.raises(ConfigurationError, match=r"given -5; allowed: auto \| integer > 0"):
        parse([*REQUIRED, *TASK, "--max-batch-tokens", "-5"])
    with pytest.raises(ConfigurationError, match=r"--dry-run', which is a flag; give a path.*\(--input\)"):
        parse(["--input", "--dry-run"])  # whose value is what follows


@pytest.mark.parametrize(
    "argv",
    [
        ["s3://KEY:HUSH@bucket"],
        ["s3://KEY:HUSH@bucket", "s3://KEY:HUSH@other"],
        ["--input", "s3://KEY:HUSH@bucket"],
        ["--device", "s3://KEY:HUSH@bucket"],
        ["--device=s3://KEY:HU'SH@bucket"],
        ["--truncate-dim", "s3://KEY:HUSH@bucket"],
        ["--task", "s3://KEY:HUSH@bucket"],
        ["--set", "s3://KEY:HUSH@bucket"],
        ["--set", "input.uri=s3://KEY:HUSH@bucket"],
        ["--set", "input.uri=[s3://KEY:HUSH@bucket"],
        ["--set", "s3://KEY:HUSH@bucket=1", "--set", "s3://KEY:HUSH@bucket=1"],
    ],
)
def test_a_secret_in_a_uri_is_never_repeated(argv: list[str]) -> None:
    with pytest.raises((click.UsageError, ConfigurationError)) as caught:
        parse(argv)
    message = (
        caught.value.format_message() if isinstance(caught.value, click.UsageError) else str(caught.value)
    )
    assert "HUSH" not in message
    assert "SH@" not in message


def test_help_and_version_print_to_stdout_and_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, start in (
        (["--help"], "Usage: "),
        (["-h"], "Usage: "),
        (["--version"], f"taskvec {__version__}\n"),
    ):
        with pytest.raises(click.exceptions.Exit) as caught:
            parse(argv)
        assert caught.value.exit_code == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(start)
        assert printed.err == ""


def test_help_holds_every_field_with_its_default_and_description() -> None:
    text = help_text()
    flat = " ".join(text.split())
    lines = text.splitlines()
    for field in config_reference():
        section, name = field.name.split(".")
        default = "(required)" if field.default == "required" else field.default
        start = lines.index(f"{section}:")
        assert any(line.startswith(f"  {name}: {default}  ") for line in lines[start:]), field.name
        assert f"({field.type})" in flat, field.name
        assert field.summary.split()[-1] in flat, field.name


def test_help_holds_every_flag_and_says_exit_codes_and_stdout() -> None:
    text = help_text()
    for flag in (*FLAGS.values(), "--role", "--dry-run", "--set", "--version"):
        assert f"\n  {flag}" in text
    assert "Exit codes:\n  0  " in text
    assert "Standard output:\n  One JSON object" in text


def test_help_fits_into_100_columns() -> None:
    assert max(map(len, help_text(width=100).splitlines())) <= 100


def test_the_examples_of_help_can_be_pasted(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(job).parent)
    text = help_text()
    commands = [line for line in EXAMPLES.replace("\\\n", "").splitlines() if line.startswith("python")]
    assert len(commands) == 4
    for example in commands:
        program, *argv = shlex.split(example.removeprefix("python -m "))
        assert program == "jobs.embed"
        assert isinstance(parse(argv), Invocation)
    for line in (*EXAMPLES.splitlines(), *EXAMPLE_YAML.splitlines()):
        assert line in text


def test_dry_run_is_no_part_of_the_configuration(job: str) -> None:
    assert parse([job, "--dry-run"]) == Invocation(parse([job]).config, dry_run=True)
