"""The guide's own example of a new augmentation, put where the guide says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/guide/data.md", "docs/guide/es/data.md")
USED = """
import json, pickle
import numpy as np
from data.config import CollateConfig, TransformsConfig
from data.scene import draw, scene_of
from data.schedule import describe, epoch_plan
from data.transforms import TrainTransform
from tests.support.sources import ArraySource

ops = [OP, {"type": "Resize", "size": [64, 64]}]
config = pickle.loads(pickle.dumps(TransformsConfig.model_validate({"ops": ops})))  # as it goes to a data worker
plan = epoch_plan(config, CollateConfig(), 0)
pixels = np.zeros((64, 64, 3), np.uint8)
pixels[20:40, 24:44] = 255
whole = scene_of(ArraySource(pixels), [[24, 20, 44, 40]], [3])
image, drawn = draw(TrainTransform(config)(whole, plan, np.random.default_rng(0), mosaic=False))
rows, columns = np.nonzero(image[..., 0])
found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
try:
    TransformsConfig.model_validate({"ops": [{**OP, "share": 2}]})
    refused = ""
except ValueError as error:
    refused = str(error)
print(json.dumps([drawn.boxes_xyxy[0].tolist(), [float(x) for x in found], describe(config, plan), refused]))
"""


def test_the_guides_augmentation(tmp_path: Path) -> None:
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    function, spanish = (re.search(r"```py\n(.*?)```", text, re.DOTALL) for text in texts)
    line, same = (re.search(r'`("\w+": \w+,)`', text) for text in texts)
    assert function and line and function[1].count("\n") < 15
    assert spanish and same and (spanish[1], same[1]) == (function[1], line[1])
    for folder in ("data", "texts", "tests/support"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "data" / "augmentations.py"
    source = module.read_text(encoding="utf-8")
    before, table = source.split("\nAUGMENTATIONS: ")
    head, rest = table.split("\n}\n")
    module.write_text(f"{before}\n{function[1]}\n\nAUGMENTATIONS: {head}\n    {line[1]}\n}}\n{rest}", encoding="utf-8")
    op = '{"type": "RandomShift", "share": 0.2, "p": 1.0}'
    command = [sys.executable, "-c", USED.replace("OP", op)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert not done.returncode, done.stderr
    planned, seen, described, refused = json.loads(done.stdout)
    assert planned != [24, 20, 44, 40] and planned == pytest.approx(seen, abs=1)
    assert described == "Shift" and "share" in refused and "less than or equal to 1" in refused
