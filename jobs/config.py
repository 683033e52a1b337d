"""From a YAML file and flags to one frozen configuration, or to one error that lists everything wrong.

The tree is in `jobs.sections`, its reference in `jobs.reference`; this file is the door to both. Here the
tree is read (YAML first, then overrides by dotted name; the last word wins) and written back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jobs.encoder_section import EncoderConfig
from jobs.errors import ConfigurationError
from jobs.fields import shown
from jobs.reference import FieldReference, closest_name, config_reference
from jobs.sections import ComputeConfig, InputConfig, JobConfig, OutputConfig, ViewConfig

__all__ = [
    "ComputeConfig",
    "EncoderConfig",
    "FieldReference",
    "InputConfig",
    "JobConfig",
    "OutputConfig",
    "ViewConfig",
    "config_reference",
    "dump_config",
    "load_config",
    "load_encoder",
    "parse_yaml",
]


def dump_config(config: JobConfig) -> dict[str, object]:
    """The whole configuration as JSON and YAML can hold it, defaults included; it loads as an equal one."""
    return config.model_dump(mode="json")


def load_config(path: str | None, overrides: Sequence[tuple[str, object]]) -> JobConfig:
    """Read a YAML file (or none) and set the overrides, dotted names with their values, on top of it.

    Raises:
        ConfigurationError: Everything that is wrong, in one text.
    """
    tree = _overlaid(path, overrides)
    # A section without entries (all commented out, say) is an empty one: each required field is then named.
    empty: dict[object, object] = {
        section: {} for section in JobConfig.model_fields if tree.get(section) is None
    }
    try:
        return JobConfig.model_validate({**tree, **empty})
    except ValidationError as error:
        # Not chained: the original repeats the input, and with it any secret.
        raise ConfigurationError(_in_words(error)) from None


class _EncoderOnly(BaseModel):
    """The one section that says how a model is spoken to."""

    encoder: EncoderConfig


def load_encoder(path: str | None, overrides: Sequence[tuple[str, object]]) -> EncoderConfig:
    """The section `encoder` alone, as `load_config` reads it; the other sections need not be there.

    Raises:
        ConfigurationError: Everything that is wrong, in one text.
    """
    tree = _overlaid(path, overrides)
    try:
        return _EncoderOnly.model_validate({"encoder": tree.get("encoder") or {}}).encoder
    except ValidationError as error:
        raise ConfigurationError(_in_words(error)) from None


def _overlaid(path: str | None, overrides: Sequence[tuple[str, object]]) -> dict[object, object]:
    """The file's tree with the overrides in it."""
    tree = {} if path is None else _read_file(path)
    for name, value in overrides:
        keys = name.split(".")
        if len(keys) < 2 or not all(keys):
            raise ConfigurationError(
                f"cannot set {shown(name)}; allowed: section.field, as in input.fragment_rows"
                f"; the closest known name is {closest_name(name)}"
            )
        tree = _with(tree, keys, value, name)
    return tree


def _read_file(path: str) -> dict[object, object]:
    if "://" in path:
        raise ConfigurationError(
            f"CONFIG is {shown(path)}; allowed: a YAML file on this machine; a corpus is given with --input"
        )
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path!r} ({error.strerror}); give a readable YAML file"
        ) from None
    if not _is_text(text):
        raise ConfigurationError(
            f"{path} is no text in UTF-8; CONFIG is a YAML file, saved as UTF-8; a corpus is given with --input"
        )
    tree = parse_yaml(text, path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"{path} holds {shown(tree)}; allowed: a mapping of {', '.join(JobConfig.model_fields)}"
        )
    return tree


def _is_text(content: bytes) -> bool:
    """Whether it can be YAML: UTF-8, or UTF-16 that says so."""
    try:
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
    except UnicodeDecodeError:
        return False
    return "\0" not in text


