"""Settings of all tests, and what makes long programs short."""

import os

# Two test processes on two cores: more threads would only wait for one another. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import io  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402

from engine import yaml_dialect  # noqa: E402

# The machine may be busy, and a failure must be the same when the test is run again.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files near the top test whole programs and take longest: first, so that both processes end together."""
    items.sort(key=lambda item: len(item.path.parts))


def pytest_collection_finish() -> None:
    """What is imported by now stays: garbage collections need not look at it, nor come after every 700 objects."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def texts_of_configs_are_parsed_once() -> Iterator[None]:
    """Hundreds of configs include the same six files, and PyYAML takes most of the time of loading them."""
    parse = functools.lru_cache(maxsize=None)(yaml_dialect._parse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_dialect, "_parse", lambda text, source: copy.deepcopy(parse(text, source)))
        yield


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib's figures are put together, but each becomes the same dot: painting takes most of their time."""
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "png")

    def savefig(self: object, file: Any, *, format: str, **options: object) -> None:
        file.write(dot.getvalue() if format == "png" else b"%PDF")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture
def timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector's latency is that of one run after another; maps take no time."""
    monkeypatch.setattr("attention.faithfulness.perf_counter", lambda: 0.0)
    for name in ("_WARM_UP_RUNS", "_MIN_REPEATS", "_MAX_REPEATS"):
        monkeypatch.setattr(f"analysis.cost.{name}", 1)


@pytest.fixture
def training_pictures() -> None:
    """Takes `no_training_pictures` of the whole file back for one test."""


@pytest.fixture
def no_training_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw neither samples nor predictions, which takes as long as a small network's epochs."""
    if "training_pictures" in request.fixturenames:
        return
    monkeypatch.setattr("engine.train._shows_images", lambda *arguments: False)
    monkeypatch.setattr("engine.train.prediction_pictures", lambda *arguments, **options: [])
    monkeypatch.setattr("engine.train.write_prediction_sheets", lambda *arguments: None)
