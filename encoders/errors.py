"""Everything that taskvec raises on purpose, as one tree.

    TaskvecError
    ├── EncoderError                 the model cannot give the vectors that its authors would get
    │   ├── ModelNotFoundError       no such repository, folder, revision or file
    │   ├── UnsupportedModelError    a part of the protocol that we cannot honour
    │   └── TaskError                a task, role or prompt that the model does not have
    ├── HubError                     the Hub, or its cache on this disk, failed: later it may go well
    └── JobError                     (jobs.errors) the run cannot go on

Each message says what was given, what is allowed, and how to mend it.
"""

from __future__ import annotations


class TaskvecError(Exception):
    """Root of every error that is meant for the user."""


class EncoderError(TaskvecError):
    """The model cannot give the vectors that its authors would get."""


class ModelNotFoundError(EncoderError):
    """No such repository, folder, revision or file."""


class HubError(TaskvecError):
    """The Hub, the way to it or its cache on this disk failed, which says nothing of the model."""


class UnsupportedModelError(EncoderError):
    """The repository asks for something that this code does not do; it is never skipped in silence."""


class TaskError(EncoderError):
    """The model has no such task or role, or no prompt for it."""
