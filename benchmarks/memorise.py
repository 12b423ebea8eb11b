"""Can the real DEIMv2-S learn at all? Memorises 16 NEU-DET training images at 320 pixels, through the command line.

`NEU_DET_ROOT=... python benchmarks/memorise.py`. Aim: AP50 >= 0.9 on those images;
docs/results.md says what was reached.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ANNOTATIONS = ROOT / "datasets" / "neu16" / "instances_train.json"
EVERY_NTH_IMAGE = 90  # 16 of 1,440 images, of all six classes


def main() -> int:
    root = os.environ.get("NEU_DET_ROOT")
    if not root:
        sys.stderr.write("error: set NEU_DET_ROOT to NEU-DET's folder (images/ and annotations/ in it)\n")
        return 2
    content = json.loads(Path(root, "annotations", "instances_train.json").read_text(encoding="utf-8"))
    content["images"] = content["images"][::EVERY_NTH_IMAGE]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    ANNOTATIONS.parent.mkdir(parents=True, exist_ok=True)
    ANNOTATIONS.write_text(json.dumps(content), encoding="utf-8")
    train = [sys.executable, "train_deimv2.py", "-c", "benchmarks/memorise.yml", "--seed", "0", *sys.argv[1:]]
    return subprocess.run(train, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
