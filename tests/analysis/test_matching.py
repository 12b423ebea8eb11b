"""Match tables: what pycocotools matches, to the last detection; and files that can be trusted."""

import dataclasses
import io
import json
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.matching import IGNORED, IOU_THRESHOLDS, TRUE_POSITIVE, MatchTables
from analysis.overlaps import Overlaps
from data.errors import UserError
from engine.coco_metrics import Detections, GroundTruth
from tests.support.coco_reference import CLASSES, random_case, reference_evaluator


def assert_as_pycocotools(truth: GroundTruth, detections: Detections) -> None:
    """Every detection's outcome under every threshold and size, in the order pycocotools ranks them."""
    tables = MatchTables.of(truth, detections)
    evaluator = reference_evaluator(truth, [dict(one) for one in detections.to_coco()])
    ranges = [tuple(limits) for limits in evaluator.params.areaRng]
    by_class: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for one in evaluator.evalImgs:
        if one is not None:
            by_class[ranges.index(tuple(one["aRng"])), one["category_id"]].append(one)
    for label, category_id in enumerate(CLASSES.category_ids):
        for area in range(4):
            images = by_class[area, category_id]
            counts = np.zeros(len(truth.images), dtype=int)
            for one in images:
                counts[np.searchsorted(tables.image_ids, one["image_id"])] = (1 - np.asarray(one["gtIgnore"])).sum()
            assert tables.gt_counts[area, :, label].tolist() == counts.tolist()
            if not images:
                assert tables.rows(label).start == tables.rows(label).stop
                continue
            scores = np.concatenate([one["dtScores"] for one in images])
            order = np.argsort(-scores, kind="mergesort")
            matched = np.concatenate([one["dtMatches"] for one in images], axis=1)[:, order] > 0
            ignored = np.concatenate([one["dtIgnore"] for one in images], axis=1)[:, order].astype(bool)
            owners = np.repeat([one["image_id"] for one in images], [len(one["dtScores"]) for one in images])[order]
            outcomes = tables.outcomes[area, :, tables.rows(label)]
            assert (tables.scores[tables.rows(label)] == scores[order]).all()
            assert (tables.image_ids[tables.images[tables.rows(label)]] == owners).all()
            assert ((outcomes == IGNORED) == ignored).all()
            assert ((outcomes == TRUE_POSITIVE) == (matched & ~ignored)).all()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 10), crowds=st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_equal_to_pycocotools(seed: int, num_images: int, crowds: float) -> None:
    assert_as_pycocotools(*random_case(seed, num_images=num_images, crowds=crowds))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), crowds=st.sampled_from([0.0, 0.4]))
def test_equal_to_pycocotools_in_a_throng(seed: int, crowds: float) -> None:
    """Many boxes on a coarse grid in one spot: equal IoUs, equal scores, IoUs of exactly 0.5."""
    rng = np.random.default_rng(seed)
    images = {3: "a", 1: "b"}

    def boxes(count: int) -> Any:
        return np.concatenate([rng.integers(0, 3, (count, 2)) * 10, rng.integers(1, 5, (count, 2)) * 10], axis=1)

    annotations = [
        {
            "image_id": int(rng.choice([1, 3])),
            "category_id": int(rng.choice([0, 3])),
            "bbox": box.tolist(),
            "area": float(rng.choice([box[2:].prod(), 32.0**2, 32.0**2 + 1])),
            "iscrowd": int(rng.random() < crowds),
        }
        for box in boxes(24)
    ]
    found = boxes(60)
    detections = Detections.from_xyxy(
        rng.choice([1, 3], 60),
        rng.choice([0, 3], 60),
        rng.integers(0, 6, 60) / 5,
        np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1),
    )
    assert_as_pycocotools(GroundTruth(images, annotations, CLASSES), detections)


def test_more_than_a_hundred_detections_of_an_image() -> None:
    truth, _ = random_case(0, num_images=3, crowds=0.1)
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 300, (900, 2, 2)), axis=1).reshape(900, 4)
    detections = Detections.from_xyxy(
        np.repeat(np.array(list(truth.images)), 300), np.full(900, 4), rng.random(900), corners
    )
    assert_as_pycocotools(truth, detections)
    assert len(MatchTables.of(truth, detections)) == 300


def test_nothing_found_nothing_there_and_strangers() -> None:
    truth, detections = random_case(1)
    empty = MatchTables.of(truth, Detections.empty())
    assert len(empty) == 0 and empty.num_gt.sum() > 0
    nothing_there = MatchTables.of(dataclasses.replace(truth, annotations=[]), detections)
    assert nothing_there.num_gt.sum() == 0 and not (nothing_there.outcomes == TRUE_POSITIVE).any()
    no_images = MatchTables.of(dataclasses.replace(truth, images={}, annotations=[]), detections)
    assert len(no_images) == 0 and no_images.gt_counts.shape == (4, 0, 5)
    stranger = Detections.from_xyxy(np.array([12345]), np.array([3]), np.array([0.9]), np.array([[0, 0, 5, 5]]))
    assert len(MatchTables.of(truth, stranger)) == 0


