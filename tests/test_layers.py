"""Imports run one way: data <- models <- engine <- analysis, deploy <- attention <- scripts."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("texts", "data", "models", "engine", "analysis", "deploy", "attention")
FORBIDDEN = {floor: set(FLOORS[number + 1 :]) for number, floor in enumerate(FLOORS)}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
CONTRACT = {"data.batch", "data.classes", "data.errors", "data.files", "data.section", "data.types"}


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def source_files() -> list[Path]:
    return sorted(path for package in FORBIDDEN for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported_modules(path)}
    assert not tops & (FORBIDDEN[package] | SCRIPTS | {"tests"})


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda path: path.name)
def test_models_know_only_the_contract_of_data(path: Path) -> None:
    modules = {name for name in imported_modules(path) if name.split(".")[0] == "data"}
    foreign = {name for name in modules if name != "data" and not any(name.startswith(c) for c in CONTRACT)}
    assert not foreign


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_do_not_print(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize(
    "path", [*source_files(), *ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")], ids=lambda path: path.name
)
def test_one_function_opens_images(path: Path) -> None:
    """Pillow goes by content, not by name, and starts programs for some formats; `open_image` names the accepted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path == ROOT / "data" / "images.py":
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert [call for call in calls if call.startswith("Image.open(")] == [
            "Image.open(source, formats=_known_formats())"
        ]
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("imread", "imreadmulti", "imdecode", "imdecodemulti"), ast.unparse(node)
            assert not (node.attr == "open" and ast.unparse(node.value).split(".")[-1] == "Image"), ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "PIL":
            assert not [alias for alias in node.names if alias.name == "open" or alias.asname], ast.unparse(node)