class _Loader(yaml.SafeLoader):
    """yaml.safe_load, but a key given twice is an error, where PyYAML lets the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:  # noqa: FBT001, FBT002
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {shown(key.value)} is given twice; keep one of them", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes, source: str) -> object:
    """The value of one YAML document.

    Args:
        text: The document; bytes are UTF-8 or start with a byte order mark.
        source: What an error calls it: a file name or a flag.

    Raises:
        ConfigurationError: It is no YAML, or a key is given twice. The text itself is not repeated.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or "not valid YAML"
        if "'\\t'" in problem:
            problem = "a tab; YAML is indented with spaces"
        raise ConfigurationError(f"{source}{place}: {problem}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        # PyYAML lets its constructors' own errors through, as for the date 2024-13-45.
        raise ConfigurationError(
            f"{source}: not valid YAML, or a value that is no such date or number; write text in quotes"
        ) from None


def _with(tree: object, keys: Sequence[str], value: object, name: str) -> dict[object, object]:
    """A copy of the tree with the value under the keys; a copy, because YAML aliases may share nodes."""
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        parent = name.removesuffix("." + ".".join(keys))
        raise ConfigurationError(f"cannot set {shown(name)}: {shown(parent)} is {shown(tree)}, not a mapping")
    key, *rest = keys
    return {**tree, key: _with(tree.get(key), rest, value, name) if rest else value}


def _in_words(error: ValidationError) -> str:
    """All problems of a configuration, one a line."""
    problems = [(_path(details["loc"]), details) for details in error.errors(include_url=False)]
    # A list whose items are all wrong is also reported as too short; the items say it better.
    paths = [path for path, _ in problems]
    telling = [
        (path, one)
        for path, one in problems
        if one["type"] != "too_short" or not any(other.startswith(f"{path}.") for other in paths)
    ]
    # Each alternative of a type reports for itself, with the same outcome here.
    lines = list(dict.fromkeys(f"  {_problem(path, details)}" for path, details in telling))
    count = "one problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"the configuration has {count}:", *lines, "`--help` lists every field."])


def _path(location: tuple[int | str, ...]) -> str:
    """The dotted path of a problem, without pydantic's names for the alternatives of a type."""
    field = location[:2]
    inner = location[2:] if field in (("output", "views"), ("encoder", "prompts")) else ()
    index = tuple(part for part in location[2:3] if isinstance(part, int))
    parts = (*field, *(part for part in inner or index if part != "[key]"))
    return ".".join(shown(part)[1:-1] if isinstance(part, str) else str(part) for part in parts)


def _problem(path: str, details: ErrorDetails) -> str:
    """One wrong field: what was given, what is allowed, how to mend it."""
    field = next((known for known in config_reference() if f"{path}.".startswith(f"{known.name}.")), None)
    flag = f" ({field.flag})" if field else ""
    given = details["input"]
    match details["type"]:
        case "missing" if field and field.name == path:
            return f"{path}: missing; give {field.flag.replace('...', 'VALUE')}, or {path} in the YAML file"
        case "missing":
            return f"{path}: missing"
        case "extra_forbidden" | "invalid_key":
            if field and field.name == path:
                return f"{path}: a dotted key; in YAML write it as {path.replace('.', ': {')}: ...}}"
            return f"{path}: unknown key; the closest known name is {closest_name(path)}"
        case "value_error":
            # What concerns two sections has no path; it names its fields.
            return f"{path}: {details['ctx']['error']}{flag}".removeprefix(": ")
        case "model_type" | "mapping_type" | "dict_type" if field is None:
            return f"{path}: given {shown(given)}; allowed: a mapping of fields, as in `{path}: {{...}}`"
    if field and (field.name == path or details["type"] in ("model_type", "dict_type")):
        allowed = field.type
    else:  # inside a list or a mapping pydantic says it closer
        allowed = re.sub(r"^Input should be (a valid )?", "", details["msg"])
    mend = {"string_too_short": ", not empty", "too_short": ", at least one"}.get(details["type"], "")
    if details["type"] == "string_type" and not isinstance(given, list | dict):
        mend = "; put text in quotes" + (', also an empty one: ""' if given is None else "")
    return f"{path}: given {shown(given)}; allowed: {allowed}{mend}{flag}"
