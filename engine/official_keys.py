"""From what DEIMv2's YAML files may say to the one form that the config's models know (spec sections 11.3-11.5).

Works on plain dicts, before any field is checked, so every section may still hold anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.yaml_dialect import get_path, merge, set_path

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

INACTIVE_KEYS = frozenset(
    {
        # Built from nothing here: other backbones, encoders, decoders and losses of the official repository.
        "HGNetv2", "PResNet", "LiteEncoder", "DFINETransformer", "RTDETRTransformerv2", "DFINECriterion",
        # Without effect under the flat-cosine schedule, or bookkeeping of the original.
        "lr_scheduler", "lr_warmup_scheduler", "last_epoch", "find_unused_parameters",
        "checkpoint_freq",
        "print_method", "print_rank", "local_rank", "test_only",
        # Arguments that the original ignores, or that belong to choices not built here.
        "HybridEncoder.csp_type", "DEIMCriterion.share_matched_indices",
        *(
            f"{loader}.collate_fn.{key}"
            for loader in LOADERS
            for key in ("conflict_with_mixup", "data_vis", "vis_save")
        ),
    }
)  # fmt: skip
"""Official keys that are known and do nothing here; every other unknown key is an error."""

SHARED_KEYS = {
    "num_classes": ("DEIMTransformer", "DEIMCriterion", "PostProcessor"),
    "eval_spatial_size": ("HybridEncoder", "DEIMTransformer"),
    "use_focal_loss": ("DEIMCriterion.matcher", "PostProcessor"),
    "remap_mscoco_category": (
        "train_dataloader.dataset", "val_dataloader.dataset", "test_dataloader.dataset", "PostProcessor",
    ),
}  # fmt: skip
"""Top-level keys and the sections that may repeat them; the top level wins (spec section 11.3)."""


def to_own_form(values: dict[str, Any], rank: Callable[[str], int]) -> dict[str, Any]:
    """From the dialect's freedoms to the one form that the models know; changes `values`. `rank`: see `Provenance`."""
    _complete_test_loader(values)
    for path in INACTIVE_KEYS:
        if path != "lr_scheduler" or not isinstance(values.get(path), str):  # text is a misspelt `lrsheduler`
            _pop(values, path)
    for key, sections in SHARED_KEYS.items():
        for section in sections:
            if isinstance(get_path(values, section), dict):
                value = _pop(values, f"{section}.{key}")
                if value is not None:
                    values.setdefault(key, value)
    if "num_top_queries" in values and isinstance(values.setdefault("PostProcessor", {}), dict):
        values["PostProcessor"]["num_top_queries"] = values.pop("num_top_queries")
    for name in LOADERS:
        if get_path(values, f"{name}.dataset.transforms.ops", ()) is None:
            set_path(values, f"{name}.dataset.transforms.ops", [])
    _flat_ema(values)
    _worker_default(values, rank)
    return values


def _complete_test_loader(values: dict[str, Any]) -> None:
    """What `test_dataloader` leaves out is taken from `val_dataloader`."""
    test, val = values.get("test_dataloader"), values.get("val_dataloader")
    if not isinstance(test, dict) or not isinstance(val, dict):
        return
    sizes = {"batch_size", "total_batch_size"}
    if sizes & test.keys():
        val = {key: value for key, value in val.items() if key not in sizes}
    values["test_dataloader"] = merge(val, test)


def _pop(values: dict[str, Any], path: str) -> Any:
    parent, _, key = path.rpartition(".")
    section = get_path(values, parent) if parent else values
    return section.pop(key, None) if isinstance(section, dict) else None


def _flat_ema(values: dict[str, Any]) -> None:
    """`ema_decay` and `ema_warmups` are read where there is no section `ema` (spec section 11.4)."""
    if values.get("ema") is None:
        values["ema"] = {"decay": values.pop("ema_decay", 0.9999), "warmups": values.pop("ema_warmups", 2000)}


def _worker_default(values: dict[str, Any], rank: Callable[[str], int]) -> None:
    """Top-level `num_workers` is for loaders without their own, and beats what earlier files say of these."""
    for name in LOADERS:
        section = values.get(name)
        if "num_workers" in values and isinstance(section, dict):
            later = rank("num_workers") > rank(f"{name}.num_workers")
            section["num_workers"] = (
                values["num_workers"] if later else section.get("num_workers", values["num_workers"])
            )
