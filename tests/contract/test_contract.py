"""What users get stays what it was; `CONTRACT_WRITE=1 pytest tests/contract` stores a change that is meant."""

import json
import os
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.contract.produce import GOLDEN, PARTS, Workplace

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+|,\d+(?!\.?\d|,\d))?(?:[eE][-+]?\d+)?")
"""With a decimal point or comma; a comma among several numbers, as in a CSV file, sets them apart."""


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """Where two values differ by more than other processors and releases make them."""
    if isinstance(expected, dict) and isinstance(found, dict):
        missing = [f"{where}.{key}: {'gone' if key in expected else 'new'}" for key in expected.keys() ^ found.keys()]
        both = [
            d
            for key in expected.keys() & found.keys()
            for d in differences(expected[key], found[key], f"{where}.{key}")
        ]
        return sorted(missing) + both
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"{where}: {len(expected)} entries, now {len(found)}"]
        return [
            d for i, (a, b) in enumerate(zip(expected, found, strict=True)) for d in differences(a, b, f"{where}[{i}]")
        ]
    if isinstance(expected, str) and isinstance(found, str):
        return _line_differences(expected, found, where)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (expected, found))
    same = expected == pytest.approx(found, rel=2e-3, abs=2e-3) if numbers else expected == found
    return [] if same else [f"{where}: {str(expected)[:80]}, now {str(found)[:80]}"]


def _line_differences(expected: str, found: str, where: str) -> list[str]:
    pairs = enumerate(zip_longest(expected.splitlines(), found.splitlines()), 1)
    return [
        f"{where}:{number}\n  - {a}\n  + {b}"
        for number, (a, b) in pairs
        if a is None or b is None or not _same_line(a, b)
    ]


def _same_line(a: str, b: str) -> bool:
    """Equal words and nearly equal numbers, however wide the columns."""
    words = [re.sub(r"[\s-]+", " ", NUMBER.sub("#", text)).strip() for text in (a, b)]
    numbers = [[float(text.replace(",", ".")) for text in NUMBER.findall(line)] for line in (a, b)]
    return words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], rel=2e-3, abs=2e-3)


@pytest.mark.usefixtures("unpainted", "timed_briefly", "no_training_pictures")
@pytest.mark.parametrize("part", PARTS)
def test_what_users_get(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NEU_DET_ROOT", raising=False)
    found = json.loads(json.dumps(PARTS[part](Workplace(tmp_path))))
    golden = GOLDEN / f"{part}.json"
    if os.environ.get("CONTRACT_WRITE"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    found_differences = differences(json.loads(golden.read_text(encoding="utf-8")), found)
    assert not found_differences, "\n".join(found_differences[:40])
