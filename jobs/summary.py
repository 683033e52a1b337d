"""What is left at the end: a short table for people, and the one JSON object for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.changes import Changes
from jobs.compare import KINDS
from jobs.plan import Plan
from jobs.progress import Tally
from jobs.records import MANIFEST, Manifest, ViewRecord


@dataclass(frozen=True)
class Times:
    """Seconds of the whole command, and of them for Ray's start."""

    total: float
    ray_start: float


def show_plan(
    console: Console,
    plan: Plan,
    views: Mapping[str, ViewRecord],
    output: str,
    *,
    raw_views: Sequence[str] = (),
) -> dict[str, Any]:
    """Print what a run would do; returns the summary."""
    missing = sum(len(work.parts) for work in plan.work)
    counts = {
        "shards": len(plan.shards),
        "bad_shards": len(plan.bad_shards),
        "fragments": len(plan.fragments),
        "rows": plan.num_rows,
        "bytes": sum(fragment.num_bytes for fragment in plan.fragments),
        "parts": plan.num_parts,
        "existing_parts": plan.num_parts - missing,
        "missing_parts": missing,
        "rows_to_read": sum(work.fragment.num_rows for work in plan.work),
        "bytes_to_read": sum(work.fragment.num_bytes for work in plan.work),
    }
    lines = {name.replace("_", " "): f"{count:,}" for name, count in counts.items()}
    for name, view in views.items():
        space = f"{view.space_name} ({view.space_id[:12]})"
        if view.precision == "int8" and view.ranges_digest is None:
            space = f"{view.space_name}, ranges to be calibrated"
        behind = f" ... {view.suffix!r}" if view.suffix else ""
        lines[f"view {name}"] = f"{space}, prompt {view.prompt!r}{behind}"
    lines |= _raw(raw_views)
    _print_table(console, "Plan; nothing was written", lines)
    return {**counts, "views": list(views), "output": output}


def show_run(
    console: Console,
    plan: Plan,
    tally: Tally,
    manifest: Manifest,
    times: Times,
    output: str,
    *,
    changes: Changes,
    raw_views: Sequence[str] = (),
) -> dict[str, Any]:
    """Print what a run did; returns the summary.

    `rows` are those of the corpus; `embedded`, `carried` and `existing` count vectors, over all views; `tokens` are
    those that went through the encoder; `added`, `updated`, `deleted` and `unchanged` count ids, over all views, and
    `changes` is where they are, None where nothing changed and so nothing was published; `tokens_per_second` leaves
    Ray's start out of the time; `starved_percent` is what each encoder waited for its next fragment, without the wait
    for its first.
    """
    seconds = max(times.total - times.ray_start, 1e-9)
    rejected = manifest.rejected()
    existing = sum(part.num_rows for receipt in plan.existing for part in receipt.parts.values())
    lines = {
        "rows": f"{plan.num_rows:,}{_chunks(manifest)}",
        "embedded": f"{tally.vectors - tally.carried:,} vectors ({existing:,} were there)",
        "rejected": ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items())) or "0",
        "changes": ", ".join(f"{kind} {changes.count(kind):,}" for kind in KINDS),
        "tokens": f"{tally.tokens:,}",
        "seconds": f"{times.total:.1f}, Ray's start {times.ray_start:.1f} of them",
    }
    if tally.carried:
        lines["carried over"] = f"{tally.carried:,} vectors"
    if tally.receipts:
        done = len(tally.receipts)
        lines |= {
            "fragments": f"{done:,} read, each tokenized for {_number(tally.prompts / done, 'prompt')} and encoded "
            f"{_number(tally.encodings / done, 'time')}",
            "tokens per second": f"{tally.tokens / seconds:,.0f}",
            "worker seconds": ", ".join(f"{stage} {spent:.1f}" for stage, spent in tally.seconds.items()),
            "padding": _padding(tally),
            "truncated": _share(tally.truncated, tally.vectors),
            "encoders": _encoders(tally),
            "preflight": preflight_line(tally),
        }
    if tally.halved_budget:
        lines["too little memory"] = (
            f"for larger batches, so they were halved, to {tally.halved_budget:,} tokens at the least: set "
            "compute.max_batch_tokens"
        )
    lines |= _raw(raw_views)
    if plan.bad_shards:
        lines["skipped shards"] = ", ".join(shard.path for shard in plan.bad_shards[:5])
    is_new = changes.since != changes.manifest
    _print_table(console, "Published" if is_new else "Nothing to do: the output is what it should be", lines)
    return {
        "rows": plan.num_rows,
        "embedded": tally.vectors - tally.carried,
        "carried": tally.carried,
        "existing": existing,
        "rejected": sum(rejected.values()),
        **{kind: changes.count(kind) for kind in KINDS},
        "changes": f"{output.rstrip('/')}/{changes.folder}" if is_new else None,
        "tokens": tally.tokens,
        "seconds": round(times.total, 3),
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "starved_percent": {name: round(share, 2) for name, share in sorted(tally.starved_percent().items())},
        "preflight_cosine": round(min(tally.preflight.values()), 6) if tally.preflight else None,
        "output": output,
        "manifest": f"{output.rstrip('/')}/{MANIFEST}",
        "ray_start_seconds": round(times.ray_start, 3),
    }


def _chunks(manifest: Manifest) -> str:
    """How many chunks a row with a vector has on average, where rows are cut into chunks."""
    parts = [part for receipt in manifest.receipts for part in receipt.parts.values() if part.num_chunked]
    if not parts:
        return ""
    return (
        f", {sum(part.num_rows for part in parts) / sum(part.num_embedded for part in parts):.2f} chunks each"
    )


def _padding(tally: Tally) -> str:
    """How much, and why any: an encoder that pads is slower than it might be."""
    packed = tally.why_padded[""]
    reasons = sorted(why for why in tally.why_padded if why)
    if not reasons:
        return "none, texts went through end to end"
    said = f"{_share(tally.padding, tally.padding + tally.tokens)}: {'; '.join(reasons)}"
    return f"{said} ({packed:,} fragments had none)" if packed else said


def _encoders(tally: Tally) -> str:
    shares = tally.starved_percent().values()
    return f"{len(shares)}, starved for {sum(shares) / len(shares):.1f} % of their time, {max(shares):.1f} % at most"


def preflight_line(tally: Tally) -> str:
    """How close the encoders came to what they were compared with."""
    seen = [f"lowest cosine {cosine:.6f} to {compared}" for compared, cosine in tally.preflight.items()]
    return "; ".join(seen) or "nothing was compared"


def _raw(views: Sequence[str]) -> dict[str, str]:
    """Said aloud, for the authors of a model often name prompts in its card only."""
    return (
        {"no prompts": f"raw text for {', '.join(views)}; neither the model nor the table has any"}
        if views
        else {}
    )


def _print_table(console: Console, title: str, lines: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # of a prompt every byte counts
    for name, value in lines.items():
        table.add_row(Text(name), Text(value))  # of a prompt or a path, nothing is markup
    console.print(table)


def _number(mean: float, noun: str) -> str:
    """Not whole where fragments lacked different views."""
    return f"{mean:.3g} {noun}" + ("" if mean == 1 else "s")


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
