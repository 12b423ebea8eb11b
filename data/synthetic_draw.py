"""Draws surfaces and surface defects; pure functions of a random generator.

Legend: N image side, S patch side in pixels. Images are float32 RGB in 0..255, masks float32 in 0..1.
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

from data.config import DefectName, TextureName
from data.types import FloatArray

Array = npt.NDArray[np.float32]
Points = FloatArray
Surface = Callable[[np.random.Generator, int, Array], Array]
Defect = Callable[[np.random.Generator, Array, float, Array, float], Array]

_SUPERSAMPLING = 4

METALS = (
    (178, 180, 184), (150, 154, 160), (196, 198, 198), (182, 160, 108), (176, 128, 100), (124, 128, 134),
)  # fmt: skip
CAST_METALS = ((128, 128, 130), (150, 150, 148), (112, 114, 120), (142, 132, 122))
PLASTICS = (
    (214, 214, 210), (180, 182, 184), (204, 188, 156), (76, 112, 172),
    (88, 140, 108), (172, 80, 74), (208, 178, 84), (104, 106, 112),
)  # fmt: skip
PAINTS = (
    (190, 62, 56), (58, 96, 178), (64, 132, 88), (214, 178, 62),
    (216, 216, 212), (212, 122, 54), (166, 170, 176), (76, 146, 154),
)  # fmt: skip
STAINS = (
    (122, 64, 24), (52, 38, 20), (66, 112, 44), (240, 238, 228),
    (34, 58, 150), (160, 34, 60), (206, 172, 52), (118, 44, 128),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- noise


def _f32(image: Any) -> Array:
    """float32: OpenCV's functions promise less than they return, and NumPy scalars widen what they meet."""
    return np.asarray(image, dtype=np.float32)


def _unit_std(field: Array) -> Array:
    return _f32((field - field.mean()) / (field.std() + 1e-6))


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


def _streaks(rng: np.random.Generator, side: int, angle_deg: float, length_px: float, width_px: float) -> Array:
    """[side, side], unit standard deviation, correlated over `length_px` along and `width_px` across."""
    rows = math.ceil(1.5 * side)
    # Along the streaks a third of their length is sampled finely enough.
    columns = math.ceil(rows / (length_px / 3)) + 2
    field = rng.standard_normal((rows, columns), dtype=np.float32)
    field = _f32(cv2.GaussianBlur(field, (0, 0), sigmaX=3.0, sigmaY=width_px))
    field = _unit_std(_f32(cv2.resize(field, (rows, rows), interpolation=cv2.INTER_CUBIC)))
    matrix = cv2.getRotationMatrix2D((rows / 2, rows / 2), angle_deg, 1.0)
    matrix = np.asarray(matrix, dtype=np.float64) - [[0, 0, (rows - side) / 2]]
    turned = cv2.warpAffine(field, matrix, (side, side), borderMode=cv2.BORDER_REFLECT)
    return _f32(turned)


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
    return _f32(1 + rng.uniform(0.03, 0.06) * fine + 0.02 * coarse)


