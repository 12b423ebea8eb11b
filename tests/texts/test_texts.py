"""Both languages say the same things, and every text can be filled."""

from string import Formatter

import pytest

from texts import Language, catalogue, number, percent, texts_of


def placeholders(language: Language) -> dict[str, set[str | None]]:
    texts = catalogue(language)
    return {
        f"{section}.{key}": {name for _, name, _, _ in Formatter().parse(text)}
        for section, entries in texts.items()
        for key, text in entries.items()
    }


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    assert placeholders("en") == placeholders("es")


def test_no_text_is_empty() -> None:
    assert all(text.strip() for one in ("en", "es") for part in catalogue(one).values() for text in part.values())


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


def test_signs_and_percentages() -> None:
    assert number(0.25, 2, "es", signed=True) == "+0,25" and number(0.0, 2, "en", signed=True) == "0.00"
    assert percent(0.125, "es") == "12,5\u00a0%" and percent(None, "en") == "–"


def test_a_section() -> None:
    assert texts_of("es", "common")["all_classes"] == "Todas las clases"
