"""`docs/quickstart.ipynb` runs from top to bottom: its cells call the scripts that a user types."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.support.tiny_run import ROOT, script_environment

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
TINY = "synthetic.num_train=12 synthetic.num_val=6 epoches=1 flat_epoch=0 DEIMTransformer.num_queries=20"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For what the notebook writes. Jupyter's own files do not go to the user's home, nor are settings read there."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        (tmp_path / "jupyter" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "jupyter" / name))
    written = tmp_path / "a folder"
    written.mkdir()
    return written


def execute(folder: Path, *, updates: str, cell_timeout_s: int) -> Any:
    """The notebook after all its cells, started in its own folder, as Jupyter does. A cell's error is raised."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Without folders to look in, python3 is this interpreter's kernel, whatever else is installed under that name.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client = NotebookClient(notebook, km=kernel, timeout=cell_timeout_s, resources=where)
    client.execute(env=script_environment() | {"QUICKSTART_UPDATES": updates, "QUICKSTART_FOLDER": str(folder)})
    return notebook


def shown(notebook: Any, mime_type: str) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    return [one[mime_type] for one in data if mime_type in one]


def metrics(folder: Path, run: str) -> dict[str, float]:
    path = folder / "outputs" / run / "eval_val_best" / "results.json"
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return found


def test_it_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 10
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]


@pytest.mark.timeout(900)
def test_every_cell_runs(folder: Path) -> None:
    notebook = execute(folder, updates=TINY, cell_timeout_s=600)
    run = folder / "outputs" / "quickstart"
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["num_images"] == 6
    assert len(list((run / "predict_best" / "images").glob("*.jpg"))) == 4
    # Training samples, loss, predictions, four figures, the detector's attention; the gallery shows what there is.
    assert len(shown(notebook, "image/png")) >= 8
    assert len(shown(notebook, "image/jpeg")) == 4
    classes, comparison = shown(notebook, "text/markdown")
    assert "| RAYONES |" in classes and "| whole run " in comparison and "| 2 epochs " in comparison


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_itself(folder: Path) -> None:
    execute(folder, updates="", cell_timeout_s=3000)
    whole, short = metrics(folder, "quickstart"), metrics(folder, "quickstart_short")
    assert whole["AP50"] > 0.75 and whole["AP"] > 0.5
    assert whole["AP"] > short["AP"] + 0.05
