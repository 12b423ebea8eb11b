"""Draws surfaces and surface defects; pure functions of a random generator.

Legend: N image side in pixels, S patch side in pixels. Images are float32 RGB in 0..255, masks float32 in 0..1.
Lengths that describe a surface are given for a 160-pixel image and scaled by `unit` = N / 160, so that the
same picture comes out at any resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data.synthetic_config import DefectName, TextureName

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Surface = Callable[[np.random.Generator, int, Array], Array]
Defect = Callable[[np.random.Generator, Array, float, Array, float], Array]

_SUPERSAMPLING = 4

METALS = (
    (178, 180, 184),
    (150, 154, 160),
    (196, 198, 198),
    (182, 160, 108),
    (176, 128, 100),
    (124, 128, 134),
)
CAST_METALS = ((128, 128, 130), (150, 150, 148), (112, 114, 120), (142, 132, 122))
PLASTICS = (
    (214, 214, 210),
    (180, 182, 184),
    (204, 188, 156),
    (76, 112, 172),
    (88, 140, 108),
    (172, 80, 74),
    (208, 178, 84),
    (104, 106, 112),
)
PAINTS = (
    (190, 62, 56),
    (58, 96, 178),
    (64, 132, 88),
    (214, 178, 62),
    (216, 216, 212),
    (212, 122, 54),
    (166, 170, 176),
    (76, 146, 154),
)
STAINS = (
    (122, 64, 24),
    (52, 38, 20),
    (66, 112, 44),
    (240, 238, 228),
    (34, 58, 150),
    (160, 34, 60),
    (206, 172, 52),
    (118, 44, 128),
)


# --------------------------------------------------------------------------------------------- noise


def _f32(image: Any) -> Array:
    """What OpenCV returns, with the dtype it has."""
    return np.asarray(image, dtype=np.float32)


def _unit_std(field: Array) -> Array:
    return (field - field.mean()) / (field.std() + 1e-6)


def _blur(image: Array, sigma_px: float) -> Array:
    return _f32(cv2.GaussianBlur(image, (0, 0), sigma_px)) if sigma_px > 0.05 else image


def _noise(rng: np.random.Generator, side: int, sigma_px: float = 0.0) -> Array:
    """[side, side], zero mean, unit standard deviation, correlated over about `sigma_px`."""
    if sigma_px < 3.0:
        return _unit_std(_blur(rng.standard_normal((side, side), dtype=np.float32), sigma_px))
    # A coarse grid enlarged by cubic interpolation costs nothing, however smooth the noise.
    cells = math.ceil(side / (1.5 * sigma_px)) + 3
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    zoom = math.ceil(cells * 1.5 * sigma_px)
    fine = cv2.resize(coarse, (zoom, zoom), interpolation=cv2.INTER_CUBIC)
    start = (zoom - side) // 2
    return _unit_std(_f32(fine)[start : start + side, start : start + side])


def _streaks(
    rng: np.random.Generator, side: int, angle_deg: float, length_px: float, width_px: float
) -> Array:
    """[side, side], unit standard deviation, correlated over `length_px` along the angle, `width_px` across."""
    large = math.ceil(1.5 * side)
    field = rng.standard_normal((large, large), dtype=np.float32)
    field = _unit_std(_f32(cv2.GaussianBlur(field, (0, 0), sigmaX=length_px, sigmaY=width_px)))
    matrix = cv2.getRotationMatrix2D((large / 2, large / 2), angle_deg, 1.0)
    matrix[:, 2] -= (large - side) / 2
    return _f32(
        cv2.warpAffine(field, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    )


def _relief(height: Array, light_xy: Array) -> Array:
    """Lambertian shading of a height field lit from `light_xy`, normalised to unit standard deviation."""
    slope_y, slope_x = np.gradient(height)
    return _unit_std(-(slope_x * light_xy[0] + slope_y * light_xy[1]))


# ------------------------------------------------------------------------------------------ surfaces
# Each returns relative brightness [N, N] around 1.


def _grain_angle(rng: np.random.Generator) -> float:
    return float(rng.choice([0.0, 90.0]) + rng.normal(0.0, 8.0))


def brushed_metal(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit, angle = side / 160, _grain_angle(rng)
    fine = _streaks(rng, side, angle, 18 * unit, 0.5 * unit)
    coarse = _streaks(rng, side, angle, 30 * unit, 2.0 * unit)
    return 1 + rng.uniform(0.03, 0.06) * fine + 0.02 * coarse


def rolled_metal(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit, angle = side / 160, _grain_angle(rng)
    bands = _streaks(rng, side, angle, 60 * unit, 7 * unit)
    marks = _streaks(rng, side, angle, 10 * unit, 1.0 * unit)
    return 1 + rng.uniform(0.03, 0.06) * bands + 0.015 * marks + 0.012 * _noise(rng, side, 0.6 * unit)


def cast_metal(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    height = _noise(rng, side, 1.0 * unit) + 1.5 * _noise(rng, side, 2.5 * unit)
    return 1 + rng.uniform(0.04, 0.08) * _relief(height, light_xy) + 0.03 * _noise(rng, side, 14 * unit)


def matte_plastic(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    return 1 + rng.uniform(0.006, 0.02) * _noise(rng, side, 0.6 * unit) + 0.01 * _noise(rng, side, 20 * unit)


def speckled_plastic(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    specks = np.zeros((side, side), np.float32)
    count = int(rng.integers(300, 800))
    rows, columns = rng.integers(0, side, (2, count))
    specks[rows, columns] = rng.choice([-1.0, 1.0], count, p=[0.65, 0.35]) * rng.uniform(0.4, 1.0, count)
    specks = _blur(specks, 0.55 * unit)
    return 1 + rng.uniform(0.15, 0.3) * specks / (np.abs(specks).max() + 1e-6) + 0.008 * _noise(rng, side)


def grained_plastic(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    white = _noise(rng, side)
    height = _unit_std(_blur(white, 1.1 * unit)) - _unit_std(_blur(white, 2.4 * unit))
    return 1 + rng.uniform(0.03, 0.06) * _relief(height, light_xy)


def orange_peel_paint(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    shade = _relief(_noise(rng, side, rng.uniform(2.0, 3.5) * unit), light_xy)
    return 1 + rng.uniform(0.02, 0.04) * (shade + 0.35 * np.maximum(shade, 0) ** 2)


def smooth_paint(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    flakes = rng.choice([0.0, 0.03]) * _noise(rng, side)
    return _f32(1 + flakes + 0.012 * _noise(rng, side, 25 * side / 160))


SURFACES: dict[TextureName, tuple[Surface, Sequence[tuple[int, int, int]]]] = {
    "brushed_metal": (brushed_metal, METALS),
    "rolled_metal": (rolled_metal, METALS),
    "cast_metal": (cast_metal, CAST_METALS),
    "matte_plastic": (matte_plastic, PLASTICS),
    "speckled_plastic": (speckled_plastic, PLASTICS),
    "grained_plastic": (grained_plastic, PLASTICS),
    "orange_peel_paint": (orange_peel_paint, PAINTS),
    "smooth_paint": (smooth_paint, PAINTS),
}


def uneven_light(rng: np.random.Generator, side: int, light_xy: Array, brightness_range: float) -> Array:
    """Brightness [N, N] with mean 1 and max - min = `brightness_range`: gradient + vignette + spot highlight."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    gradient = x * light_xy[0] + y * light_xy[1]
    vignette = -(x**2 + y**2)
    spot_x, spot_y = rng.uniform(-0.8, 0.8, 2)
    spot = np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (2 * rng.uniform(0.35, 0.6) ** 2))
    weights = rng.dirichlet((1.0, 1.0, 1.0))
    field = weights[0] * gradient + weights[1] * vignette + weights[2] * 2 * spot
    field = field / (np.ptp(field) + 1e-6)
    return _f32(1 + brightness_range * (field - field.mean()))


