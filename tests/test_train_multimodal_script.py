"""`train_deimv2_multimodal.py` as a user meets it. Free embeddings of a stated width stand for texts: no encoder."""

from pathlib import Path

import pytest
import torch

from tests.support.scripts import start_script, start_two_processes
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import checkpoint, train_here

SCRIPT = "train_deimv2_multimodal.py"
FUSION = "MultimodalFusion: {mode: learned, control_head: cross_attention, text_dim: 16, proj_dim: 8}\n"
SHORT = "epoches=1", "flat_epoch=1", "no_aug_epoch=0"


@pytest.mark.usefixtures("no_training_pictures")
def test_from_phase_1_to_phase_2_and_on(tmp_path: Path) -> None:
    """Two processes with accumulation and mixed precision start phase 2; one resumes it; mistakes exit with 2."""
    write_tiny_data(tmp_path)
    tiny = write_tiny_config(tmp_path)
    phase_1 = train_here(tiny, tmp_path / "phase_1", SHORT) / "best.pth"
    config = write_tiny_config(tmp_path, name="fused", extra=f"{FUSION}accumulation_steps: 2\nuse_amp: True\n")
    single_size = "train_dataloader.collate_fn.base_size_repeat=null"  # one image of 32 px is too small for BatchNorm
    run = tmp_path / "run"
    arguments = ("-c", config, "--output-dir", run, "-d", "cpu", "-u", single_size, *SHORT)
    told = start_two_processes(SCRIPT, *arguments, "-r", phase_1, cwd=tmp_path)[0].err
    assert "phase 2 starts from the weights of" in told and "text fusion `learned`" in told
    state = checkpoint(run / "last.pth")
    assert state["last_epoch"] == 0 and (state["model"]["text_fusion.gates"] != 0).all()
    assert all(torch.isfinite(value).all() for value in state["model"].values() if value.is_floating_point())

    before = (run / "last.pth").read_bytes()
    alone = ("train_dataloader.total_batch_size=2", "val_dataloader.total_batch_size=2")
    assert start_script(SCRIPT, *arguments, *alone, "-r", run / "last.pth").code == 0
    assert (run / "last.pth").read_bytes() == before  # finished: resumed, not started again

    mistaken = start_script(SCRIPT, "-c", tiny, "-r", phase_1, "-d", "cpu")
    assert mistaken.code == 2 and "error: The config has no section MultimodalFusion" in mistaken.err
