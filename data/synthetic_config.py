"""Config section `synthetic`: what the generated defect images look like."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DefectName = Literal["PERFORACIONES", "RAYONES", "ROTURA", "DEFORMACIONES", "CONTAMINACION"]
TextureName = Literal[
    "brushed_metal",
    "rolled_metal",
    "cast_metal",
    "matte_plastic",
    "speckled_plastic",
    "grained_plastic",
    "orange_peel_paint",
    "smooth_paint",
]


class SyntheticConfig(BaseModel):
    """A generated six-class data set of surface defects, written once and reused.

    Ranges are (low, high). Sizes are fractions of the image side; a grey level is 1/255 of full scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path = Path("datasets/quickstart")
    """Folder of the data set: `images/<split>/*.jpg` and `annotations/instances_<split>.json`."""
    seed: int = Field(default=0, ge=0)
    """Same seed, same files. Each image has its own random stream (seed, split, index)."""
    num_train: int = Field(default=1200, ge=1)
    """Images of the training split."""
    num_val: int = Field(default=300, ge=1)
    """Images of the validation split."""
    num_test: int = Field(default=0, ge=0)
    """Images of a test split; 0 writes none."""
    image_size: int = Field(default=160, ge=64, le=2048)
    """Width and height of every image, in pixels."""
    normal_fraction: float = Field(default=0.15, ge=0.0, le=1.0)
    """Share of defect-free images (exact up to rounding, spread at random over the split)."""
    objects_per_image: tuple[float, ...] = Field(default=(0.45, 0.3, 0.2, 0.05), min_length=1, max_length=8)
    """Weights of 1, 2, 3, ... defects in an image that has any. Crowded images may hold fewer than drawn."""
    class_weights: dict[DefectName, float] = {
        "PERFORACIONES": 1.0,
        "RAYONES": 1.0,
        "ROTURA": 1.0,
        "DEFORMACIONES": 1.0,
        "CONTAMINACION": 1.0,
    }
    """How often each defect is drawn, relative to the others; an absent one is never drawn."""
    texture_weights: dict[TextureName, float] = {
        "brushed_metal": 1.0,
        "rolled_metal": 1.0,
        "cast_metal": 1.0,
        "matte_plastic": 1.0,
        "speckled_plastic": 1.0,
        "grained_plastic": 1.0,
        "orange_peel_paint": 1.0,
        "smooth_paint": 1.0,
    }
    """How often each surface is drawn, relative to the others; an absent one is never drawn."""
    size_range: tuple[float, float] = (0.04, 0.5)
    """Longer side of a defect's box, as a fraction of the image side."""
    size_mode: float = 0.2
    """Most frequent size: sizes follow a triangular distribution in log(size) with its peak here."""
    min_box_side: float = Field(default=0.03, ge=0.0)
    """Shorter side of a defect's box, at least, as a fraction of the image side: a sliver of one or two
    pixels has no box that could be found to IoU 0.5."""
    contrast_range: tuple[float, float] = (0.12, 0.6)
    """Strength of a defect, log-uniform: the 95th percentile over its visible pixels of the change against
    the clean surface (largest channel), as a fraction of full scale, before noise."""
    contrast_floor: dict[DefectName, float] = {"PERFORACIONES": 0.35, "ROTURA": 0.2}
    """Least contrast of a class where it is above contrast_range's: an opening is dark, it has no surface."""
    visible_levels: float = Field(default=8.0, gt=0.0)
    """A pixel belongs to a defect if it changed by more than this many grey levels ..."""
    visible_share: float = Field(default=0.2, ge=0.0, lt=1.0)
    """... and by more than this share of the defect's contrast. The box encloses exactly these pixels."""
    light_range: tuple[float, float] = (0.05, 0.4)
    """Unevenness of the light: brightness range of gradient, vignette and spot together, over the mean."""
    blur_sigma_px: tuple[float, float] = (0.0, 0.6)
    """Standard deviation of the optical blur, pixels."""
    noise_levels: tuple[float, float] = (1.0, 5.0)
    """Standard deviation of the sensor noise, grey levels."""
    jpeg_quality: tuple[int, int] = (80, 95)
    """JPEG quality."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        limits = {
            "size_range": (0.02, 0.8),
            "contrast_range": (0.05, 0.9),
            "light_range": (0.0, 0.8),
            "blur_sigma_px": (0.0, 5.0),
            "noise_levels": (0.0, 50.0),
            "jpeg_quality": (1, 100),
        }
        faults = []
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                faults.append(f"{name} is [{low}, {high}]: expected {least} <= low <= high <= {most}")
        if not self.size_range[0] <= self.size_mode <= self.size_range[1]:
            faults.append(f"size_mode is {self.size_mode}: expected a value inside size_range")
        if self.min_box_side > self.size_range[0]:
            faults.append(f"min_box_side is {self.min_box_side}: expected at most size_range's low end")
        for name, floor in self.contrast_floor.items():
            if not 0.0 <= floor <= self.contrast_range[1]:
                faults.append(f"contrast_floor.{name} is {floor}: expected at most contrast_range's high end")
        weights = {
            "objects_per_image": self.objects_per_image,
            "class_weights": self.class_weights.values(),
            "texture_weights": self.texture_weights.values(),
        }
        for name, values in weights.items():
            if min(values, default=0.0) < 0.0 or not 0.0 < sum(values) < float("inf"):
                faults.append(f"{name}: expected weights >= 0 with a positive sum")
        if faults:
            raise ValueError("; ".join(faults))
        return self
