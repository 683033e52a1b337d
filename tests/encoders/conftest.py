"""Settings that every test of the encoders shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
# Times say nothing on a shared machine.
settings.register_profile("encoders", deadline=None)
settings.load_profile("encoders")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two layers of width 32 are faster on one thread, and the machine is shared."""
    torch.set_num_threads(1)
