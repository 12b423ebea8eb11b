"""Settings of all tests."""

import os

# Two test processes on two cores: more threads would only wait for one another. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The machine may be busy, and a failure must be the same when the test is run again.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files near the top test whole programs and take longest: first, so that both processes end together."""
    items.sort(key=lambda item: len(item.path.parts))
