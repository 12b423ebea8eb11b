"""What is done with the detections of one image."""

import numpy as np

from deploy.found import Found
from deploy.pipeline import make_frame, predict_frames
from tests.deploy.test_tiling import PaintDetector, paint


def iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def test_repeats_are_what_a_slow_loop_says() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (200, 2))], axis=1)
    found = Found(np.sort(rng.uniform(0, 1, 200))[::-1].copy(), rng.integers(0, 3, 200), boxes)
    kept: list[int] = []
    for row, (label, box) in enumerate(zip(found.labels.tolist(), boxes.tolist(), strict=True)):
        if not any(found.labels[other] == label and iou(boxes[other].tolist(), box) > 0.4 for other in kept):
            kept.append(row)
    result = found.without_repeats(0.4)
    assert 3 < len(kept) < 150 and np.array_equal(result.boxes_xyxy, boxes[kept])
    assert np.array_equal(result.labels, found.labels[kept]) and np.array_equal(result.scores, found.scores[kept])
    assert len(Found.empty().without_repeats(0.5)) == 0


def test_repeats_go_where_asked_for() -> None:
    """The second object is painted over all of the first but its left column: their boxes overlap by 0.9."""
    pixels = paint((40, 30), [(1, (10, 10, 20, 20)), (1, (11, 10, 20, 20))])
    detector = PaintDetector()
    pixels[10:20, 19, 0] = 0  # and the first one shows again on the right
    for nms_iou, expected in ((None, 2), (0.7, 1)):
        frames = [make_frame("image", pixels, detector, None)]
        ((_, found),) = predict_frames(frames, detector, np.zeros(3), 1, nms_iou)
        assert len(found) == expected
