"""The shape that all commands share: words for people on stderr, one JSON object on stdout, an exit code.

0   it went well
1   it failed (jobs.verify: it found something wrong)
2   it cannot work as written; nothing was started

What makes the difference is not the kind of an error alone, but when it is found: `under_way` marks the time from which
nothing is a matter of the command line any more.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from rich.console import Console

from encoders.errors import EncoderError, TaskvecError
from jobs.errors import ConfigurationError, JobError, OutputError


@dataclass(frozen=True)
class Answer:
    """What a command has to say once it is done: its summary, and its exit code."""

    summary: Mapping[str, Any]
    exit_code: int = 0


# What is wrong with a command itself, if nothing was started yet.
_WRONG_COMMAND = (ConfigurationError, OutputError, EncoderError)

T = TypeVar("T")


@contextlib.contextmanager
def arguments(command: click.Command, program: str, argv: Sequence[str] | None) -> Iterator[click.Context]:
    """The parsed command line, without the program's name (default: this process's own).

    Raises:
        click.exceptions.Exit: --help or --version was printed; its `exit_code` is 0.
        click.UsageError: Wrong arguments; `show()` prints it to stderr, its `exit_code` is 2.
    """
    try:
        with command.make_context(program, list(sys.argv[1:] if argv is None else argv)) as context:
            yield context
    except click.UsageError as error:
        # click repeats what was given; a URI may hold a secret.
        message = re.sub(r":/.*", ":/...", error.format_message(), flags=re.DOTALL)
        raise click.UsageError(message, error.ctx) from None


@contextlib.contextmanager
def under_way() -> Iterator[None]:
    """What goes wrong in here was not to be seen before it was started, so it is a failure: exit code 1.

    Raises:
        JobError: In place of an error that would say that the command is wrong, with the same words.
    """
    try:
        yield
    except _WRONG_COMMAND as error:
        raise JobError(str(error)) from error


def carry_out(
    program: str,
    read: Callable[[], T],
    work: Callable[[T, Console], Answer],
    *,
    stopped: str,
    failed: int = 1,
) -> int:
    """Read a command line and do what it says; returns the exit code.

    Args:
        program: What the user called, for errors.
        read: Gives what the command line asks for.
        work: Does it, and may print to the console, which is stderr.
        stopped: What holds after a command that was told to stop.
        failed: The exit code where the work fails on the way.
    """
    console = Console(stderr=True, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked = read()
        # Ray prints its notices to stdout, which is the summary's.
        with contextlib.redirect_stdout(sys.stderr):
            answer = work(asked, console)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except TaskvecError as error:
        console.print(f"{program}: {error}", style="red", markup=False, highlight=False)
        return 2 if isinstance(error, _WRONG_COMMAND) else failed
    except KeyboardInterrupt as stop:
        console.print(f"{program}: stopped; {str(stop) or stopped}", style="red")
        return failed
    sys.stdout.write(json.dumps(answer.summary) + "\n")
    return answer.exit_code
