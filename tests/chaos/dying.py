"""The command, whose own process gets a signal at an exact point: `python -m tests.chaos.dying POINT ARGUMENTS...`.

Only the driver is armed; the workers are other processes, and import the code as it is.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any

from jobs.embed import main

SENT_AT = "signal sent at "


@dataclass(frozen=True)
class Point:
    """A point in the driver's life.

    Attributes:
        target: What is called then, `module:name.name`.
        argument: What its arguments must hold, as text.
        number: Of the call, among those that hold it.
        when: `before` the call, `after` it, or in the `middle` of the paths that it is to remove.
        signal: What the process gets.
    """

    target: str
    argument: str = ""
    number: int = 1
    when: str = "before"
    signal: str = "SIGKILL"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def arm(self) -> None:
        """From here on the call brings the signal."""
        module, _, path = self.target.partition(":")
        *way, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for step in way:
            owner = getattr(owner, step)
        original, calls = getattr(owner, name), itertools.count(1)

        @wraps(original)
        def armed(*args: Any, **kwargs: Any) -> Any:
            if name == "delete":
                args = (args[0], list(args[1]))
            if self.argument not in str(args) or next(calls) != self.number:
                return original(*args, **kwargs)
            if self.when == "after":
                original(*args, **kwargs)
            elif self.when == "middle":
                store, paths = args
                assert len(paths) > 1
                original(store, paths[: len(paths) // 2])
            sys.stderr.write(f"{SENT_AT}{time.time()}\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.Signals[self.signal])
            return original(*args, **kwargs)

        setattr(owner, name, armed)


if __name__ == "__main__":
    # A shell has it ignored by what it starts in the background, and what that starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Point(**json.loads(sys.argv[1])).arm()
    sys.exit(main(sys.argv[2:]))
