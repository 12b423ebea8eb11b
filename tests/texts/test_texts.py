"""Both languages say the same things, and every text can be filled."""

import argparse
import re
from pathlib import Path
from string import Formatter

import pytest

import texts
from analysis.errors import ERROR_KINDS
from data.errors import UserError
from engine import cli
from engine.metrics import METRIC_NAMES
from texts import LANGUAGES, Language, catalogue, missing_texts, number, percent, plain_table, texts_of


def placeholders(language: Language) -> dict[str, set[str]]:
    return {
        f"{section}.{key}": {name for _, name, _, _ in Formatter().parse(text) if name}
        for section, entries in catalogue(language).items()
        for key, text in entries.items()
    }


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    assert placeholders("en") == placeholders("es") and not missing_texts("en") + missing_texts("es")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("boxes: cajas: todas", "es.yml, line 12: mapping values are not allowed.*expected `key: text`"),
        ("boxes: ca\x00jas", "es.yml: unacceptable character"),
        ("# nada", "es.yml has no text for evaluation.boxes; write one, as the other language has"),
    ],
)
def test_a_fault_of_an_edited_file_is_said_before_anything_starts(
    wrong: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language in LANGUAGES:
        text = (Path(texts.__file__).with_name(f"{language}.yml")).read_text(encoding="utf-8")
        (tmp_path / f"{language}.yml").write_text(text.replace("boxes: cajas", wrong, 1), encoding="utf-8")
    monkeypatch.setattr(texts, "files", lambda package: tmp_path)
    monkeypatch.setattr(texts, "catalogue", catalogue.__wrapped__)
    parser = argparse.ArgumentParser()
    cli.add_language_argument(parser, "the console")
    with pytest.raises(UserError, match=message):
        parser.parse_args(["--lang", "es"])


@pytest.mark.parametrize(
    ("value", "decimals", "english", "spanish"),
    [
        (0.5, 3, "0.500", "0,500"),
        (-0.0004, 3, "0.000", "0,000"),
        (-1.25, 2, "−1.25", "−1,25"),
        (9999, 0, "9999", "9999"),
        (12345.6, 1, "12,345.6", "12\u202f345,6"),
        (None, 3, "–", "–"),
        (float("nan"), 3, "–", "–"),
        (float("-inf"), 1, "−∞", "−∞"),
    ],
)
def test_numbers(value: float | None, decimals: int, english: str, spanish: str) -> None:
    assert (number(value, decimals, "en"), number(value, decimals, "es")) == (english, spanish)


def test_signs_percentages_and_intervals() -> None:
    assert number(0.25, 2, "es", signed=True) == "+0,25" and number(0.0, 2, "en", signed=True) == "0.00"
    assert percent(0.125, "es") == "12,5\u00a0%" and percent(None, "en") == "–"
    spanish, english = (texts_of(lang, "common") for lang in ("es", "en"))
    assert spanish.interval((0.25, 0.75), 2) == "[0,25; 0,75]" and spanish["all_classes"] == "Todas las clases"
    assert english.interval((0.25, 0.75), 2) == "[0.25, 0.75]" and english.interval(None) == "–"


def test_spanish_has_its_accents_and_decimal_comma() -> None:
    everything = " ".join(
        text for part in catalogue("es").values() for key, text in part.items() if "columns" not in key
    )
    assert not re.search(r"(?<![\w.])\d+\.\d+(?![\w.])", everything)
    assert not re.search(r"[Cc]ion\b|[Ii]magenes|[Oo]mision\b|[Gg]aleria|[Uu]mbráles", everything)


@pytest.mark.parametrize(
    ("section", "keys"),
    [("metric_meanings", METRIC_NAMES), ("error_kinds", ERROR_KINDS), ("error_meanings", ERROR_KINDS)],
)
def test_every_name_of_a_result_has_its_text(section: str, keys: tuple[str, ...]) -> None:
    assert set(catalogue("en")[section]) == set(keys)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "CPU, 1 hilo"), ("1", "CPU, 1 hilo"), (2, "CPU, 2 hilos"), ("12 000", "CPU, 12 000 hilos")],
)
def test_one_is_singular(count: int | str, expected: str) -> None:
    assert texts_of("es", "training")("cpu", threads=count) == expected


def test_spanish_keeps_to_its_terms() -> None:
    """The score of a detection is its confidence; terms that engineers use stay as they are."""
    said = re.sub(r"{\w+", "", " ".join(text for part in catalogue("es").values() for text in part.values())).lower()
    assert not re.search(
        r"checkpoint|juego de señalar|hallazgo|esperanza|duplicados?\b|\w\((s|es)\)|umbral de puntuación", said
    )


def test_a_table_for_the_console() -> None:
    table = plain_table([["class", "AP", "what"], ["a", "0.1234", "x y"]], text_columns=(0, 2))
    assert table == "  class      AP  what\n  a      0.1234  x y"
