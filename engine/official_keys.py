"""Bring what DEIMv2's YAML files may say into the one form the models know (docs/deimv2.md, Configuration dialect).

Works on plain dicts, before any field is checked, so every section may still hold anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.yaml_dialect import OWN_FILE, get_path, merge, set_path
from models.config import DEIMV2_KEYS

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

INACTIVE_KEYS = (
    # Built from nothing here: other backbones, encoders, decoders and losses of the official repository.
    "HGNetv2", "PResNet", "LiteEncoder", "DFINETransformer", "RTDETRTransformerv2", "DFINECriterion",
    # Without effect under the flat-cosine schedule, or bookkeeping of the original.
    "lr_scheduler", "lr_warmup_scheduler", "last_epoch", "find_unused_parameters", "checkpoint_freq", "print_method",
    "print_rank", "local_rank", "test_only",
    # Arguments that the original ignores, or that belong to choices not built here.
    "HybridEncoder.csp_type", "DEIMCriterion.share_matched_indices", "DEIMCriterion.alpha",
    "collate_fn.conflict_with_mixup", "collate_fn.data_vis", "collate_fn.vis_save",
    # Mosaic's partners are drawn from the whole data set by the sample's own seed: no sample depends on what a worker
    # has seen before.
    "Mosaic.use_cache", "Mosaic.max_cached_images", "Mosaic.random_pop",
)  # fmt: skip
"""Official keys that are known and do nothing here; every other unknown key is an error. `collate_fn` is that of any
loader, `Mosaic` any op of that type."""

FIXED_KEYS: dict[str, Any] = {
    "task": "detection",
    "evaluator": {"type": "CocoEvaluator", "iou_types": ["bbox"]},
    "postprocessor": "PostProcessor",
    "use_focal_loss": True,
    "lrsheduler": "flatcosine",
    "DINOv3STAs.patch_size": 16,
    "HybridEncoder.enc_act": "gelu",
    "HybridEncoder.act": "silu",
    "HybridEncoder.version": "deim",
    "HybridEncoder.fuse_op": "sum",
    "DEIMTransformer.num_levels": 3,
    "DEIMTransformer.activation": "silu",
    "DEIMTransformer.mlp_act": "silu",
    "DEIMTransformer.learn_query_content": False,
    "DEIMTransformer.aux_loss": True,
    "DEIMTransformer.cross_attn_method": "default",
    "DEIMTransformer.query_select_method": "default",
    "DEIMTransformer.use_gateway": True,
    "DEIMTransformer.share_bbox_head": False,
    "DEIMTransformer.share_score_head": False,
    "DEIMCriterion.matcher.type": "HungarianMatcher",
    "loader.type": "DataLoader",
    "dataset.type": "CocoDetection",
    "dataset.return_masks": False,
    "transforms.type": "Compose",
    "collate_fn.type": "BatchImageCollateFunction",
    "ConvertPILImage.dtype": "float32",
    "ConvertPILImage.scale": True,
    "ConvertBoxes.fmt": "cxcywh",
    "ConvertBoxes.normalize": True,
    "optimizer.type": "AdamW",
    "scaler.type": "GradScaler",
    "ema.type": "ModelEMA",
}
"""Official keys with the one value that is built here: it is dropped, another is an error. `loader` and its parts stand
for those of every loader, `Convert...` for any op of that type."""

_PLACES = {
    "loader": "",
    **dict.fromkeys(("dataset", "collate_fn"), ".{}"),
    "transforms": ".dataset.{}",
    **dict.fromkeys(("Mosaic", "ConvertPILImage", "ConvertBoxes"), ".dataset.transforms.ops.[].{}"),
}
"""Where in every loader the parts are that keys are named after."""


def _paths(key: str) -> list[str]:
    """Return the paths that a key stands for, as `engine.config_errors.every_field` would name them."""
    section, _, name = key.rpartition(".")
    place = _PLACES.get(section)
    return [key] if place is None else [f"{loader}{place.format(section)}.{name}" for loader in LOADERS]


INACTIVE_PATHS = [path for key in INACTIVE_KEYS for path in _paths(key)]
FIXED_PATHS = {path: only for key, only in FIXED_KEYS.items() for path in _paths(key)}

SHARED_KEYS = {
    "num_classes": ("DEIMTransformer", "DEIMCriterion", "PostProcessor"),
    "eval_spatial_size": ("HybridEncoder", "DEIMTransformer"),
    "use_focal_loss": ("DEIMCriterion.matcher", "PostProcessor"),
    "remap_mscoco_category": (*(f"{loader}.dataset" for loader in LOADERS), "PostProcessor"),
}
"""Top-level keys and the sections that may repeat them; the top level wins (docs/deimv2.md, Sections and objects)."""


def to_own_form(values: dict[str, Any], rank: Callable[[str], int]) -> dict[str, Any]:
    """Give `values`, which are changed, the one form that the models know. `rank`: see `Provenance`."""
    _complete_test_loader(values)
    drop_inactive(values)
    for key, sections in SHARED_KEYS.items():
        for section in sections:
            part = get_path(values, section)
            value = part.pop(key, None) if isinstance(part, dict) else None
            if value is not None:
                values.setdefault(key, value)
    if "num_top_queries" in values and isinstance(values.setdefault("PostProcessor", {}), dict):
        values["PostProcessor"]["num_top_queries"] = values.pop("num_top_queries")
    if values.get("ema") is None:  # `ema_decay` and `ema_warmups` are read where there is no section
        values["ema"] = {"decay": values.pop("ema_decay", 0.9999), "warmups": values.pop("ema_warmups", 2000)}
    for name in LOADERS:
        if get_path(values, f"{name}.dataset.transforms.ops", ()) is None:
            set_path(values, f"{name}.dataset.transforms.ops", [])
        # Top-level `num_workers` is for loaders without their own, and beats what earlier files say of these.
        if "num_workers" in values and isinstance(values.get(name), dict):
            later = rank("num_workers") > rank(f"{name}.num_workers")
            if later or "num_workers" not in values[name]:
                values[name]["num_workers"] = values["num_workers"]
    if values.get("Baseline") is not None:
        # What included files say of DEIMv2 has no effect and no place in the record; what the `-c` file itself or `-u`
        # says stays, so that the rules refuse it.
        values.update({key: None for key in DEIMV2_KEYS if rank(key) < OWN_FILE})
    return values


def drop_inactive(values: dict[str, Any]) -> dict[str, Any]:
    """Take `INACTIVE_KEYS`, and `FIXED_KEYS` that have their value, out of `values`, which are changed."""
    for path in INACTIVE_PATHS:
        section, _, key = path.rpartition(".")
        if path != "lr_scheduler" or not isinstance(values.get(path), str):  # text is a misspelt `lrsheduler`
            for part in _sections(values, section):
                part.pop(key, None)
    for path, only in FIXED_PATHS.items():
        section, _, key = path.rpartition(".")
        for part in _sections(values, section):
            if key in part and _is_only(part[key], only):
                del part[key]
    return values


def _is_only(value: Any, only: Any) -> bool:
    if isinstance(only, dict) and isinstance(value, dict):
        return all(key in only and value[key] == only[key] for key in value)
    return type(value) is type(only) and bool(value == only)


def _sections(values: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """List what stands at the path of a section, or of the ops of one type."""
    path, _, kind = path.partition(".[].")
    found: Any = [get_path(values, path) if path else values]
    if kind:
        found = [op for op in found[0] if get_path(op, "type") == kind] if isinstance(found[0], list) else []
    return [section for section in found if isinstance(section, dict)]


def _complete_test_loader(values: dict[str, Any]) -> None:
    """Take what `test_dataloader` leaves out from `val_dataloader`."""
    test, val = values.get("test_dataloader"), values.get("val_dataloader")
    if isinstance(test, dict) and isinstance(val, dict):
        sizes = {"batch_size", "total_batch_size"}
        given = sizes & test.keys()
        values["test_dataloader"] = merge({key: val[key] for key in val if not (given and key in sizes)}, test)
