"""`auto` for the batch: what fits, on a made-up card, and that a run keeps what was chosen."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import engine.step
from engine.batch_size import BatchChoice, Probe, Trial, choose_batch, most_boxes, try_step
from engine.config import config_to_dict, load_config
from engine.derived_values import REFERENCE_BATCH
from engine.run import build_run, save
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import alone, checkpoint

GIB = 2**30
H100_GIB = {2: 0.88, 4: 1.5, 8: 2.7, 16: 5.2, 32: 10.1}
"""DEIMv2-S at 640 pixels, bfloat16, measured at 2, 4 and 32 (docs/results.md), between them by the line."""


def card(memory_gib: float, scale: float = 1.0) -> Probe:
    """Needs memory as measured, times `scale`; every step takes as long as every other, as on a card that waits."""

    def probe(images: int) -> Trial | None:
        needed = scale * H100_GIB.get(images, 0.3 * images + 0.3) * GIB
        return Trial(int(needed), 0.15) if needed < memory_gib * GIB else None

    return probe


CASES = {
    # total, steps, memory, scale, processes, images -> total, steps
    "industrial": ((4, None, 12, 1, 1, 300), (4, 1)),
    "two halves fit": ((4, None, 12, 10, 1, 300), (4, 2)),
    "single images fit": ((4, None, 7, 10, 1, 300), (4, 4)),
    "nothing fits": ((4, None, 2, 10, 1, 300), (4, 4)),
    "no power of two": ((6, None, 5.5, 4, 1, 300), (6, 2)),
    "60 % of 12 GiB": ((None, None, 12, 1, 1, 300), (16, 1)),
    "60 % of 80 GiB": ((None, None, 80, 1, 1, 300), (32, 1)),
    "few images": ((None, None, 80, 1, 1, 11), (8, 1)),
    "stated steps": ((None, 4, 12, 1, 1, 300), (32, 4)),
    "two processes": ((None, None, 80, 1, 2, 300), (32, 1)),
    "shared by two": ((8, None, 12, 10, 2, 300), (8, 2)),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES.keys())
def test_what_fits(given: tuple[int | None, int | None, float, float, int, int], expected: tuple[int, int]) -> None:
    total, steps, memory_gib, scale, processes, images = given
    memory = int(memory_gib * GIB)
    found = choose_batch(total, steps, card(memory_gib, scale), memory, num_processes=processes, num_images=images)
    assert (found.total_batch_size, found.accumulation_steps) == expected
    assert "GiB in a trial step with" in found.why or "did not fit" in found.why


def test_what_would_be_faster_is_said() -> None:
    advice = choose_batch(4, None, card(12), 12 * GIB, num_images=300).advice
    assert advice == (
        "peak 1.5 of 12.0 GiB at batch 4; total_batch_size 16 (5.2 GiB) trains about 4.0 times as many images a second "
        "(trial steps on this card)"
    )
    assert choose_batch(16, None, card(12), 12 * GIB, num_images=300).advice is None


def test_on_a_cpu() -> None:
    assert choose_batch(8, None, None, 0, num_images=300) == BatchChoice(8, 1, "on a CPU")
    assert choose_batch(None, 2, None, 0, num_images=300).total_batch_size == 4


def test_a_run_keeps_what_was_chosen_also_when_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_data(tmp_path)
    config = write_tiny_config(tmp_path)
    options = ["accumulation_steps=auto", "train_dataloader.total_batch_size=auto", "epoches=2"]
    run = build_run(load_config(config, options), alone(), tmp_path / "run", resume=None, tuning=None)
    save(run, "last.pth")
    run.close()
    last = tmp_path / "run" / "last.pth"
    stored = checkpoint(last)["config"]
    assert (stored["accumulation_steps"], stored["train_dataloader"]["total_batch_size"]) == (1, 4)
    recipe = load_config(config, ["train_dataloader.total_batch_size=4"])
    assert stored["optimizer"]["params"][0]["lr"] == recipe.optimizer.params[0].lr
    assert stored["optimizer"]["params"][0]["lr"] != load_config(config, options).optimizer.params[0].lr
    assert REFERENCE_BATCH == 32
    monkeypatch.setattr("engine.batch_size.choose_batch", None)  # not asked again
    resumed = build_run(load_config(config, options), alone(), tmp_path / "run", resume=last, tuning=None)
    resumed.close()
    assert config_to_dict(resumed.config) == stored


def test_a_trial_step_with_the_fullest_images_at_the_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Size] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)
    normalize = engine.step.normalize_images
    monkeypatch.setattr(
        engine.step, "normalize_images", lambda x, *rest: (seen.append(x.shape), normalize(x, *rest))[1]
    )
    config = load_config(write_tiny_config(tmp_path), ["eval_spatial_size=[128, 128]"])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trial = try_step(config, torch.device("cpu"), 2, boxes_per_image=5)
    assert torch.equal(torch.rand(2), expected), "the caller's random numbers"
    assert trial is not None and trial.peak_bytes == 123 and trial.seconds > 0
    assert seen == [(2, 3, 160, 160)] * 3

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(engine.step, "build_criterion", refuse)
    assert try_step(config, torch.device("cpu"), 2, boxes_per_image=5) is None


def test_mosaic_may_put_the_fullest_images_together(tmp_path: Path) -> None:
    images = [SimpleNamespace(rows=slice(0, count)) for count in (1, 7, 3, 0, 2, 2)]
    config = load_config(write_tiny_config(tmp_path))
    assert most_boxes(config, SimpleNamespace(images=images)) == 7 + 3 + 2 + 2
    without = config.model_copy(deep=True)
    transforms = without.train_dataloader.dataset.transforms
    object.__setattr__(transforms, "ops", [op for op in transforms.ops if op.type != "Mosaic"])
    assert most_boxes(without, SimpleNamespace(images=images)) == 7
