"""What the pages tell a user to type is understood, and what they point at exists."""

import argparse
import re
import runpy
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config import load_config
from tests.support.tiny_run import ROOT

GUIDE = ROOT / "docs" / "guide"
SPANISH = {
    *("acceptance", "data", "training", "evaluation", "prediction", "text", "attention", "labels"),
    *("adaptation", "small-data", "comparing"),
}
PAGES = sorted(
    [ROOT / "README.md", ROOT / "README.es.md", ROOT / "CONTRIBUTING.md"]
    + [path for path in (ROOT / "docs").rglob("*.md") if path.name != "deimv2.md"]
)
"""Every page that is ours; docs/deimv2.md is a specification with links of its own."""
TYPED = [path for path in PAGES if path.name not in {"results.md", "design.md"}]
MOST_BYTES = 150_000
"""Of a picture: the pages are read on phones, too."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text[:60]}"


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def blocks(*languages: str, pages: list[Path] = TYPED) -> list[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    found = [Block(page, *pair) for page in pages for pair in fence.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language in languages]


def commands(*languages: str) -> dict[tuple[str, ...], Path]:
    """Every `python ...` of fenced blocks and of inline code -> a page that tells it."""
    lines = [(line, block.page) for block in blocks(*languages) for line in block.text.splitlines()]
    lines += [(code, page) for page in TYPED for code in re.findall(r"`(python [^`]+)`", prose(page))]
    parts = ((part, page) for line, page in lines for part in re.split(r" && |; ", line))
    typed = ((tuple(shlex.split(part, comments=True)), page) for part, page in parts)
    return {words: page for words, page in typed if words and words[0] == "python" and words[2] != "venv"}


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", unicodedata.normalize("NFC", heading).lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


class Understood(BaseException):
    """Ends a script once its arguments are parsed; no `except Exception` of the script stops it."""

    def __init__(self, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
        self.parser, self.arguments = parser, arguments


def parse(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Understood:
    """Start a command line as a terminal would, and stop where its arguments are parsed."""
    monkeypatch.chdir(ROOT)
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object) -> None:
        raise Understood(parser, parse_args(parser, *given))  # type: ignore[call-overload]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    module = words[1] == "-m"
    monkeypatch.setattr(sys, "argv", list(words[2:] if module else words[1:]))
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    with pytest.raises(Understood) as outcome:
        if module:
            runpy.run_module(words[2], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    return outcome.value


@pytest.mark.parametrize("words", commands("bash", "powershell"), ids=" ".join)
def test_commands_are_understood(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parse(words, monkeypatch).arguments
    if getattr(arguments, "config", None) not in (None, Path("CONFIG")):
        load_config(arguments.config, getattr(arguments, "update", ()))


def test_powershell_types_what_bash_types() -> None:
    windows, others = commands("powershell"), commands("bash")
    assert windows and not [words for words in windows if words[1] != "-m" and words not in others]


def option_strings(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from option_strings(part)


def test_options_that_pages_name_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    other_tools = "--backend-store-uri --nproc_per_node --no-deps --logdir --gpus --shm-size --user --out-type"
    known = {"--help", "--version", *other_tools.split()}
    for script in {words[:3] if words[1] == "-m" else words[:2]: words for words in commands("bash")}.values():
        with monkeypatch.context() as patch:
            known |= set(option_strings(parse(script, patch).parser))
    text = "".join(prose(page) for page in TYPED if page.name != "CONTRIBUTING.md")
    named = set(re.findall(r"`[^`]*?(--[a-z][\w-]+)", text)) | set(
        re.findall(r"(?<=[ `])(--[a-z][\w-]+)(?=[`, ])", text)
    )
    assert len(named) > 30
    assert not named - known


def named_values() -> list[str]:
    """Config values that the prose tells to set: `-u KEY=VALUE ...`, or `key: value` as a line of YAML."""
    text = "".join(prose(page) for page in TYPED if page.name != "config.md")  # it is generated
    told = [value for code in re.findall(r"`(?:[^`]* )?-u ([^`]+)`", text) for value in shlex.split(code)]
    told += [f"{key}={value}" for key, value in re.findall(r"`([A-Za-z][\w.]*): ([^`]+)`", text)]
    return sorted({value for value in told if "=" in value and value not in {"KEY=VALUE", "Baseline.weights=PATH"}})


@pytest.mark.parametrize("value", named_values())
def test_values_that_pages_name_can_be_set(value: str) -> None:
    load_config(ROOT / "configs" / "deimv2_industrial_defects.yml", [value])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_sections_of_the_specification_that_comments_name_exist() -> None:
    headings = re.findall(
        r"^#+ (?:[\d.]+ )?(.*)$", (ROOT / "docs" / "deimv2.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    packages = ("data", "models", "engine", "analysis", "deploy", "tests")
    sources = [path for name in packages for path in (ROOT / name).rglob("*.py") if path != Path(__file__)]
    text = " ".join(" ".join(path.read_text(encoding="utf-8") for path in sources).split())
    named = {name for part in re.findall(r"docs/deimv2\.md, ([^,;:.()]+)", text) for name in part.split(" / ")}
    assert len(named) > 20
    assert not [name for name in named if not any(heading.startswith(name.strip()) for heading in headings)]


def test_files_that_pages_name_exist() -> None:
    named = {word for page in TYPED for word in re.findall(r"`([^`\s]+)`", prose(page))}
    own = {
        word
        for word in named
        if re.fullmatch(r"(configs|data|docs|benchmarks|tests|texts)/[\w/]*(\.\w+)?|[\w/]+\.yml", word)
    }
    assert len(own) >= 10
    assert not [path for path in own if not ((ROOT / path).exists() or (ROOT / "configs" / path).exists())]


def test_pictures_are_small_and_shown() -> None:
    shown = {
        (page.parent / link).resolve() for page in PAGES for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", prose(page))
    }
    pictures = set((ROOT / "docs" / "images").iterdir())
    assert pictures == shown
    assert not [path.name for path in pictures if path.stat().st_size > MOST_BYTES]


@pytest.mark.parametrize("page", sorted(GUIDE.rglob("*.md")), ids=lambda page: str(page.relative_to(GUIDE)))
def test_a_guide_begins_with_its_command_and_shows_something(page: Path) -> None:
    start = page.read_text(encoding="utf-8").split("\n## ")[0].splitlines()
    assert start[0].startswith("# ") and start[2] == "```bash"
    assert [line for line in start if line.startswith(("![", "```mermaid", "|--"))]


def test_every_guide_is_a_click_away_from_the_readme() -> None:
    for readme, folder in (("README.md", GUIDE), ("README.es.md", GUIDE / "es")):
        links = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", prose(ROOT / readme))}
        assert links >= set(folder.glob("*.md")) | {ROOT / "README.md", ROOT / "README.es.md"} - {ROOT / readme}
    assert {page.stem for page in (GUIDE / "es").glob("*.md")} == SPANISH


@pytest.mark.parametrize("readme", ["README.md", "README.es.md"])
def test_the_tree_is_the_tree(readme: str) -> None:
    (tree,) = [block.text for block in blocks("", pages=[ROOT / readme]) if "engine/" in block.text]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line[0] not in " #"}
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert named >= packages | {"configs", "tests", "docs"}
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("readme", ["README.md", "README.es.md"])
def test_results_are_those_that_were_measured(readme: str) -> None:
    measured = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    cells = re.findall(r"\d\.\d+ \[[^]]*\]", prose(ROOT / readme).replace(",", ".").replace(";", "."))
    assert len(cells) >= 9
    assert not [cell for cell in cells if cell not in measured.replace(",", ".")]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_config_sections_are_read(block: Block, tmp_path: Path) -> None:
    """A page's YAML, in a file of the user's that includes the industrial config."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    text = block.text if "__include__" in block.text else f"__include__: [deimv2_industrial_defects.yml]\n{block.text}"
    (tmp_path / "configs" / "mine.yml").write_text(text, encoding="utf-8")
    load_config(tmp_path / "configs" / "mine.yml")
