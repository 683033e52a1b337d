"""What a job raises on purpose; the root and the encoders' branch are in `encoders.errors`.

An exit code of 2 is for what is found before anything is started; the same found later is a JobError of its own
(`jobs.command.under_way`).

TaskvecError
└── JobError
    ├── ConfigurationError       the command cannot work as written; nothing was started   (exit code 2)
    ├── CorpusError              the input is not what was promised: shard, column, type   (exit code 1)
    ├── StorageError             a disk, a network or a service failed, or denied access   (exit code 1)
    │   └── FileChangedError     a file is not the one that was listed any more            (exit code 1)
    ├── OutputError              the output holds something that must not be mixed         (exit code 2)
    ├── OutputBusyError          another run has the output, or published meanwhile        (exit code 1)
    ├── TooManyRejectsError      more rows without a vector than was allowed               (exit code 1)
    └── AccountingError          rows read and rows written do not balance; not published  (exit code 1)
"""

from __future__ import annotations

from encoders.errors import TaskvecError


class JobError(TaskvecError):
    """The run cannot go on."""


class ConfigurationError(JobError):
    """The command cannot work as written; nothing was started."""


class CorpusError(JobError):
    """The input is not what was promised: a shard, a column or a type."""


class StorageError(JobError):
    """A disk, a network or an object store failed, or denied access."""


class FileChangedError(StorageError):
    """A file was replaced or removed since it was listed."""


class OutputError(JobError):
    """The output holds something that this run must not be mixed with."""


class OutputBusyError(JobError):
    """Another run has the output, or published into it while this one was at work."""


class TooManyRejectsError(JobError):
    """More rows would go without a vector than the configuration allows, so nothing is published."""


class AccountingError(JobError):
    """Rows read and rows written do not balance, so nothing is published."""