def clean_surface(
    rng: np.random.Generator, texture: TextureName, side: int, light_xy: Array, brightness_range: float
) -> Array:
    """A defect-free surface under uneven light, [N, N, 3]."""
    draw, colours = SURFACES[texture]
    colour = np.array(colours[rng.integers(len(colours))], np.float32) * rng.uniform(0.9, 1.08)
    colour = np.clip(colour + rng.uniform(-8, 8, 3), 40, 225).astype(np.float32)
    brightness = draw(rng, side, light_xy) * uneven_light(rng, side, light_xy, brightness_range)
    return np.clip(brightness[..., None] * colour, 0, 255)


# -------------------------------------------------------------------------------------------- shapes


def _fit(points: Points, size: float) -> Points:
    """Centres points on their box and scales them so that its longer side is `size`."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (size / max(float((high - low).max()), 1e-6))


def _rotate(points: Points, angle: float) -> Points:
    cosine, sine = math.cos(angle), math.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def _outline(rng: np.random.Generator, wobble: float, harmonics: int, aspect: float) -> Points:
    """A closed curve [96, 2] around the origin: an ellipse with random harmonics of relative size `wobble`."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = np.ones_like(angle)
    for k in range(2, 2 + harmonics):
        radius += wobble * rng.normal() / math.sqrt(k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.35)
    points = np.stack([radius * np.cos(angle), aspect * radius * np.sin(angle)], axis=1)
    return _rotate(points, rng.uniform(0, np.pi))


