"""The two-stage selection (docs/deimv2.md, Epoch loop and checkpoints) as tables: AP per epoch in, decisions out."""

import pytest

from engine.resume import Selection, decide


def run(aps: list[float], stop_epoch: int, first_epoch: int = 0) -> tuple[list[str], Selection]:
    """Each epoch's decisions as letters: b best.pth, 1 best_stg1.pth, r restart."""
    selection, letters = Selection(), []
    for epoch, ap in enumerate(aps, start=first_epoch):
        decision = decide(selection, ap=ap, epoch=epoch, stop_epoch=stop_epoch)
        selection = decision.selection
        letters.append("b" * decision.write_best + "1" * decision.write_stage1 + "r" * decision.restart)
    return letters, selection


@pytest.mark.parametrize(
    ("aps", "stop_epoch", "expected"),
    [
        ([0.1, 0.2, 0.15], 10, ["b1", "b1", ""]),
        ([0.0, 0.0], 10, ["b1", ""]),  # best_stg1 exists after the first epoch even at AP 0
        ([0.3, 0.2, 0.25], 1, ["b1", "r", ""]),  # after a restart the next epoch is "new" but not the top
        ([0.3, 0.2, 0.4], 1, ["b1", "r", "b"]),
        ([0.3, 0.2, 0.25, 0.2, 0.35], 1, ["b1", "r", "", "r", "b"]),
        ([0.3, 0.4, 0.35], 1, ["b1", "b", "r"]),
        ([0.2], 0, ["b"]),  # no stage 1 at all
    ],
)
def test_decisions(aps: list[float], stop_epoch: int, expected: list[str]) -> None:
    assert run(aps, stop_epoch)[0] == expected


def test_the_top_survives_restarts_and_restarts_are_counted() -> None:
    _, selection = run([0.3, 0.2, 0.25, 0.2], 1)
    assert (selection.top_ap, selection.top_epoch, selection.restarts) == (0.3, 0, 2)


def test_a_resumed_run_decides_as_an_uninterrupted_one() -> None:
    _, before = run([0.3, 0.2], 1)
    restored = Selection.model_validate(before.model_dump())
    assert restored == before
    assert decide(restored, ap=0.31, epoch=2, stop_epoch=1).write_best
