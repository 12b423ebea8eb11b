"""Every text exists in both languages and says the same things; numbers are written as each language writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.labels import LANGUAGES, NOTHING, Labels, labels_of
from analysis.result import Interval
from data.errors import UserError

SPANISH, ENGLISH = labels_of("es"), labels_of("en")
SAME_IN_BOTH = {"f1", "report_gflops", "report_error", "errors_error", "no"}


def texts(labels: Labels) -> Iterator[tuple[str, str]]:
    for field in fields(labels):
        value = getattr(labels, field.name)
        if isinstance(value, Mapping):
            yield from ((f"{field.name}.{key}", text) for key, text in value.items())
        elif field.name not in ("language", "decimal_mark", "group_mark", "between"):
            yield field.name, value


def test_both_languages_have_the_same_keys_and_no_text_is_empty() -> None:
    spanish, english = dict(texts(SPANISH)), dict(texts(ENGLISH))
    assert spanish.keys() == english.keys()
    assert all(text.strip() for text in (*spanish.values(), *english.values()))


def test_texts_are_translated() -> None:
    spanish, english = dict(texts(SPANISH)), dict(texts(ENGLISH))
    same = {key for key in spanish if spanish[key] == english[key]}
    assert {key for key in same if not key.startswith("metric_meanings.")} <= SAME_IN_BOTH


def test_the_same_placeholders_are_filled_in() -> None:
    english = dict(texts(ENGLISH))
    for key, text in texts(SPANISH):
        assert set(re.findall(r"{(\w*)}", text)) == set(re.findall(r"{(\w*)}", english[key])), key


def test_spanish_has_its_accents_and_decimal_comma() -> None:
    everything = " ".join(text for _, text in texts(SPANISH))
    assert not re.search(r"\d\.\d", everything)
    assert not re.search(
        r"[Cc]ion\b|[Mm]atriz de confusion|[Ii]magenes|[Oo]mision\b|[Gg]aleria|[Uu]mbr[aá]les", everything
    )


@pytest.mark.parametrize("name", ["metric_meanings", "error_kinds", "error_meanings"])
def test_a_missing_text_is_refused(name: str) -> None:
    short = dict(list(getattr(ENGLISH, name).items())[1:])
    with pytest.raises(ValueError, match="expected"):
        replace(ENGLISH, **{name: short})


def test_facts_have_names_in_both_languages() -> None:
    assert SPANISH.facts.keys() == ENGLISH.facts.keys()


def test_an_unknown_language_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'fr' is not known: choose es or en"):
        labels_of("fr")
    assert [labels_of(language).language for language in LANGUAGES] == ["es", "en"]


def test_numbers_as_each_language_writes_them() -> None:
    assert (SPANISH.number(0.5), ENGLISH.number(0.5)) == ("0,500", "0.500")
    assert (SPANISH.integer(9876543), ENGLISH.integer(9876543)) == ("9\u202f876\u202f543", "9,876,543")
    assert (SPANISH.integer(1234), ENGLISH.integer(1234)) == ("1234", "1234")
    assert (SPANISH.number(12345.678, 1), ENGLISH.number(12345.678, 1)) == ("12\u202f345,7", "12,345.7")
    assert (SPANISH.percent(0.125), ENGLISH.percent(0.125)) == ("12,5\u00a0%", "12.5\u00a0%")
    assert SPANISH.interval(Interval(0.25, 0.75), 2) == "[0,25; 0,75]"
    assert ENGLISH.interval(Interval(0.25, 0.75), 2) == "[0.25, 0.75]"


def test_what_is_not_known_is_a_dash_and_zero_has_no_sign() -> None:
    nan = float("nan")
    assert {SPANISH.number(None), SPANISH.number(nan), SPANISH.integer(None), SPANISH.percent(nan)} == {NOTHING}
    assert {SPANISH.interval(None), SPANISH.interval(Interval(nan, 0.5))} == {NOTHING}
    assert SPANISH.number(-0.0001, 2) == "0,00"
    assert SPANISH.number(-0.5, 1) == "\u22120,5"
    assert SPANISH.number(math.inf) == "∞"


@given(st.floats(-1e9, 1e9), st.integers(0, 4))
def test_a_written_number_can_be_read_back(value: float, decimals: int) -> None:
    for labels in (SPANISH, ENGLISH):
        text = labels.number(value, decimals).replace(labels.group_mark, "").replace(labels.decimal_mark, ".")
        assert float(text.replace("\u2212", "-")) == pytest.approx(round(value, decimals), abs=10.0**-decimals)
