"""Obey a decision.json: a verdict for every image, and a warning where images are unlike those of validation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.types import PixelArray
from engine.calibration import Calibration
from engine.decision import (
    LEAST_IMAGES,
    Decision,
    Traits,
    Verdict,
    promise_text,
    read_decision,
    settings_of,
    shift,
)
from engine.detector import Detector
from engine.metrics import unique_names
from engine.results import evaluation_of, tiling_text
from models.detections import SCORE_DECIMALS, Detections
from texts import Texts, texts_of

log = logging.getLogger(__name__)


class Judge:
    """Applies one decision and remembers what it saw."""

    def __init__(self, decision: Decision, detector: Detector) -> None:
        self.decision, self._detector = decision, detector
        self.verdicts: Counter[Verdict] = Counter()
        self._seen = Traits()

    def __call__(self, found: Detections, pixels: PixelArray) -> tuple[Verdict, float]:
        """Judge an image, uint8 [H, W, 3], by all of its detections."""
        defects = found.scores[found.labels != self._detector.classes.normal_label]
        score = float(defects.max(initial=0.0).round(SCORE_DECIMALS))
        self._seen.add(score, self._detector.prepare(pixels))
        verdict = self.decision.verdict(score)
        if verdict == "pass" and not found.is_whole:
            verdict = "look"  # what was not finite may have been a defect
        self.verdicts[verdict] += 1
        return verdict, score

    def lines(self, texts: Texts) -> Iterator[str]:
        """Say the promise, the verdicts, and whether the promise may not hold for these images."""
        made = self.decision  # its own words are in the evaluation's language
        aim = {"max_miss_rate": made.max_miss_rate, "confidence": made.confidence, "promise_per_class": made.per_class}
        words = texts_of(texts.language, "acceptance")
        passes = words("passes_below", threshold=texts.number(made.pass_below))
        yield f"{promise_text(aim, words)} {passes}"
        yield texts("verdicts", **{word: self.verdicts[word] for word in ("pass", "look", "reject")})
        found = shift(self.decision.validation, self._seen)
        if found is None:
            yield texts("few_to_compare", count=LEAST_IMAGES)
            return
        if not found.suspects:
            yield texts("same_kind", p=texts.number(min(found.p_values.values()), 3))
            return
        parts = []
        for name in found.suspects:
            before, now = (texts.number(value, 3) for value in found.medians[name])
            p = found.p_values[name]
            less = "< " if p < 0.0005 else ""
            values = {"before": before, "now": now, "p": f"{less}{texts.number(max(p, 0.001), 3)}"}
            parts.append(texts("differs", trait=texts[f"trait_{name}"], **values))
        warning = texts("other_kind", differences="; ".join(parts))
        log.warning("%s", warning)
        yield warning


def judge_of(path: Path, detector: Detector, options: Any, *, videos: bool) -> Judge:
    """Read a decision and check that it is about this detector and that none of the `PredictOptions` contradicts it.

    Raises:
        UserError: The file is damaged, of another checkpoint, or options say something else; all at once.
    """
    decision = read_decision(path)
    names, size = unique_names(detector.classes), "{} x {}".format
    problems = []
    if decision.checkpoint_sha256 != detector.sha256:
        problems.append(
            f"it was made for {decision.checkpoint} with sha256 {decision.checkpoint_sha256[:12]}..., but "
            f"{detector.path} has {detector.sha256[:12]}...; other weights keep no promise"
        )
    if decision.classes != names:
        problems.append(f"its classes are {', '.join(decision.classes)}; the checkpoint's are {', '.join(names)}")
    if decision.input_size_hw != detector.input_size_hw:
        problems.append(f"its images have {size(*decision.input_size_hw)} px, here {size(*detector.input_size_hw)}")
    if detector.tile != decision.tile:
        problems.append(f"--tile: it was made with {tiling_text(decision.tile)}, here are {tiling_text(detector.tile)}")
    now = settings_of(detector)
    problems += [
        f"{key}: it was made with {decision.settings.get(key)}, here is {now.get(key)} (-c or -u)"
        for key in dict.fromkeys([*decision.settings, *now])
        if decision.settings.get(key) != now.get(key)
    ]
    if options.use_amp != decision.use_amp:
        problems.append(f"it was made with{'' if decision.use_amp else 'out'} --use-amp; predict so, too")
    if options.nms not in ("auto", decision.nms_iou):
        own = "none" if decision.nms_iou is None else f"{decision.nms_iou:g}"
        problems.append(f"--nms {'none' if options.nms is None else options.nms}: it was made with --nms {own}")
    given = {"--score": options.score is not None, "--score-per-class": bool(options.score_per_class)}
    given |= {"--calibrate": options.calibrate}
    problems += [
        f"{name}: the decision has its own threshold, of whole images; leave it out" for name in given if given[name]
    ]
    if videos:
        problems.append("it judges images; look at videos and cameras without --decision")
    if problems:
        raise UserError(f"--decision {path} cannot be obeyed:", problems)
    return Judge(decision, detector)


def stored_calibration(detector: Detector, *, required: bool = False) -> Calibration | None:
    """Return the curves of the checkpoint's evaluation on its own validation data; None where there are none.

    Raises:
        UserError: They are damaged, or missing though `required` by --calibrate.
    """
    found, again = evaluation_of(detector, "calibration"), calibrating_command(detector)
    curves = None if found is None else found[1]["calibration"].get("curves")
    if found is None or not isinstance(curves, dict):
        if required:
            made = f"no evaluation of {detector.path} with calibration was found; make one: {again}"
            raise UserError(f"--calibrate: {made}")
        return None
    try:
        return Calibration.from_json(curves, unique_names(detector.classes))
    except ValueError as error:
        raise UserError(f"{found[0]}: its calibration is damaged ({error}); make it again: {again}") from error


def calibrating_command(detector: Detector) -> str:
    """What to type for an evaluation with curves."""
    return f"python evaluate_deimv2.py -r {detector.path} --calibrate isotonic"
