"""How the configured model is spoken to: its protocol, and that as people and machines read it.

    python -m jobs.embed --show-protocol --model intfloat/e5-base-v2

Reads the repository's small files and its tokenizer; no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from encoders.errors import EncoderError, TaskError
from encoders.options import EncoderOptions
from encoders.protocol import Protocol, resolve_protocol
from encoders.space import Space
from encoders.tasks import STANDARD_TASKS, SYMMETRIC_TASKS, Role, View
from jobs.encoder_section import EncoderConfig
from jobs.errors import ConfigurationError


def resolve(encoder: EncoderConfig) -> Protocol:
    """The protocol of the configured model.

    Raises:
        EncoderError: There is no such model, or it cannot be done as configured.
    """
    options = EncoderOptions(
        prompt=encoder.prompt,
        prompts=encoder.prompts,
        adapters={task: None if given == "none" else given for task, given in encoder.adapters.items()},
        instruction=encoder.instruction,
        protocol=encoder.protocol,
        truncate_dim=encoder.truncate_dim,
        force_truncate_dim=encoder.force_truncate_dim,
        normalize=encoder.normalize,
        max_seq_length=encoder.max_seq_length,
        trust_remote_code=encoder.trust_remote_code,
    )
    protocol = resolve_protocol(encoder.model, encoder.revision, options)
    protocol.check_dtype(encoder.dtype)
    return protocol


def space_of(protocol: Protocol, encoder: EncoderConfig, task: str) -> Space:
    """The space of a task's vectors, as they are configured.

    Raises:
        TaskError: The model has no such task.
    """
    return protocol.space(
        task,
        encoder.precision,
        late_chunk=encoder.long_text == "late_chunk",
        eight_bits=encoder.dtype == "int8",
    )


def show_protocol(encoder: EncoderConfig, console: Console) -> dict[str, Any]:
    """Print what goes around a text for each task and role; returns the same as JSON can say it.

    Raises:
        ConfigurationError: There is no such model, or it cannot be done as configured.
    """
    from encoders.tokenizer import Tokenizer

    try:
        protocol = resolve(encoder)
        tokenizer = Tokenizer(protocol)
        views = [_describe(protocol, tokenizer, view, encoder) for view in _views(protocol)]
    except EncoderError as error:
        raise ConfigurationError(str(error)) from error
    family = protocol.family
    facts = {
        "model": protocol.repository.name,
        "revision": protocol.repository.revision,
        "row": family.name if family else None,
        "licence": (family.licence or None) if family else None,
        "pooling": "+".join(protocol.pooling.modes),
        "pools_prompt": protocol.pooling.include_prompt,
        "dim": protocol.dim,
        "normalized": protocol.normalize,
        "max_seq_length": protocol.max_seq_length,
    }
    _print(console, facts, views)
    return {**facts, "views": views}


def _views(protocol: Protocol) -> Iterator[View]:
    """Every view that the model has; of a symmetric task both roles only where the two differ."""
    known = protocol.family.prompts if protocol.family else STANDARD_TASKS
    for task in dict.fromkeys([*known, *protocol.options.prompts, "code"]):
        views = [View(task, role) for role in Role]
        if task == "code" and task not in known and not any(_has(protocol, view) for view in views):
            continue
        query, document = (_around(protocol, view) for view in views)
        if task in SYMMETRIC_TASKS and query == document:
            yield views[1]
        else:
            yield from views


def _has(protocol: Protocol, view: View) -> bool:
    return not isinstance(_around(protocol, view), str)


def _around(protocol: Protocol, view: View) -> Any:
    """Prompt and adapter, or in words why there is none."""
    try:
        return protocol.prompt(view), protocol.adapter(view)
    except TaskError as error:
        return str(error).replace(str(view), view.task)


def _describe(protocol: Protocol, tokenizer: Any, view: View, encoder: EncoderConfig) -> dict[str, Any]:
    try:
        prompt, adapter = protocol.prompt(view), protocol.adapter(view)
        space = space_of(protocol, encoder, view.task)
    except TaskError as error:
        return {"task": view.task, "role": str(view.role), "refused": str(error)}
    return {
        "task": view.task,
        "role": str(view.role),
        "before": prompt.prefix,
        "behind": prompt.suffix,
        "adapter": adapter,
        "pooled_token": tokenizer.pooled_token(prompt),
        "space_id": None if encoder.precision == "int8" else space.id,
        "space_name": space.name,
        "raw_text": protocol.prompts.is_raw(view),
    }


def _print(console: Console, facts: dict[str, Any], views: list[dict[str, Any]]) -> None:
    """One line for each fact, never broken: of a prompt every byte counts."""
    _print_block(
        console, "Protocol", {name: "-" if value is None else value for name, value in facts.items()}
    )
    for view in views:
        name = f"{view['task']}/{view['role']}"
        if "refused" in view:
            _print_block(console, name, {"refused": view["refused"]})
            continue
        raw = " (no prompts: raw text)" if view["raw_text"] else ""
        lines = {
            "before the text": repr(view["before"]) + raw,
            "behind it": repr(view["behind"]),
            "adapter": view["adapter"] or "-",
            "pooled token": view["pooled_token"] or facts["pooling"],
            "space": f"{view['space_name']} ({view['space_id'] or 'known once its ranges are calibrated'})",
        }
        _print_block(console, name, lines)


def _print_block(console: Console, title: str, lines: Mapping[str, object]) -> None:
    console.print(Text(title, style="bold"))
    for name, value in lines.items():
        console.print(Text(f"  {name.replace('_', ' '):<16}  {value}"), soft_wrap=True)
