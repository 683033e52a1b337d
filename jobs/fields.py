"""The base of a configuration's sections, and types of single values: each reads what a person writes, or refuses it.

No message repeats a URI, because people put secrets into them: `s3://key:secret@bucket`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from encoders.tasks import canonical_task
from jobs.errors import ConfigurationError
from jobs.store import Location

RoleName = Literal["query", "document"]
_NOT_REPEATED = "not repeated here"


class Section(BaseModel):
    """A part of the tree. Strict: text is not read as a number, nor a number as a flag."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def shown(value: object) -> str:
    """What was given, in at most 80 characters; what follows :/ may be secret and is left out."""
    text = "null" if value is None else repr(list(value) if isinstance(value, tuple) else value)
    head, separator, _ = text.partition(":/")
    text = f"{head}:/..." if separator else text
    return text if len(text) <= 80 else f"{text[:77]}..."


def _uri(uri: str) -> str:
    """The URI as `Location` keeps it: a path becomes absolute, s3:// stays as it is."""
    if uri.startswith("--"):
        raise ValueError(
            f"given {shown(uri)}, which is a flag; give a path, file:///path or s3://bucket/path before it"
        )
    scheme, separator, rest = uri.partition("://")
    host = rest.partition("/")[0]
    if separator and ("@" in host or (":" in host and not host.startswith("arn:"))):
        raise ValueError(
            f"it holds credentials or something like them ({_NOT_REPEATED}); allowed: a URI without them; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role in the environment instead"
        )
    if separator and scheme not in ("file", "s3"):
        raise ValueError("its scheme is unknown; allowed: a path, file:///path or s3://bucket/path")
    if not separator and re.match(r"(s3a?|gs|file|https?):", uri):
        raise ValueError("it lacks the // of a URI; allowed: a path, file:///path or s3://bucket/path")
    try:
        return Location(uri).uri
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    except RuntimeError:  # from expanduser
        raise ValueError("its '~' names no user of this machine; write the whole path") from None


def _endpoint(url: str) -> str:
    if not re.fullmatch(r"https?://[\w.\-]+(:\d+)?(/[^@?#]*)?|https?://\[[0-9a-fA-F:]+\](:\d+)?/?", url):
        raise ValueError(
            "it is no plain endpoint; allowed: http(s)://host[:port], with neither credentials nor a query "
            "(those come from the environment)"
        )
    return url


def _address(address: str) -> str:
    if "@" in address:
        raise ValueError(
            f"it holds credentials or something like them ({_NOT_REPEATED}); allowed: local, auto, host:port "
            "or ray://host:port; Ray finds its token by itself"
        )
    return address


def _model_id(model: str) -> str:
    if "://" in model:
        raise ValueError("it is a URL; allowed: a Hub id such as org/name, or a local folder")
    return str(Path(model).expanduser()) if model.startswith("~/") else model


def _any_task_name(task: str) -> str:
    """Any name of a task, as it is given: a model may have a prompt of its own under it."""
    if not re.fullmatch(r"[a-z0-9-]+", canonical_task(task)):
        raise ValueError(f"given {shown(task)}; allowed: a task's name in lower-case letters, digits and '-'")
    return task


def _task_name(task: str) -> str:
    """A task by the name that it has here, from any of its names (mteb's task types, say)."""
    return canonical_task(_any_task_name(task))


def as_tuple(value: object) -> object:
    """A lone item stands for a list of one."""
    if isinstance(value, str | dict):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _code_ids(value: object) -> object:
    """Which code may run: false is none, and true would be any."""
    if value is True:
        raise ValueError(
            "true would run whatever code the model asks for; allowed: false, or a list of the repositories whose code "
            "you have read, each with its commit: [org/name@<40 hexadecimal digits>]"
        )
    return () if value is False else as_tuple(value)


def _code_id(given: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", given, re.ASCII):
        raise ValueError(
            f"given {shown(given)}; allowed: org/name@commit, the commit as 40 hexadecimal digits; a branch or a tag "
            "may hold other code tomorrow"
        )
    return given


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(as_tuple)]
CodeIds = Annotated[tuple[Annotated[str, AfterValidator(_code_id)], ...], BeforeValidator(_code_ids)]
Uri = Annotated[Name, AfterValidator(_uri)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
TaskName = Annotated[str, AfterValidator(_task_name)]
AnyTaskName = Annotated[str, AfterValidator(_any_task_name)]
ModelId = Annotated[Name, AfterValidator(_model_id)]
AdapterId = Annotated[Name, AfterValidator(_model_id)]
RayAddress = Annotated[Name, AfterValidator(_address)]
