"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same draws, whichever tests ran before."""
    torch.manual_seed(0)
