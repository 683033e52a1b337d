"""The reference of every field, generated from the model: what --help, the README and the errors print."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import yaml

from jobs.sections import JobConfig, ViewConfig

FLAGS: Mapping[str, str] = {
    "input.uri": "--input",
    "output.uri": "--output",
    "encoder.model": "--model",
    "encoder.revision": "--revision",
    "output.views": "--task",
    "input.id_column": "--id-column",
    "input.text_columns": "--text-column",
    "input.keep_columns": "--keep-column",
    "input.fragment_rows": "--fragment-rows",
    "encoder.prompt": "--prompt",
    "encoder.truncate_dim": "--truncate-dim",
    "encoder.dtype": "--dtype",
    "encoder.precision": "--precision",
    "compute.device": "--device",
    "compute.max_actors": "--max-actors",
    "compute.max_batch_tokens": "--max-batch-tokens",
    "compute.num_cpus": "--num-cpus",
    "compute.ray_address": "--ray-address",
    "output.overwrite": "--overwrite",
}


@dataclass(frozen=True)
class FieldReference:
    """One field as --help and the README print it; every member is text that is ready to print."""

    name: str  # dotted: "input.uri"
    type: str  # in words: "integer > 0 | null"
    default: str  # as YAML, or "required"
    description: str
    flag: str  # "--input", or "--set input.endpoint_url=..."

    @property
    def summary(self) -> str:
        """The first sentence of the description, or its first clause: one line for a flag."""
        return re.split(r"(?<=[.;])\s", self.description, maxsplit=1)[0].rstrip(".;")


@cache
def config_reference() -> tuple[FieldReference, ...]:
    """Every field of the configuration in the order of the sections, generated from the model."""
    schema = JobConfig.model_json_schema()
    reference = []
    for section in JobConfig.model_fields:
        fields = schema["$defs"][f"{section.capitalize()}Config"]
        for field, described in fields["properties"].items():
            name = f"{section}.{field}"
            reference.append(
                FieldReference(
                    name=name,
                    type=_type_in_words(described),
                    default="required"
                    if field in fields.get("required", ())
                    else _as_yaml(described["default"]),
                    description=described["description"],
                    flag=FLAGS.get(name, f"--set {name}=..."),
                )
            )
    return tuple(reference)


def markdown_reference() -> str:
    """The reference as README shows it: a table a section; `python -m jobs.reference` prints it."""
    lines = []
    for section, fields in groupby(config_reference(), key=lambda field: field.name.partition(".")[0]):
        lines += [f"**`{section}`**", "", "| field | type | default | |", "|---|---|---|---|"]
        for field in fields:
            kind = field.type.replace("|", "\\|")
            name, flag = field.name.partition(".")[2], f" (`{field.flag}`)" if field.name in FLAGS else ""
            lines.append(f"| `{name}`{flag} | {kind} | `{field.default}` | {field.description} |")
        lines.append("")
    return "\n".join(lines).strip()


def _as_yaml(value: object) -> str:
    """A default as one would write it in the YAML file."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _type_in_words(schema: Mapping[str, object]) -> str:
    """A JSON schema of one field in words that also read well after `allowed:`."""
    match schema:
        case {"kind": str(kind)}:
            return kind
        case {"anyOf": list(choices)}:
            return " | ".join(map(_type_in_words, choices))
        case {"enum": list(values)}:
            return " | ".join(map(str, values))
        case {"const": value}:
            return str(value)
        case {"type": "array", "items": dict(items)}:
            return f"{_type_in_words(items)} | list of {_type_in_words(items)}"
        case {"type": "boolean"}:
            return "true | false"
        case {"type": "string"}:
            return "text"
        case {"exclusiveMinimum": minimum, "type": kind}:
            return f"{kind} > {minimum:g}"
        case {"minimum": minimum, "maximum": maximum, "type": kind}:
            return f"{kind} {minimum} to {maximum}"
        case {"minimum": minimum, "type": kind}:
            return f"{kind} from {minimum}"
        case {"type": kind}:
            return str(kind)
    raise AssertionError(f"no words for {schema}")


def closest_name(path: str) -> str:
    """The known name that comes closest to an unknown one, be it misspelt or in another section."""
    section, _, leaf = path.rpartition(".")
    if section.startswith("output.views."):
        known = [f"{section}.{field}" for field in ViewConfig.model_fields]
    else:
        known = [*JobConfig.model_fields, *(field.name for field in config_reference())]

    def likeness(name: str) -> float:
        known_section, _, known_leaf = name.rpartition(".")
        return difflib.SequenceMatcher(None, leaf, known_leaf).ratio() + 0.1 * (section == known_section)

    return max(known, key=likeness)


if __name__ == "__main__":
    print(markdown_reference())  # noqa: T201 (this is what the command is for)
