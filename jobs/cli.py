"""The command line of `python -m jobs.embed`: flags for what changes often, --set for every other field.

Flags and --set name fields of the configuration and are laid over the YAML file. What --help says about a
field is generated from the model, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import indent
from typing import Any, get_args

import click

from jobs import __version__
from jobs.command import arguments
from jobs.config import EncoderConfig, JobConfig, config_reference, load_config, load_encoder, parse_yaml
from jobs.encoder_section import Dtype, Precision, PromptUse
from jobs.fields import RoleName
from jobs.reference import FLAGS, FieldReference
from jobs.sections import Device

PROGRAM = "python -m jobs.embed"

INTRODUCTION = (
    "Make a Parquet dataset of embeddings equal to what a corpus and an encoder say it should be. "
    "First run, resume and scheduled reindex are one command: it embeds what is missing, publishes all in "
    "one step, then removes what no longer belongs. Flags win over the YAML file CONFIG."
)

EXAMPLE_YAML = """\
input:   {uri: s3://corpora/wiki, text_columns: [title, body]}
encoder: {model: jinaai/jina-embeddings-v5-text-nano}
output:  {uri: s3://vectors/wiki, views: [retrieval/document, clustering]}
"""

EXAMPLES = r"""
# Embed a folder of Parquet files with the columns id and text, on this machine.
python -m jobs.embed --input corpus/ --output vectors/ \
    --model intfloat/multilingual-e5-small --task retrieval --role document

# From a file; look at the plan first.
python -m jobs.embed job.yaml --dry-run

# What does this model get around a text, for each task and role? No weights are loaded.
python -m jobs.embed --show-protocol --model intfloat/e5-base-v2

# From the file, but with shorter vectors elsewhere, and with a field that has no flag of its own.
python -m jobs.embed job.yaml --output small/ --truncate-dim 256 --set compute.gpus_per_actor=0.5
"""

EXIT_CODES = (
    ("0", "The dataset is complete and published (with --dry-run: the plan stands)."),
    (
        "1",
        "The run failed, or another one has the output; the dataset is what it was before (the new one, where the "
        "message says that it is published). The same command goes on where it stopped.",
    ),
    ("2", "The command cannot work as written, which was found before anything was started."),
)

REFERENCE = (
    "Configuration: all sections and fields of the YAML file with their defaults. Any of them can be given "
    "as --set section.field=value; null stands for none."
)

NO_BREAK = "\u00a0"  # a space at which no line ends: it keeps a field's type together

STDOUT = (
    "One JSON object: the summary of the run, of the plan with --dry-run, or the protocol with --show-protocol. "
    "Everything else goes to stderr."
)


@dataclass(frozen=True)
class Invocation:
    """What the command line asks for; of the encoder alone where its protocol is to be shown."""

    config: JobConfig | EncoderConfig
    dry_run: bool = False


def parse(argv: Sequence[str] | None = None) -> Invocation:
    """Read the command line, without the program's name (default: this process's own).

    Raises:
        click.exceptions.Exit: --help or --version was printed; its `exit_code` is 0.
        click.UsageError: Wrong arguments; `show()` prints it to stderr, its `exit_code` is 2.
        ConfigurationError: The arguments read well, but the configuration that they make is wrong.
    """
    with arguments(command, PROGRAM, argv) as context:
        return _invocation(context)


def _invocation(context: click.Context) -> Invocation:
    values = dict(context.params)
    config_path, assignments, dry_run = values.pop("config"), values.pop("assignments"), values.pop("dry_run")
    task, role, show_protocol = values.pop("task"), values.pop("role"), values.pop("show_protocol")
    overrides: dict[str, object] = {
        option.replace("__", "."): value
        for option, value in values.items()
        if value is not None and value != ()
    }
    if show_protocol and task is not None:
        raise click.UsageError("--show-protocol shows every task and role; leave --task out.", context)
    if role is not None and task is None:
        raise click.UsageError(f"--role {role} needs a task; give --task too.", context)
    if task is not None:
        overrides["output.views"] = task if role is None else {"task": task, "role": role}
    given_by = {name: FLAGS[name] for name in overrides}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise click.UsageError(
                "--set takes section.field=value; there is no '=' in what was given.", context
            )
        for other, flag in given_by.items():
            # A field and a key inside it (encoder.prompts, encoder.prompts.retrieval) clash as well.
            if f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}."):
                raise click.UsageError(f"--set {name} and {flag} set the same field; keep one.", context)
        given_by[name] = f"--set {name}"
        overrides[name] = parse_yaml(text, f"--set {name}")
    if show_protocol:
        return Invocation(load_encoder(config_path, list(overrides.items())))
    return Invocation(load_config(config_path, list(overrides.items())), dry_run)


class _Command(click.Command):
    """A click command whose help ends with the whole configuration."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all of --help: the task first, the reference last."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(INTRODUCTION)
        with formatter.section("Examples"):
            _write_lines(formatter, EXAMPLES)
            formatter.write_paragraph()
            formatter.write_text("where job.yaml holds")
            formatter.write_paragraph()
            with formatter.indentation():
                _write_lines(formatter, EXAMPLE_YAML)
        for title, options in OPTIONS.items():
            with formatter.section(title):
                formatter.write_dl([record for one in options if (record := one.get_help_record(ctx))])
        with formatter.section("Standard output"):
            formatter.write_text(STDOUT)
        with formatter.section("Exit codes"):
            formatter.write_dl(EXIT_CODES)
        formatter.write_paragraph()
        formatter.write_text(REFERENCE)
        for section, fields in groupby(config_reference(), lambda field: field.name.partition(".")[0]):
            with formatter.section(section):
                _write_fields(formatter, list(fields))


def _write_lines(formatter: click.HelpFormatter, text: str) -> None:
    """Lines as they stand, so that they can be pasted."""
    formatter.write(indent(text.strip(), " " * formatter.current_indent) + "\n")


def _write_fields(formatter: click.HelpFormatter, fields: Sequence[FieldReference]) -> None:
    """The fields of a section as in the YAML file, with their defaults; all sections with equal columns."""
    width = max(len(_as_entry(field)) for field in config_reference())
    rows = [
        (_as_entry(field).ljust(width), f"{field.description} ({field.type.replace(' ', NO_BREAK)})")
        for field in fields
    ]
    part = click.HelpFormatter(width=formatter.width)
    part.indent()
    part.write_dl(rows, col_max=width)
    formatter.write(part.getvalue().replace(NO_BREAK, " "))


def _as_entry(field: FieldReference) -> str:
    return f"{field.name.partition('.')[2]}: {field.default if field.default != 'required' else '(required)'}"


def _flag(name: str, **settings: Any) -> click.Option:
    """The flag of one field; its help is the first sentence of the field's description."""
    summary = next(field.summary for field in config_reference() if field.name == name)
    repeatable = " Repeatable." if settings.get("multiple") else ""
    return click.Option([FLAGS[name], name.replace(".", "__")], help=f"{summary}.{repeatable}", **settings)


def _number(text: str) -> int | str:
    """A whole number, or the text itself for the model to judge."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def _print_version(context: click.Context, _: click.Parameter, wanted: object) -> None:
    if wanted:
        click.echo(f"taskvec {__version__}")
        context.exit()


OPTIONS: dict[str, list[click.Option]] = {
    "What to embed": [
        _flag("input.uri", metavar="URI"),
        _flag("input.id_column", metavar="NAME"),
        _flag("input.text_columns", metavar="NAME", multiple=True),
        _flag("input.keep_columns", metavar="NAME", multiple=True),
        _flag("input.fragment_rows", type=int, metavar="N"),
    ],
    "Into what": [
        _flag("output.uri", metavar="URI"),
        click.Option(
            ["--task"], metavar="TASK", help="What the vectors are for; the run makes this one view."
        ),
        click.Option(
            ["--role"], type=click.Choice(get_args(RoleName)), help="The side of an asymmetric task."
        ),
        _flag("output.overwrite", is_flag=True, default=None),
    ],
    "With which model": [
        _flag("encoder.model", metavar="MODEL"),
        _flag("encoder.revision", metavar="REVISION"),
        _flag("encoder.prompt", type=click.Choice(get_args(PromptUse))),
        _flag("encoder.truncate_dim", type=int, metavar="N"),
        _flag("encoder.dtype", type=click.Choice(get_args(Dtype)), metavar="FORMAT"),
        _flag("encoder.precision", type=click.Choice(get_args(Precision))),
    ],
    "On which machines": [
        _flag("compute.device", type=click.Choice(get_args(Device))),
        _flag("compute.max_actors", type=int, metavar="N"),
        _flag("compute.max_batch_tokens", type=_number, metavar="N"),
        _flag("compute.num_cpus", type=int, metavar="N"),
        _flag("compute.ray_address", metavar="ADDRESS"),
    ],
    "Beside these": [
        click.Option(
            ["--set", "assignments"],
            multiple=True,
            metavar="SECTION.FIELD=VALUE",
            help="Any field of the configuration; VALUE is YAML. Repeatable.",
        ),
        click.Option(
            ["--dry-run"], is_flag=True, help="Print what a run would read and embed; write nothing."
        ),
        click.Option(
            ["--show-protocol"],
            is_flag=True,
            help="Print what the model gets for each task and role, to the byte; needs --model only.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        ),
    ],
}

command = _Command(
    name=PROGRAM,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
    params=[
        click.Argument(["config"], required=False, metavar="[CONFIG]"),
        *(option for options in OPTIONS.values() for option in options),
    ],
)