def rolled_metal(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit, angle = side / 160, _grain_angle(rng)
    bands = _streaks(rng, side, angle, 60 * unit, 7 * unit)
    marks = _streaks(rng, side, angle, 10 * unit, 1.0 * unit)
    return _f32(1 + rng.uniform(0.03, 0.06) * bands + 0.015 * marks + 0.012 * _noise(rng, side, 0.6 * unit))


def cast_metal(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    height = _noise(rng, side, 1.0 * unit) + 1.5 * _noise(rng, side, 2.5 * unit)
    return _f32(1 + rng.uniform(0.04, 0.08) * _relief(height, light_xy) + 0.03 * _noise(rng, side, 14 * unit))


def matte_plastic(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    return _f32(1 + rng.uniform(0.006, 0.02) * _noise(rng, side, 0.6 * unit) + 0.01 * _noise(rng, side, 20 * unit))


def speckled_plastic(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    specks = np.zeros((side, side), np.float32)
    count = int(rng.integers(300, 800))
    rows, columns = rng.integers(0, side, (2, count))
    specks[rows, columns] = rng.choice([-1.0, 1.0], count, p=[0.65, 0.35]) * rng.uniform(0.4, 1.0, count)
    specks = _blur(specks, 0.55 * unit)
    return _f32(1 + rng.uniform(0.15, 0.3) * specks / (np.abs(specks).max() + 1e-6) + 0.008 * _noise(rng, side))


def grained_plastic(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    white = _noise(rng, side)
    height = _unit_std(_blur(white, 1.1 * unit)) - _unit_std(_blur(white, 2.4 * unit))
    return _f32(1 + rng.uniform(0.03, 0.06) * _relief(height, light_xy))


def orange_peel_paint(rng: np.random.Generator, side: int, light_xy: Array) -> Array:
    unit = side / 160
    shade = _relief(_noise(rng, side, rng.uniform(2.0, 3.5) * unit), light_xy)
    return _f32(1 + rng.uniform(0.02, 0.04) * (shade + 0.35 * np.maximum(shade, 0) ** 2))


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
    """Return gradient + vignette + spot highlight, [N, N]: mean 1, max - min = `brightness_range`."""
    axis = np.linspace(-1, 1, 40, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    gradient = x * light_xy[0] + y * light_xy[1]
    vignette = -(x**2 + y**2)
    spot_x, spot_y = rng.uniform(-0.8, 0.8, 2)
    spot = np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (2 * rng.uniform(0.35, 0.6) ** 2))
    weights = rng.dirichlet((1.0, 1.0, 1.0))
    field = weights[0] * gradient + weights[1] * vignette + weights[2] * 2 * spot
    field = 1 + brightness_range * (field - field.mean()) / (np.ptp(field) + 1e-6)
    return _f32(cv2.resize(field.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR))


def clean_surface(
    rng: np.random.Generator, texture: TextureName, side: int, light_xy: Array, brightness_range: float
) -> Array:
    """Draw a defect-free surface under uneven light, [N, N, 3]."""
    draw, colours = SURFACES[texture]
    colour = np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.9, 1.08)
    tint = 2 if texture.endswith("metal") else 8
    colour = np.clip(colour + rng.uniform(-tint, tint, 3), 40, 208).astype(np.float32)
    brightness = draw(rng, side, light_xy) * uneven_light(rng, side, light_xy, brightness_range)
    channels = [brightness * float(value) for value in colour]
    return np.clip(_f32(cv2.merge(channels)), 0, 255)


# -------------------------------------------------------------------------------------------- shapes


def _fit(points: Points, size: float) -> Points:
    """Centres points on their box and scales them so that its longer side is `size`."""
    low, high = points.min(0), points.max(0)
    return np.asarray((points - (low + high) / 2) * (size / max(float((high - low).max()), 1e-6)))


def _rotate(points: Points, angle: float) -> Points:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.asarray(points @ np.array([[cosine, sine], [-sine, cosine]]))


def _outline(rng: np.random.Generator, wobble: float, harmonics: int, aspect: float) -> Points:
    """A closed curve [96, 2] around the origin: an ellipse with harmonics of relative size `wobble`."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = np.ones_like(angle)
    for k in range(2, 2 + harmonics):
        radius += wobble * rng.normal() / math.sqrt(k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.35)
    points = np.stack([radius * np.cos(angle), aspect * radius * np.sin(angle)], axis=1)
    return _rotate(points, rng.uniform(0, np.pi))


def _paint(polygons: Sequence[Points], lines: Sequence[tuple[Points, Points]], side: int) -> Array:
    """Antialiased union of polygons [K, 2] and polylines ([K, 2], widths [K - 1]) as coverage [side, side].

    Coordinates and widths are pixels, the origin is the patch centre.
    """
    canvas = np.zeros((side * _SUPERSAMPLING, side * _SUPERSAMPLING), np.uint8)

    def fixed_point(points: Points) -> npt.NDArray[np.int32]:
        return np.round(((points + side / 2) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)

    for polygon in polygons:
        cv2.fillPoly(canvas, [fixed_point(polygon)], 255, shift=4)
    for points, widths in lines:
        ends = fixed_point(points).tolist()
        thickness = np.maximum(np.round(widths * _SUPERSAMPLING), 1).astype(int).tolist()
        for start, end, width in zip(ends[:-1], ends[1:], thickness, strict=True):
            cv2.line(canvas, start, end, 255, width, shift=4)
    return _f32(cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)) / np.float32(255)


def _over(surface: Array, mask: Array, colour: Array | float) -> Array:
    """Lays a colour ([S, S, 3], [3] or a grey level) over the surface with opacity `mask` [S, S]."""
    return _f32(surface + mask[..., None] * (colour - surface))


def _shift(mask: Array, offset_xy: Array) -> Array:
    matrix = np.array([[1, 0, offset_xy[0]], [0, 1, offset_xy[1]]], np.float32)
    return _f32(cv2.warpAffine(mask, matrix, mask.shape[::-1]))


def _grid(side: int) -> tuple[Array, Array]:
    """Pixel centres around the patch centre: x [1, side], y [side, 1]."""
    axis = np.arange(side, dtype=np.float32) + 0.5 - side / 2
    return axis[None, :], axis[:, None]


# ------------------------------------------------------------------------------------------- defects
# Each takes a clean patch [S, S, 3], the longer side of the defect in pixels, the unit vector towards the
# light and `unit`, and returns the patch with the defect in its middle at natural strength.


def draw_hole(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """Draw PERFORACIONES: a dark round opening with a lit far wall and a bevelled rim."""
    side = surface.shape[0]
    rim = min(max(0.8 * unit, 0.07 * size), 0.2 * size)
    outline = _outline(rng, 0.04, 3, rng.uniform(0.6, 1.0))
    outer = _paint([_fit(outline, size)], [], side)
    opening = _paint([_fit(outline, size - 2 * rim)], [], side)
    ring = np.clip(outer - opening, 0, 1)
    # Outward direction of the contour, from a blurred mask; the bevel away from the light faces it.
    fall_y, fall_x = np.gradient(-_blur(outer, max(0.15 * size, 1.0)))
    facing = (fall_x * light_xy[0] + fall_y * light_xy[1]) / (np.hypot(fall_x, fall_y) + 1e-6)
    wall = opening * (1 - _shift(opening, light_xy * (0.16 * size)))
    inside = surface * (0.08 + 0.5 * wall)[..., None]
    bevel = surface * (1 - 0.45 * facing)[..., None] + 50 * np.maximum(-facing, 0)[..., None]
    return _over(_over(surface, ring, bevel), opening, inside)


def draw_scratch(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """Draw RAYONES: one to four thin lines, nearly straight and parallel, bright or dark, with a flank."""
    side = surface.shape[0]
    count = 1 if size < 18 * unit else int(rng.choice([1, 2, 3, 4], p=[0.5, 0.2, 0.2, 0.1]))
    width = rng.uniform(0.9, 1.3) * unit + 0.012 * size
    steps = np.linspace(0, 1, 13)
    bend = rng.normal(0, 0.025)
    lines = []
    for k in range(count):
        start, end = (0.0, 1.0) if k == 0 else (rng.uniform(0, 0.35), rng.uniform(0.65, 1.0))
        along = start + (end - start) * steps
        across = 4 * bend * along * (1 - along) + k * rng.uniform(0.05, 0.1) + rng.normal(0, 0.02) * along
        lines.append(np.stack([along, across], axis=1))
    angle = rng.uniform(0, np.pi)
    points = _fit(_rotate(np.concatenate(lines), angle), size - width).reshape(count, -1, 2)
    middle = (steps[:-1] + steps[1:]) / 2
    taper = 0.7 + 0.3 * np.sin(np.pi * middle)
    mask = _paint([], [(line, width * taper * rng.uniform(0.7, 1.0)) for line in points], side)
    # A scratch bares what lies under a dark surface, bright; only on light ones it mostly shows as a dark groove.
    bright = rng.random() < (0.85 if surface.mean() < 190 else 0.2)
    flank = np.clip(_shift(mask, light_xy * (-0.8 * width)) - mask, 0, 1)
    core, edge = (250.0, 0.8 * surface) if bright else (0.15 * surface, surface + 22)
    return _over(_over(surface, flank, edge), mask, core)


def _jagged(rng: np.random.Generator, start: Points, end: Points, levels: int) -> Points:
    """Midpoint displacement: a fractal polyline [2**levels + 1, 2], rougher in the small."""
    points = np.stack([start, end])
    for level in range(levels):
        roughness = 0.16 + 0.07 * level
        steps = np.diff(points, axis=0)
        normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1)
        offsets = rng.uniform(-roughness, roughness, (len(steps), 1))
        merged = np.empty((2 * len(points) - 1, 2))
        merged[::2], merged[1::2] = points, (points[:-1] + points[1:]) / 2 + offsets * normals
        points = merged
    return points


def _gap(rng: np.random.Generator, line: Points, widths: Points) -> Points:
    """The polygon of a fracture along `line` [K, 2] whose two ragged edges are about `widths` [K] apart."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.hypot(tangent[:, :1], tangent[:, 1:]) + 1e-6
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    edges = [side * 0.5 * widths * rng.uniform(0.6, 1.4, len(line)) for side in (1, -1)]
    return np.concatenate([line + edges[0][:, None] * normal, (line + edges[1][:, None] * normal)[::-1]])


def draw_crack(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """Draw ROTURA: a jagged dark fracture that gapes in the middle and branches, with a lit lip."""
    side = surface.shape[0]
    trunk = _jagged(rng, np.array([0.0, 0.0]), np.array([1.0, 0.0]), 4)
    lines = [trunk]
    for _ in range(2 if size < 16 * unit else int(rng.integers(3, 6))):
        root = int(rng.integers(2, len(trunk) - 2))
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.2)
        reach = rng.uniform(0.2, 0.5)
        tip = trunk[root] + reach * np.array([math.cos(turn), math.sin(turn)])
        lines.append(_jagged(rng, trunk[root], tip, 3))
    gape = rng.uniform(0.04, 0.08) * size + 0.8 * unit
    hair = 0.9 * unit
    fitted = _fit(_rotate(np.concatenate(lines), rng.uniform(0, np.pi)), size - hair)
    points = np.split(fitted, np.cumsum([len(line) for line in lines])[:-1])
    gaps = []
    for k, line in enumerate(points):
        t = np.linspace(0, 1, len(line))
        gaps.append(_gap(rng, line, gape * (np.sin(np.pi * t) ** 0.7 if k == 0 else 0.6 * (1 - t))))
    mask = _paint(gaps, [(line, np.full(len(line) - 1, hair)) for line in points], side)
    lip = np.clip(_shift(mask, light_xy * (-0.3 * gape - 0.4 * unit)) - mask, 0, 1)
    return _over(_over(surface, lip, 1.05 * surface + 30), mask, 0.06 * surface)


def draw_dent(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """Draw DEFORMACIONES: a smooth dimple or bump: one side lit, the other in shade, with a highlight."""
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
    kinds = ["blotch"] if size < 14 * unit else ["blotch", "blotch", "splash", "particles"]
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "blotch":
        return _paint([_fit(_outline(rng, 0.13, 9, rng.uniform(0.6, 1.0)), size)], [], side)
    pieces = []
    if kind == "splash":
        pieces.append(_outline(rng, 0.16, 9, rng.uniform(0.7, 1.0)))
        for _ in range(int(rng.integers(6, 13))):
            angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(1.1, 1.8)
            centre = reach * np.array([math.cos(angle), math.sin(angle)])
            pieces.append(centre + rng.uniform(0.08, 0.22) * _outline(rng, 0.05, 2, 0.9))
    else:
        for _ in range(int(rng.integers(10, 22))):
            centre = rng.normal(0, 1, 2) * (1.0, 0.8)
            pieces.append(centre + rng.uniform(0.12, 0.4) * _outline(rng, 0.25, 6, rng.uniform(0.6, 1.0)))
    fitted = _fit(np.concatenate(pieces), size)
    return _paint(np.split(fitted, len(pieces)), [], side)


def draw_stain(rng: np.random.Generator, surface: Array, size: float, light_xy: Array, unit: float) -> Array:
    """Draw CONTAMINACION: a blotch, a splash with droplets or scattered particles of another colour."""
    side = surface.shape[0]
    mask = _stain_mask(rng, side, size, unit)
    distance = np.abs(np.array(STAINS, np.float32) - surface.mean((0, 1))).max(1)
    candidates = np.flatnonzero(distance > 70)
    colour = np.array(STAINS[rng.choice(candidates)], np.float32)
    mottle = np.clip(1 + 0.12 * _noise(rng, side, max(0.08 * size, 1.0)), 0.6, 1.3)
    # Liquid dries from the edge inwards and leaves a stronger border.
    border = np.clip(mask - _blur(mask, max(0.06 * size, 0.6)), 0, 1)
    alpha = np.clip(mask * rng.uniform(0.7, 0.9) * mottle + 0.5 * border, 0, 1) * (mask > 0)
    return _over(surface, alpha, colour)


DEFECTS: dict[DefectName, Defect] = {
    "PERFORACIONES": draw_hole,
    "RAYONES": draw_scratch,
    "ROTURA": draw_crack,
    "DEFORMACIONES": draw_dent,
    "CONTAMINACION": draw_stain,
}
