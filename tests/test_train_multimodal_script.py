"""`train_deimv2_multimodal.py` as a user meets it. Free embeddings of a stated width stand for texts: no encoder."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from engine.config import load_config
from tests.support.scripts import start_script, start_two_processes
from tests.support.tiny_run import ROOT, write_tiny_config, write_tiny_data
from tests.support.training import checkpoint, train_here

pytestmark = pytest.mark.usefixtures("no_training_pictures")

SCRIPT = "train_deimv2_multimodal.py"
FUSION = "MultimodalFusion: {mode: learned, control_head: cross_attention, text_dim: 16, proj_dim: 8}\n"
SHORT = "epoches=1", "flat_epoch=1", "no_aug_epoch=0"


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


PLAN_BASE = """
__include__: ["../dataset/custom_detection.yml", "../deimv2/deimv2_dinov3_s_coco.yml"]

output_dir: ./outputs/deimv2_base
num_classes: 2
remap_mscoco_category: False

DINOv3STAs:
  name: vit_tiny
  weights_path: ~
  interaction_indexes: [3, 7, 11]

train_dataloader:
  total_batch_size: 4
  dataset: {img_folder: ./train/, ann_file: ./train.json}
val_dataloader:
  total_batch_size: 4
  dataset: {img_folder: ./val/, ann_file: ./val.json}

# hardware: RTX 4070, 12 GB
device: ""
use_amp: True
accumulation_steps: 2
gradient_checkpointing: True
num_workers: 0

epochs: 1
flat_epoch: 0
no_aug_epoch: 0
"""
PLAN_MULTIMODAL = """
__include__: ["./base.yml", "../runtime.yml"]

output_dir: ./outputs/deimv2_multimodal
MultimodalFusion: {mode: learned, text_dim: 16, trainable: heads}
"""


def test_two_phases_written_as_a_plan(tmp_path: Path) -> None:
    """Two includes by relative path, the backbone by name, the hardware in a block; phase 2 finds phase 1's run."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    write_tiny_data(tmp_path, num_train=4)
    (tmp_path / "configs" / "plan").mkdir()
    (tmp_path / "configs" / "plan" / "base.yml").write_text(PLAN_BASE, encoding="utf-8")
    (tmp_path / "configs" / "plan" / "multimodal.yml").write_text(PLAN_MULTIMODAL, encoding="utf-8")
    small = ("-d", "cpu", "-u", "eval_spatial_size=[64, 64]", "DEIMTransformer.num_queries=20")
    train, train_2 = "train_deimv2.py", (SCRIPT, "-c", "configs/plan/multimodal.yml", *small)
    planned = start_script(train, "-c", "configs/plan/base.yml", "--dry-run", cwd=tmp_path)
    config = yaml.safe_load(planned.out)
    assert (config["DINOv3STAs"]["name"], config["accumulation_steps"], config["epoches"]) == ("vit_tiny", 2, 1)

    too_early = start_script(*train_2, cwd=tmp_path)
    assert too_early.code == 2 and "Looked for outputs/deimv2_base/best.pth" in too_early.err
    assert "python train_deimv2.py -c configs/plan/base.yml" in too_early.err.replace("\\", "/")
    trained = start_script(train, "-c", "configs/plan/base.yml", *small, cwd=tmp_path)
    assert trained.code == 0, trained.err[-2000:]
    assert checkpoint(tmp_path / "outputs" / "deimv2_base" / "best.pth")["step"] == 1
    joined = start_script(*train_2, cwd=tmp_path)
    assert joined.code == 0, joined.err[-2000:]
    assert "phase 1: outputs/deimv2_base/best.pth" in joined.err
    assert checkpoint(tmp_path / "outputs" / "deimv2_multimodal" / "last.pth")["step"] == 1
    again = start_script(*train_2, "-r", "outputs/deimv2_multimodal", cwd=tmp_path)
    assert again.code == 0 and "deimv2_multimodal/last.pth is used" in again.err.replace("\\", "/")


@pytest.mark.parametrize(("name", "folder"), [("base", "deimv2_base"), ("multimodal", "deimv2_multimodal")])
def test_the_plain_names_of_the_phases(name: str, folder: str) -> None:
    """They are the industrial configs in folders of their own."""
    industrial = {"base": "deimv2_industrial_defects", "multimodal": "deimv2_industrial_multimodal"}[name]
    config, same = (load_config(ROOT / "configs" / f"{file}.yml") for file in (name, industrial))
    assert config.output_dir == Path("outputs", folder)
    assert config.model_copy(update={"output_dir": same.output_dir}) == same
