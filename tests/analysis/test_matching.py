"""Match tables: what pycocotools matches, to the last detection; and files that can be trusted."""

import dataclasses
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.curves import interpolated_precision
from analysis.matching import IGNORED, TRUE_POSITIVE, MatchTables, match, overlapping
from data.errors import UserError
from engine.coco_metrics import Detections, GroundTruth, coco_numbers
from tests.support.coco_reference import CLASSES, TOLERANCE, random_case
from tests.support.scenes import scene


def assert_as_faster_coco_eval(truth: GroundTruth, detections: Detections) -> None:
    """AP of every class, size and threshold from pycocotools' matches, against the metrics of training."""
    matches, numbers = match(truth, detections), coco_numbers(truth, detections)
    for label, row in enumerate(numbers.per_class.values()):
        rows, num_gt = matches.rows(label), matches.gt_counts[:, :, label].sum(axis=1)
        assert (np.diff(matches.found.scores[rows]) <= 0).all() and num_gt[0] == row["num_gt"]
        for area, name in enumerate(("AP", "AP_small", "AP_medium", "AP_large")):
            ranked = [outcomes[outcomes != IGNORED] == TRUE_POSITIVE for outcomes in matches.outcomes[area, :, rows]]
            ap = np.mean([interpolated_precision(hits, int(num_gt[area])).mean() for hits in ranked])
            expected = row[name]  # type: ignore[literal-required]
            assert np.isnan(ap) if expected is None else abs(ap - expected) <= TOLERANCE, (label, name)
    hits = matches.outcomes[0, 0] == TRUE_POSITIVE
    assert ((matches.truth_of >= 0) == hits).all()
    taken = matches.truth_of[hits]
    assert len(np.unique(taken)) == len(taken) and not matches.truth.crowd[taken].any()
    assert (matches.truth.labels[taken] == matches.found.labels[hits]).all()
    assert (matches.truth.images[taken] == matches.found.images[hits]).all()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 10), crowds=st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_equal_to_the_metrics_of_training(seed: int, num_images: int, crowds: float) -> None:
    assert_as_faster_coco_eval(*random_case(seed, num_images=num_images, crowds=crowds))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), crowds=st.sampled_from([0.0, 0.4]))
def test_equal_to_the_metrics_of_training_in_a_throng(seed: int, crowds: float) -> None:
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
    assert_as_faster_coco_eval(GroundTruth(images, annotations, CLASSES), detections)


def test_more_than_a_hundred_detections_of_an_image() -> None:
    truth, _ = random_case(0, num_images=3, crowds=0.1)
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 300, (900, 2, 2)), axis=1).reshape(900, 4)
    detections = Detections.from_xyxy(
        np.repeat(np.array(list(truth.images)), 300), np.full(900, 4), rng.random(900), corners
    )
    assert_as_faster_coco_eval(truth, detections)
    assert len(match(truth, detections).found.scores) == 300


def test_nothing_found_nothing_there_and_strangers() -> None:
    truth, detections = random_case(1)
    empty = match(truth, Detections.empty())
    assert len(empty.found.scores) == 0 and empty.num_gt.sum() > 0
    nothing_there = match(dataclasses.replace(truth, annotations=[]), detections)
    assert nothing_there.num_gt.sum() == 0 and not (nothing_there.outcomes == TRUE_POSITIVE).any()
    no_images = match(dataclasses.replace(truth, images={}, annotations=[]), detections)
    assert len(no_images.found.scores) == 0 and no_images.gt_counts.shape == (4, 0, 5)
    stranger = Detections.from_xyxy(np.array([12345]), np.array([3]), np.array([0.9]), np.array([[0, 0, 5, 5]]))
    assert len(match(truth, stranger).found.scores) == 0


def test_pairs_that_overlap_are_of_one_image_and_of_any_class() -> None:
    boxes = [(1, "hole", (0, 0, 10, 10)), (2, "hole", (0, 0, 10, 10))]
    detections = [
        (1, "hole", (0, 0, 10, 5), 0.9),
        (1, "scratch", (0, 0, 10, 0.5), 0.8),
        (2, "NORMAL", (0, 0, 2, 2), 0.7),
    ]
    matches = match(*scene(boxes, detections, crowds=[(2, "scratch", (0, 0, 100, 100))]))
    pairs = [(matches.found.scores[d], box, iou) for d, box, iou in zip(*overlapping(matches), strict=True)]
    assert pairs == [(0.9, 0, 0.5), (0.7, 2, 1.0)], "a crowd box: the share of the detection in it; below 0.1: none"


def test_a_file_holds_it_all(tmp_path: Path) -> None:
    tables = MatchTables.of(*random_case(6))
    tables = dataclasses.replace(tables, names=("CONTAMINACIÓN", "划痕", *tables.names[2:]))
    tables.save(tmp_path / "run" / "match_tables.npz")
    read = MatchTables.load(tmp_path / "run" / "match_tables.npz")
    for before, after in zip(tables._arrays().values(), read._arrays().values(), strict=True):
        assert np.array_equal(before, after) and before.dtype == after.dtype


def _spoilt(**changes: Any) -> bytes:
    tables = MatchTables.of(*random_case(6))
    head = {"version": 1, "names": tables.names, "gt_hash": tables.gt_hash, **changes.pop("head", {})}
    arrays = tables._arrays()
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
    "images that are not there": lambda: _spoilt(images=np.full(len(match(*random_case(6)).found.scores), 99)),
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
