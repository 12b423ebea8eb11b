"""Imports run one way: data <- models <- engine <- analysis, deploy <- attention <- scripts."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("texts", "data", "models", "engine", "analysis", "deploy", "attention")
FORBIDDEN = {floor: set(FLOORS[number + 1 :]) for number, floor in enumerate(FLOORS)}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
CONTRACT = {"data.batch", "data.classes", "data.errors", "data.files", "data.section", "data.types"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def source_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FLOORS)
def test_imports_run_one_way(package: str) -> None:
    above = FORBIDDEN[package] | SCRIPTS | {"tests"}
    tops = {path: {name.split(".")[0] for name in imported_modules(path)} & above for path in source_files(package)}
    assert tops and not {path: names for path, names in tops.items() if names}


def test_models_know_only_the_contract_of_data() -> None:
    for path in source_files("models"):
        modules = {name for name in imported_modules(path) if name.split(".")[0] == "data"}
        foreign = {name for name in modules if name != "data" and not any(name.startswith(c) for c in CONTRACT)}
        assert not foreign, path


@pytest.mark.parametrize("package", FLOORS)
def test_packages_do_not_print(package: str) -> None:
    for path in source_files(package):
        calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path


def test_one_function_opens_images() -> None:
    """Pillow goes by content, not by name, and starts programs for some formats; `open_image` names the accepted."""
    home = ROOT / "data" / "images.py"
    calls = [ast.unparse(node) for node in ast.walk(parsed(home)) if isinstance(node, ast.Call)]
    assert [call for call in calls if call.startswith("Image.open(")] == [
        "Image.open(source, formats=_known_formats())"
    ]
    files = [path for package in (*FLOORS, "benchmarks") for path in source_files(package)] + [*ROOT.glob("*.py")]
    for node in (node for path in files if path != home for node in ast.walk(parsed(path))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("imread", "imreadmulti", "imdecode", "imdecodemulti"), ast.unparse(node)
            assert not (node.attr == "open" and ast.unparse(node.value).split(".")[-1] == "Image"), ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "PIL":
            assert not [alias for alias in node.names if alias.name == "open" or alias.asname], ast.unparse(node)
