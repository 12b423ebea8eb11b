"""What is done with the detections of one image."""

import numpy as np

from models.detections import Detections


def iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def test_repeats_are_what_a_slow_loop_says() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (200, 2))], axis=1)
    found = Detections(boxes, np.sort(rng.uniform(0, 1, 200))[::-1].copy(), rng.integers(0, 3, 200))
    kept: list[int] = []
    for row, (label, box) in enumerate(zip(found.labels.tolist(), boxes.tolist(), strict=True)):
        if not any(found.labels[other] == label and iou(boxes[other].tolist(), box) > 0.4 for other in kept):
            kept.append(row)
    result = found.without_repeats(0.4)
    assert 3 < len(kept) < 150 and np.array_equal(result.boxes_xyxy, boxes[kept])
    assert np.array_equal(result.labels, found.labels[kept]) and np.array_equal(result.scores, found.scores[kept])
    assert len(Detections.empty().without_repeats(0.5)) == 0


def test_what_a_class_asks_for_and_where_an_image_ends() -> None:
    boxes = np.array([[-5.0, 0, 20, 50], [0, 0, 10, 9], [-8, 3, 0, 9], [2, 3, 8, 9]])
    found = Detections(boxes, np.array([0.9, 0.5, 0.4999999996, 0.4]), np.array([1, 0, 0, 1]))
    assert found.above(np.array([0.5, 0.6])).boxes_xyxy.tolist() == boxes[:3].tolist(), "scores have nine decimals"
    assert found.clipped((15, 30)).boxes_xyxy.tolist() == [[0, 0, 15, 30], [0, 0, 10, 9], [2, 3, 8, 9]]
    joined = Detections.joined([found.rows(slice(1)), Detections.empty(), found.rows(np.array([3]))])
    assert joined.scores.tolist() == [0.9, 0.4] and joined.labels.dtype == np.int64
    assert len(Detections.joined([])) == 0
