"""The quickstart notebooks run from top to bottom: their cells call the scripts that a user types."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.support.tiny_run import ROOT, script_environment

ENGLISH, SPANISH = (ROOT / "docs" / f"quickstart{language}.ipynb" for language in ("", ".es"))
TRANSLATED = {
    '"en")  # of consoles, figures and tables': '"es")  # de consola, figuras y tablas',
    "# For a shorter trial: config values such as": "# Para probar en menos tiempo: valores de la configuración",
    ", and another folder.": ", y otra carpeta.",
    "# datasets/ and outputs/ are made here": "# aquí se crean datasets/ y outputs/",
    "Do what `python SCRIPT ARGUMENTS` does in a terminal, inside this kernel: torch is loaded only once.": (
        "Hace lo que `python SCRIPT ARGUMENTOS` en una terminal, pero aquí: torch se carga una sola vez."
    ),
    "ended with exit code {end.code}: see its message above": "terminó con el código {end.code}: vea su mensaje arriba",
    "# the text of comparison.md, shown below as tables": "# el texto de comparison.md, abajo como tablas",
}
"""What is said in code cells: nothing else in them differs."""
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


def execute(path: Path, folder: Path, *, updates: str, cell_timeout_s: int, lang: str | None = None) -> Any:
    """The notebook after all its cells, started in its own folder, as Jupyter does. A cell's error is raised."""
    notebook = nbformat.read(path, as_version=4)
    # Without folders to look in, python3 is this interpreter's kernel, whatever else is installed under that name.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, km=kernel, timeout=cell_timeout_s, resources=where)
    own = {"QUICKSTART_UPDATES": updates, "QUICKSTART_FOLDER": str(folder)} | ({"DEIMV2_LANG": lang} if lang else {})
    client.execute(env=script_environment() | own)
    return notebook


def shown(notebook: Any, mime_type: str) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    return [one[mime_type] for one in data if mime_type in one]


def metrics(folder: Path, run: str) -> dict[str, float]:
    path = folder / "outputs" / run / "eval_val_best" / "results.json"
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return found


def test_they_are_one_notebook_in_two_languages_without_outputs() -> None:
    english, spanish = (nbformat.read(path, as_version=4).cells for path in (ENGLISH, SPANISH))
    for cells in (english, spanish):
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert len(code) > 10
        assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    used = set()
    for one, other in zip(english, spanish, strict=True):
        assert (one.id, one.cell_type) == (other.id, other.cell_type)
        if one.cell_type == "markdown":
            assert one.source != other.source and one.source.count("`") == other.source.count("`")
            continue
        source = one.source
        for words, translated in TRANSLATED.items():
            used |= {words} if words in source else set()
            source = source.replace(words, translated)
        assert source == other.source
    assert used == set(TRANSLATED)


@pytest.mark.timeout(900)
def test_every_cell_runs(folder: Path) -> None:
    """Of the English one, whose code is the Spanish one's, in the language that the environment names."""
    notebook = execute(ENGLISH, folder, updates=TINY, cell_timeout_s=600, lang="es")
    run = folder / "outputs" / "quickstart"
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["num_images"] == 6
    assert len(list((run / "predict_best" / "images").glob("*.jpg"))) == 4
    # Training samples, loss, predictions, four figures, the detector's attention; the gallery shows what there is.
    assert len(shown(notebook, "image/png")) >= 8
    assert len(shown(notebook, "image/jpeg")) == 4
    classes, comparison = shown(notebook, "text/markdown")
    assert "| clase |" in classes and "| **todas** |" in classes and "| RAYONES | 0," in classes
    assert "# Comparación de modelos" in comparison and "| quickstart_short |" in comparison
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "4 imágenes procesadas" in printed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_itself(folder: Path) -> None:
    execute(ENGLISH, folder, updates="", cell_timeout_s=3000)
    whole, short = metrics(folder, "quickstart"), metrics(folder, "quickstart_short")
    assert whole["AP50"] > 0.75 and whole["AP"] > 0.5
    assert whole["AP"] > short["AP"] + 0.05