def test_pairs_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, detections = random_case(4, num_images=30)
    whole = Overlaps.of(truth, detections)
    monkeypatch.setattr("analysis.overlaps._PAIRS_AT_ONCE", 7)
    pieces = Overlaps.of(truth, detections)
    for field in dataclasses.fields(Overlaps):
        assert np.array_equal(getattr(whole, field.name), getattr(pieces, field.name)), field.name


def test_a_file_holds_it_all(tmp_path: Path) -> None:
    tables = MatchTables.of(*random_case(6))
    tables = dataclasses.replace(tables, names=("CONTAMINACIÓN", "划痕", *tables.names[2:]))
    tables.save(tmp_path / "run" / "match_tables.npz")
    read = MatchTables.load(tmp_path / "run" / "match_tables.npz")
    for field in dataclasses.fields(MatchTables):
        before, after = getattr(tables, field.name), getattr(read, field.name)
        assert np.array_equal(before, after) and type(before) is type(after)
        assert not isinstance(before, np.ndarray) or before.dtype == after.dtype
    assert len(IOU_THRESHOLDS) == read.outcomes.shape[1]


def _spoilt(**changes: Any) -> bytes:
    tables = MatchTables.of(*random_case(6))
    names = ("image_ids", "class_starts", "scores", "images", "outcomes", "gt_counts")
    head = {"version": 1, "names": tables.names, "gt_hash": tables.gt_hash, **changes.pop("head", {})}
    arrays: dict[str, Any] = {name: getattr(tables, name) for name in names}
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
    arrays.update(changes)
    file = io.BytesIO()
    np.savez_compressed(file, **{key: value for key, value in arrays.items() if value is not None})
    return file.getvalue()


def _plain_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def _other_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "hello")
    return file.getvalue()


def _nested(depth: int) -> list[Any]:
    part: list[Any] = []
    for _ in range(depth):
        part = [part]
    return part


def _claiming(shape: tuple[int, ...], dtype: str) -> bytes:
    """Scores whose header is of another size than what follows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_spoilt())) as archive, zipfile.ZipFile(file, "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, header.getvalue() + bytes(8) if name == "scores.npy" else archive.read(name))
    return file.getvalue()


def _unpacking_to_much() -> bytes:
    """240 MB of zeros in 240 kB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("head.npy", "scores.npy", "images.npy"):
            archive.writestr(name, bytes(80 * 2**20))
    return file.getvalue()


DAMAGE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello world",
    "cut short": lambda: _spoilt()[:-200],
    "bits flipped": lambda: bytes(byte ^ (i % 200 == 199) for i, byte in enumerate(_spoilt())),
    "an array": _plain_array,
    "another archive": _other_archive,
    "an array missing": lambda: _spoilt(scores=None),
    "pickled objects": lambda: _spoilt(scores=np.array([{"a": 1}], dtype=object)),
    "another version": lambda: _spoilt(head={"version": 2}),
    "a head of another type": lambda: _spoilt(head={"names": 3}),
    "a wrong shape": lambda: _spoilt(scores=np.zeros(3)),
    "a wrong type": lambda: _spoilt(gt_counts=np.zeros((4, 12, 5))),
    "starts that go back": lambda: _spoilt(class_starts=np.array([0, 5, 3, 6, 7, 10**6])),
    "a head without end": lambda: _spoilt(head={"names": _nested(400)}),
    "names that are no text": lambda: _spoilt(head={"names": [[[]]] * 5}),
    "terabytes claimed": lambda: _claiming((10**12,), "<f8"),
    "exabytes claimed": lambda: _claiming((10**9, 10**9), "<f8"),
    "gigantic elements claimed": lambda: _claiming((10**3,), "|V2000000000"),
    "unpacks to much": _unpacking_to_much,
    "images that are not there": lambda: _spoilt(images=np.full(len(MatchTables.of(*random_case(6))), 99)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "match_tables.npz"
    path.write_bytes(DAMAGE[kind]())
    started = time.monotonic()
    with pytest.raises(UserError, match=r"match_tables\.npz: damaged, cut short or of another version"):
        MatchTables.load(path)
    assert time.monotonic() - started < 5


def test_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file\. Evaluate the checkpoint again"):
        MatchTables.load(tmp_path / "match_tables.npz")


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="Could not write match tables"):
        MatchTables.of(*random_case(6)).save(tmp_path / "file" / "match_tables.npz")