def _coverage(canvas: npt.NDArray[np.uint8], side: int) -> Array:
    return _f32(cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)) / 255


def _fill(polygons: Sequence[Points], side: int) -> Array:
    """Antialiased union of polygons given in pixels around the patch centre; [side, side] in 0..1."""
    canvas = np.zeros((side * _SUPERSAMPLING, side * _SUPERSAMPLING), np.uint8)
    for polygon in polygons:
        fixed = np.round(((polygon + side / 2) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 255, shift=4)
    return _coverage(canvas, side)


def _strokes(lines: Sequence[tuple[Points, Points]], side: int) -> Array:
    """Antialiased polylines (points [K, 2] around the patch centre, widths [K - 1]); pixels; [side, side]."""
    canvas = np.zeros((side * _SUPERSAMPLING, side * _SUPERSAMPLING), np.uint8)
    for points, widths in lines:
        fixed = np.round(((points + side / 2) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32).tolist()
        thickness = np.maximum(np.round(widths * _SUPERSAMPLING), 1).astype(int).tolist()
        for start, end, width in zip(fixed[:-1], fixed[1:], thickness, strict=True):
            cv2.line(canvas, start, end, 255, width, shift=4)
    return _coverage(canvas, side)


def _shift(mask: Array, offset_xy: Array) -> Array:
    matrix = np.array([[1, 0, offset_xy[0]], [0, 1, offset_xy[1]]], np.float32)
    return _f32(cv2.warpAffine(mask, matrix, mask.shape[::-1]))


def _grid(side: int) -> tuple[Array, Array]:
    """Pixel centres around the patch centre: x [1, side], y [side, 1]."""
    axis = np.arange(side, dtype=np.float32) + 0.5 - side / 2
    return axis[None, :], axis[:, None]


# ------------------------------------------------------------------------------------------- defects
# Each takes a clean patch [S, S, 3], the longer side of the defect in pixels, the unit vector towards the light
# and `unit`, and returns the patch with the defect in its middle at natural strength.


def draw_hole(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """PERFORACIONES: a dark round opening with a lit far wall and a bevelled rim."""
    side = surface.shape[0]
    rim = min(max(0.8 * unit, 0.07 * size), 0.2 * size)
    outline = _outline(rng, 0.04, 3, rng.uniform(0.6, 1.0))
    outer = _fill([_fit(outline, size)], side)
    opening = _fill([_fit(outline, size - 2 * rim)], side)
    ring = np.clip(outer - opening, 0, 1)
    # Outward direction of the contour, from a blurred mask; the bevel away from the light faces it.
    fall_y, fall_x = np.gradient(-_blur(outer, max(0.15 * size, 1.0)))
    facing = (fall_x * light_xy[0] + fall_y * light_xy[1]) / (np.hypot(fall_x, fall_y) + 1e-6)
    wall = opening * (1 - _shift(opening, light_xy * (0.16 * size)))
    inside = surface * (0.08 + 0.5 * wall)[..., None]
    bevel = surface * (1 - 0.45 * facing)[..., None] + 70 * np.maximum(-facing, 0)[..., None]
    return surface + opening[..., None] * (inside - surface) + ring[..., None] * (bevel - surface)


def draw_scratch(
    rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float
) -> Array:
    """RAYONES: one to four thin lines, nearly straight and parallel, bright or dark, with a shaded flank."""
    side = surface.shape[0]
    count = 1 if size < 18 * unit else int(rng.choice([1, 2, 3, 4], p=[0.5, 0.2, 0.2, 0.1]))
    width = rng.uniform(0.9, 1.3) * unit + 0.012 * size
    steps = np.linspace(0, 1, 13)
    bend = rng.normal(0, 0.05)
    lines = []
    for k in range(count):
        start, end = (0.0, 1.0) if k == 0 else (rng.uniform(0, 0.35), rng.uniform(0.65, 1.0))
        along = start + (end - start) * steps
        across = 4 * bend * along * (1 - along) + k * rng.uniform(0.05, 0.1) + rng.normal(0, 0.02) * along
        lines.append(np.stack([along, across], axis=1))
    angle = rng.uniform(0, np.pi)
    points = _fit(_rotate(np.concatenate(lines), angle), size - width).reshape(count, -1, 2)
    middle = (steps[:-1] + steps[1:]) / 2
    taper = 0.55 + 0.45 * np.sin(np.pi * middle)
    mask = _strokes([(line, width * taper * rng.uniform(0.7, 1.0)) for line in points], side)
    bright = rng.random() < (0.65 if surface.mean() < 190 else 0.2)
    flank = np.clip(_shift(mask, light_xy * (-0.8 * width)) - mask, 0, 1)
    core = 250.0 if bright else 0.15 * surface
    edge = 0.6 * surface if bright else surface + 45
    return surface + mask[..., None] * (core - surface) + 0.5 * flank[..., None] * (edge - surface)


def _jagged(rng: np.random.Generator, start: Points, end: Points, roughness: float, levels: int) -> Points:
    """Midpoint displacement: a fractal polyline [2**levels + 1, 2] from start to end."""
    points = np.stack([start, end])
    for _ in range(levels):
        steps = np.diff(points, axis=0)
        normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1)
        offsets = rng.uniform(-roughness, roughness, (len(steps), 1))
        middles = (points[:-1] + points[1:]) / 2 + offsets * normals
        merged = np.empty((len(points) + len(middles), 2))
        merged[::2], merged[1::2] = points, middles
        points = merged
    return points


def draw_crack(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """ROTURA: a jagged dark fracture that gapes in the middle and branches, with a lit lip."""
    side = surface.shape[0]
    trunk = _jagged(rng, np.array([0.0, 0.0]), np.array([1.0, 0.0]), 0.38, 4)
    lines = [trunk]
    for _ in range(1 if size < 12 * unit else int(rng.integers(2, 5))):
        root = int(rng.integers(3, len(trunk) - 3))
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.2)
        reach = rng.uniform(0.25, 0.5)
        tip = trunk[root] + reach * np.array([math.cos(turn), math.sin(turn)])
        lines.append(_jagged(rng, trunk[root], tip, 0.35, 3))
    gape = rng.uniform(0.05, 0.09) * size + 1.2 * unit
    fitted = _fit(_rotate(np.concatenate(lines), rng.uniform(0, np.pi)), size - 0.4 * gape)
    points = np.split(fitted, np.cumsum([len(line) for line in lines])[:-1])
    strokes = []
    for k, line in enumerate(points):
        t = (np.arange(len(line) - 1) + 0.5) / (len(line) - 1)
        profile = np.sin(np.pi * t) ** 0.8 if k == 0 else 0.6 * (1 - t)
        widths = gape * (0.25 + 0.75 * profile) * rng.uniform(0.75, 1.25, len(t))
        strokes.append((line, widths))
    mask = _strokes(strokes, side)
    lip = np.clip(_shift(mask, light_xy * (-0.35 * gape - 0.4 * unit)) - mask, 0, 1)
    return (
        surface + mask[..., None] * (0.06 * surface - surface) + 0.5 * lip[..., None] * (60 + 0.1 * surface)
    )


def draw_dent(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """DEFORMACIONES: a smooth dimple or bump: one side lit, the other in shade, with a highlight."""
    side = surface.shape[0]
    outline = _fit(_outline(rng, 0.05, 2, rng.uniform(0.6, 1.0)), size)
    x, y = _grid(side)
    angles = np.arctan2(outline[:, 1], outline[:, 0])
    order = np.argsort(angles)
    radius = np.interp(np.arctan2(y, x), angles[order], np.hypot(*outline.T)[order], period=2 * np.pi)
    distance = np.hypot(x, y) / radius
    height = np.clip(1 - distance**2, 0, None) ** 1.5
    slope_y, slope_x = np.gradient(height * (size / 2))
    sign = rng.choice([-1.0, 1.0])
    shade = -sign * (slope_x * light_xy[0] + slope_y * light_xy[1])
    # The slope that faces the light carries the highlight: the near one of a bump, the far one of a dimple.
    spot_x, spot_y = sign * 0.22 * size * light_xy
    spread = rng.uniform(0.07, 0.11) * size
    spot = np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (2 * spread**2)) * (distance < 1)
    return _f32(surface * (1 + 0.55 * shade)[..., None] + rng.uniform(25, 70) * spot[..., None])


def _stain_mask(rng: np.random.Generator, side: int, size: float, unit: float) -> Array:
    kind = (
        "blotch" if size < 14 * unit else rng.choice(["blotch", "splash", "particles"], p=[0.45, 0.3, 0.25])
    )
    if kind == "blotch":
        return _fill([_fit(_outline(rng, 0.2, 7, rng.uniform(0.6, 1.0)), size)], side)
    pieces = []
    if kind == "splash":
        pieces.append(_outline(rng, 0.22, 8, rng.uniform(0.7, 1.0)))
        for _ in range(int(rng.integers(6, 13))):
            angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(1.1, 1.8)
            centre = reach * np.array([math.cos(angle), math.sin(angle)])
            pieces.append(centre + rng.uniform(0.08, 0.22) * _outline(rng, 0.05, 2, 0.9))
    else:
        for _ in range(int(rng.integers(10, 22))):
            centre = rng.normal(0, 1, 2) * (1.0, 0.8)
            pieces.append(centre + rng.uniform(0.12, 0.4) * _outline(rng, 0.25, 6, rng.uniform(0.6, 1.0)))
    fitted = _fit(np.concatenate(pieces), size)
    return _fill(np.split(fitted, len(pieces)), side)


def draw_stain(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """CONTAMINACION: a blotch, a splash with droplets or scattered particles of another colour."""
    side = surface.shape[0]
    mask = _stain_mask(rng, side, size, unit)
    distance = np.abs(np.array(STAINS, np.float32) - surface.mean((0, 1))).max(1)
    candidates = np.flatnonzero(distance > 70)
    colour = np.array(STAINS[rng.choice(candidates)], np.float32)
    mottle = np.clip(1 + 0.12 * _noise(rng, side, max(0.08 * size, 1.0)), 0.6, 1.3)
    # Liquid dries from the edge inwards and leaves a stronger border.
    border = np.clip(mask - _blur(mask, max(0.06 * size, 0.6)), 0, 1)
    alpha = np.clip(mask * rng.uniform(0.7, 0.9) * mottle + 0.5 * border, 0, 1) * (mask > 0)
    return surface + alpha[..., None] * (colour - surface)


DEFECTS: dict[DefectName, Defect] = {
    "PERFORACIONES": draw_hole,
    "RAYONES": draw_scratch,
    "ROTURA": draw_crack,
    "DEFORMACIONES": draw_dent,
    "CONTAMINACION": draw_stain,
}
