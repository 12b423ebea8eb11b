from pathlib import Path

import pytest

from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import train_here


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, run folder) of one uninterrupted run of 3 epochs of 2 steps that many tests compare with."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder)
    config = write_tiny_config(folder)
    return config, train_here(config, folder / "run")
