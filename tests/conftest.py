"""Settings of all tests."""

from hypothesis import settings

# The machine may be busy, and a failure must be the same when the test is run again.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")
