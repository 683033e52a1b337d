"""Settings that every test of the encoders shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

if TYPE_CHECKING:
    from tests.encoders.family_rows import Rows

logging.disable_progress_bar()
logging.set_verbosity_error()
# Times say nothing on a shared machine.
settings.register_profile("encoders", deadline=None)
settings.load_profile("encoders")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two layers of width 32 are faster on one thread, and the machine is shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The repository of each row of the table, written and loaded once; not to be changed."""
    from tests.encoders.family_rows import Rows

    return Rows(tmp_path_factory.mktemp("families"))
