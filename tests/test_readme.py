"""Both READMEs say the same, in English and in Spanish, and what they tell a user to type exists."""

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

import ablate_text
import check_data
import compare_models
import evaluate_deimv2
import export_deimv2
import predict_deimv2
import train_deimv2
import visualize_attention
from data.convert.__main__ import parse_arguments as parse_convert
from engine.config import load_config

ROOT = Path(__file__).parents[1]
ENGLISH, SPANISH = "README.md", "README.es.md"
SCRIPTS: dict[str, ModuleType] = {
    module.__name__: module
    for module in (
        ablate_text,
        check_data,
        compare_models,
        evaluate_deimv2,
        export_deimv2,
        predict_deimv2,
        visualize_attention,
    )
}


@dataclass
class Guide:
    """What a README is made of, in order."""

    levels: list[int] = field(default_factory=list)
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)
    """Language and lines of each fenced block."""
    tables: list[int] = field(default_factory=list)
    """Rows of each table, head included."""
    images: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    code: list[list[str]] = field(default_factory=lambda: [[]])
    """Inline code of each section, sorted: the order of words is a language's own."""


def read_guide(name: str) -> Guide:
    guide, in_block, in_table = Guide(), False, False
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            in_block = not in_block
            if in_block:
                guide.blocks.append((line.removeprefix("```"), []))
        elif in_block:
            guide.blocks[-1][1].append(line)
        else:
            if heading := re.match(r"(#+) ", line):
                guide.levels.append(len(heading[1]))
                guide.code.append([])
            if line.startswith("|"):
                guide.tables = [*guide.tables[:-1], guide.tables[-1] + 1] if in_table else [*guide.tables, 1]
            in_table = line.startswith("|")
            assert line.count("`") % 2 == 0, f"{name}: code that runs over a line's end is not compared: {line}"
            guide.code[-1] = sorted([*guide.code[-1], *re.findall(r"`([^`]+)`", line)])
            guide.images += re.findall(r"!\[[^]]*\]\(([^)]+)\)", line)
            guide.links += re.findall(r"\]\(([^)]+)\)", line)
    return guide


def what_is_typed(language: str, lines: list[str]) -> list[str]:
    """Commands without comments; of a plain block (a folder tree with remarks) its paths."""
    if language:
        return [re.sub(r"\s+#.*", "", line) for line in lines]
    return [word for line in lines for word in line.split() if "/" in word]


def commands(name: str) -> list[list[str]]:
    blocks = [lines for language, lines in read_guide(name).blocks if language == "bash"]
    return [shlex.split(part, comments=True) for lines in blocks for line in lines for part in line.split(" && ")]


def test_both_readmes_have_the_same_parts() -> None:
    english, spanish = read_guide(ENGLISH), read_guide(SPANISH)
    assert english.levels == spanish.levels and len(english.levels) > 15
    assert english.tables == spanish.tables and len(english.tables) > 5
    assert english.images == spanish.images and english.images
    assert [what_is_typed(*block) for block in english.blocks] == [what_is_typed(*block) for block in spanish.blocks]
    assert [language for language, _ in english.blocks] == [language for language, _ in spanish.blocks]


def test_both_readmes_name_the_same_options_files_and_values() -> None:
    for number, (english, spanish) in enumerate(zip(read_guide(ENGLISH).code, read_guide(SPANISH).code, strict=True)):
        assert english == spanish, f"section {number}"


@pytest.mark.parametrize("name", [ENGLISH, SPANISH])
def test_links_lead_somewhere(name: str) -> None:
    links = [link for link in read_guide(name).links if "://" not in link]
    assert {ENGLISH, SPANISH} - {name} <= set(links), "the other language is a click away"
    assert not [link for link in links if not (ROOT / link.split("#")[0]).exists()]


def test_files_that_the_guide_names_exist() -> None:
    named = {word for section in read_guide(ENGLISH).code for word in section}
    own = {word for word in named if re.match(r"(configs|data|docs|benchmarks|tests)/[\w/]*(\.\w+)?$", word)}
    own |= {f"configs/{word}" for word in named if re.fullmatch(r"\w+\.yml", word)}
    assert len(own) >= 10
    assert not [path for path in own if not (ROOT / path).exists()]


@pytest.mark.parametrize(
    "words", [words for words in commands(ENGLISH) if words[0] == "python" and words[2] != "venv"], ids=" ".join
)
def test_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[1] == "-m":
        assert words[2] == "data.convert"
        parse_convert(words[3:])
        return
    assert (ROOT / words[1]).is_file()
    monkeypatch.setattr(sys, "argv", words[1:])
    script = words[1].removesuffix(".py")
    if script.startswith("train_deimv2"):
        arguments = train_deimv2.parse_arguments(None)
    else:
        arguments = SCRIPTS[script].parse_arguments()
    monkeypatch.chdir(ROOT)
    if getattr(arguments, "config", None) is not None:
        load_config(arguments.config, arguments.update)
