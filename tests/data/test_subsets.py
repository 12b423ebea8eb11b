"""Parts of a training set: nested, in proportion, and what they leave out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.coco import CocoSplit, read_split
from data.subsets import Subset, stratified_order
from tests.support.coco_files import CocoFiles


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    """Forty images: `holes` in 24, `scratches` in 12 (4 of them with holes), a crowd of scratches in one, 7 empty."""
    files = CocoFiles(tmp_path_factory.mktemp("set"), num_images=40, boxes_per_image=0)
    for image_id in range(1, 25):
        files.add_box(image_id, [1, 1, 20, 20], 1)
    for image_id in range(21, 33):
        files.add_box(image_id, [5, 5, 9, 9], 2)
    files.add_box(33, [5, 5, 9, 9], 2, iscrowd=1)
    files.save()
    return read_split("train", files.ann_file, files.img_folder)[0]


def ids(part: CocoSplit) -> set[int]:
    return {image.id for image in part.images}


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=40), st.integers(0, 10**6))
def test_every_beginning_holds_every_kind_in_its_share(rows: list[list[bool]], seed: int) -> None:
    holds = np.array([[*row, not any(row)] for row in rows])
    order = stratified_order(holds, seed)
    assert sorted(order.tolist()) == list(range(len(holds)))
    assert (order == stratified_order(holds, seed)).all()
    if (holds.sum(axis=1) == 1).all():
        expected = np.outer(np.arange(1, len(holds) + 1), holds.mean(axis=0))
        assert (np.abs(holds[order].cumsum(axis=0) - expected) < 2).all()


def test_fractions_are_nested_and_keep_proportions(split: CocoSplit) -> None:
    parts = [Subset(fraction=fraction).of(split, 3) for fraction in (0.1, 0.25, 0.5, 1.0)]
    assert [len(part) for part in parts] == [4, 10, 20, 40]
    assert all(ids(small) < ids(large) for small, large in zip(parts, parts[1:], strict=False))
    for part in parts[1:]:
        share = len(part) / len(split)
        holding = [len({i for i in ids(part) if low <= i <= high}) for low, high in ((1, 24), (21, 33), (34, 40))]
        assert np.abs(np.array(holding) - share * np.array([24, 13, 7])).max() <= 1
    assert ids(Subset(fraction=0.25).of(split, 4)) != ids(parts[1]), "another seed draws another part"
    assert len(Subset(fraction=0.001).of(split, 0)) == 1


def test_rare_and_held_out(split: CocoSplit) -> None:
    holes, scratches = split.classes.names[:2]
    without = Subset(held_out=scratches).of(split, 0)
    assert ids(without) == set(range(1, 21)) | set(range(34, 41)), "images with other defects beside it go, crowds too"
    few, more = (Subset(rare=(scratches, count)).of(split, 0) for count in (2, 5))
    assert ids(without) < ids(few) < ids(more) and (len(few), len(more)) == (len(without) + 2, len(without) + 5)
    assert few.classes == split.classes, "the class stays one"
    assert Subset(rare=(holes, 24)).of(split, 0).boxes_per_class() == split.boxes_per_class()


def test_what_cannot_be(split: CocoSplit) -> None:
    scratches = split.classes.names[1]
    assert "no class of the data set; the classes are" in Subset(rare=("RUST", 3)).problems(split)[0]
    assert "--held-out RUST" in Subset(held_out="RUST").problems(split)[0]
    assert Subset(rare=(scratches, 14)).problems(split) == [
        f"--rare {scratches}=14: only 13 training images hold the class"
    ]
    only = split.without_images(ids(Subset(held_out=scratches).of(split, 0)))
    empty = split.without_images(range(1, 21))
    nothing = f"--held-out {scratches}: no training image with another class would be left"
    assert [Subset(held_out=scratches).problems(one) for one in (only, empty)] == [[nothing]] * 2
    assert not Subset(fraction=0.5).problems(split) and not Subset(rare=(scratches, 13)).problems(split)


def test_names_are_those_of_folders() -> None:
    assert [Subset(fraction=0.25).name, Subset(rare=("a/b c", 5)).name, Subset(held_out="../x").name] == [
        "fraction_0.25",
        "rare_a_b_c_5",
        "held_out_.._x",
    ]
