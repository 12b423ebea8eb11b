"""What is legible in a panel."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.style import BoxNames, figure_style
from attention.capture import PredictedObject
from attention.maps import SamplingPoints
from attention.panels import Scene, draw_truth_and_objects, show_image, window_of
from texts import texts_of

PANEL_INCHES = 1.35
"""Of four panels in a row on 16 cm."""


@pytest.mark.parametrize("size_hw", [(200, 200), (90, 300), (1600, 1000), (1000, 500)])
def test_names_lie_in_the_picture_and_not_on_each_other(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    corners = np.array([[0, 0, 0.9, 1], [0.02, 0.01, 0.9, 1], [0.5, 0, 1, 0.1]], np.float32)
    boxes = corners * np.array([width, height, width, height], np.float32)
    truth, names = list(zip(boxes, (0, 0, 1), strict=True)), ("DEFORMACIONES", "scratches")
    picture = np.zeros((height, width, 3), np.uint8)
    scene = Scene(picture, (width, height), truth, names, texts_of("es", "attention"))
    objects = [
        PredictedObject(0, 0, 0.9, (0.0, 0.0, 0.9, 1.0)),
        PredictedObject(1, 1, 0.8, (0.0, 0.01, 0.9, 1.0)),
        PredictedObject(2, 1, 0.7, (0.6, 0.8, 1.1, 1.0)),
    ]
    with figure_style():
        tall = min(height / width, 1.6)
        figure = Figure(figsize=(PANEL_INCHES, PANEL_INCHES * tall))
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        show_image(axes, scene)
        draw_truth_and_objects(axes, scene, objects)
        canvas.draw()
        (names,) = [artist for artist in axes.artists if isinstance(artist, BoxNames)]
        assert all(text.get_visible() for text in names.texts)
        areas = [text.get_window_extent() for text in names.texts]
        assert len(areas) == 6
        for place, area in enumerate(areas):
            assert area.x0 >= -1 and area.x1 <= axes.bbox.x1 + 1, names.texts[place]
            for other in areas[place + 1 :]:
                assert not area.overlaps(other), (area, other)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.4, 0.3, 0.5, 0.8), (0.2775, 0.2625, 0.6225, 0.8375)),
        ((0.0, 0.0, 0.02, 0.02), (0, 0, 0.2, 0.2)),
        ((0.0, 0.0, 1.1, 1.0), (0, 0, 1, 1)),
    ],
)
def test_the_window_holds_the_box_with_some_surroundings(
    box: tuple[float, float, float, float], expected: tuple[float, ...]
) -> None:
    inside = np.array([[0.5 * (box[0] + box[2]), 0.5 * (box[1] + box[3])]], np.float32)
    points = SamplingPoints(inside, np.ones(1, np.float32), np.zeros(1, np.int64), np.zeros(2, np.float32))
    assert window_of([points], box) == pytest.approx(expected)
