"""What a command's exit code says: 2 is for what was found before anything was started, 1 for all that came later."""

from __future__ import annotations

import pytest

from encoders.errors import EncoderError, HubError, ModelNotFoundError, TaskvecError
from jobs.command import Answer, carry_out, under_way
from jobs.errors import (
    AccountingError,
    ConfigurationError,
    CorpusError,
    FileChangedError,
    JobError,
    OutputBusyError,
    OutputError,
    StorageError,
    TooManyRejectsError,
)

OF_THE_COMMAND = (ConfigurationError, OutputError, EncoderError, ModelNotFoundError)
FAILURES = (
    HubError,
    CorpusError,
    StorageError,
    FileChangedError,
    OutputBusyError,
    TooManyRejectsError,
    AccountingError,
    JobError,
)


def exit_code(error: type[TaskvecError], *, started: bool) -> int:
    def work(*_: object) -> Answer:
        if not started:
            raise error("what was wrong")
        with under_way():
            raise error("what was wrong")

    return carry_out("the program", lambda: None, work, stopped="")


@pytest.mark.parametrize("error", OF_THE_COMMAND)
def test_what_is_wrong_with_a_command_is_so_until_something_is_started(
    error: type[TaskvecError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(error, started=False) == 2
    assert exit_code(error, started=True) == 1
    assert capsys.readouterr().err == "the program: what was wrong\n" * 2


@pytest.mark.parametrize("error", FAILURES)
def test_a_failure_is_one_whenever_it_happens(error: type[TaskvecError]) -> None:
    assert [exit_code(error, started=started) for started in (False, True)] == [1, 1]


def test_a_file_that_changed_under_way_is_still_known_as_such() -> None:
    with pytest.raises(FileChangedError), under_way():
        raise FileChangedError("the corpus is listed anew after that")
