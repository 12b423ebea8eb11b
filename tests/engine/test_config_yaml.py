"""The YAML dialect: reading, includes, merging, overrides."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from engine.config import merge_yaml
from engine.yaml_dialect import (
    MAX_FILE_BYTES,
    OWN_FILE,
    RECIPE,
    as_override,
    get_path,
    leaves,
    merge,
    parse_overrides,
    read_with_includes,
    read_yaml,
)
from tests.support.configs import write

SCALARS = st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2)
TREES = st.recursive(SCALARS, lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3), max_leaves=6)
RELAXED = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
CONFIGS = st.dictionaries(st.sampled_from("abcd"), TREES, max_size=4)


@RELAXED
@given(CONFIGS, CONFIGS)
def test_merging(first: dict[str, Any], second: dict[str, Any]) -> None:
    """The later one wins, the rest stays, nothing changes nothing, and nothing is shared with the sources."""
    assert merge(first, {}) == first == merge({}, first) == merge(first, first)
    before = copy.deepcopy((first, second))
    merged = merge(first, second)
    for path, _ in leaves(second):
        assert get_path(merged, path) == get_path(second, path)
    assert merged.keys() == first.keys() | second.keys()
    for path, _ in leaves(first):
        if get_path(merged, path) != get_path(first, path):
            prefixes = [path.rsplit(".", cut)[0] for cut in range(path.count(".") + 1)]
            assert any(get_path(second, prefix, default=...) is not ... for prefix in prefixes)
    _spoil(merged)
    assert (first, second) == before


def _spoil(value: Any) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _spoil(item)
    if isinstance(value, (dict, list)):
        value.clear()


def test_lists_and_null_replace() -> None:
    merged = merge({"a": [1, 2], "b": {"c": 1}, "d": 1}, {"a": [3], "b": None, "d": {"e": 1}})
    assert merged == {"a": [3], "b": None, "d": {"e": 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2.5E-5", 2.5e-5), ("-1e+3", -1000.0), (".5e2", 50.0), ("1.e3", 1000.0), ("0.0001", 1e-4),
        ("1.0e-4", 1e-4), ("12", 12), ("1e", "1e"), ("e4", "e4"), ("yes", True), ("~", None), ("'1e-4'", "1e-4"),
        ("2024-01-01", "2024-01-01"), ("[1, 2]", [1, 2]), ("010", "010"), ("1:30", "1:30"), ("-1:30.5", "-1:30.5"),
        ("0", 0), ("-00.5", -0.5), ("0x1F", 31),
    ],
)  # fmt: skip
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    read = read_yaml(write(tmp_path, "a.yml", f"key: {text}"))["key"]
    assert read == value and type(read) is type(value)
    assert parse_overrides([f"key={text}"], {})["key"] == value


def test_includes_in_order_then_the_file_itself(tmp_path: Path) -> None:
    write(tmp_path, "base/one.yml", "a: 1\nb: 1\nc: {x: 1, y: 1}\nlist: [1, 2, 3]")
    write(tmp_path, "base/two.yml", "__include__: ['more/three.yml']\nb: 2\nc: {y: 2}")
    write(tmp_path, "base/more/three.yml", "b: 3\nd: 3\nlist: [9]")
    path = write(tmp_path, "main.yml", "__include__: [base/one.yml, base/two.yml]\nc: {z: 0}")
    assert merge_yaml(path) == {"a": 1, "b": 2, "d": 3, "c": {"x": 1, "y": 2, "z": 0}, "list": [9]}
    assert merge_yaml(str(path)) == merge_yaml(path)
    assert {key: (rank, Path(source).name) for key, (rank, source) in leaves(read_with_includes(path)[1])} == {
        **{"a": (RECIPE, "one.yml"), "b": (RECIPE, "two.yml"), "c.x": (RECIPE, "one.yml"), "c.y": (RECIPE, "two.yml")},
        **{"d": (2, "three.yml"), "list": (2, "three.yml"), "c.z": (OWN_FILE, "main.yml")},  # the second file merged
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["__include__: '{here}/1.yml'\nb: 2", "a: 1"], {"a": 1, "b": 2}),  # absolute; a single name
        (["__include__: [~/1.yml]", "a: 1"], {"a": 1}),
        (["__include__: [$MY_CONFIGS/1.yml]", "a: 1"], {"a": 1}),
        (["__include__: ['${MY_CONFIGS}/1.yml']", "a: 1"], {"a": 1}),
        (["__include__: [1.yml, 2.yml]", "__include__: [2.yml]\na: 2", "a: 1"], {"a": 1}),  # a file, included twice
        (["a: &x {b: [1]}\nc: *x\nd: {<<: *x, e: 1}"], {"a": {"b": [1]}, "c": {"b": [1]}, "d": {"b": [1], "e": 1}}),
        (["# nothing\n"], {}),
        (["\ufeffa: ä"], {"a": "ä"}),
        (["epochs: 3\nepoches: 3\nlrscheduler: flatcosine"], {"epoches": 3, "lrsheduler": "flatcosine"}),
        (["__include__: [1.yml]\nepochs: 5", "epoches: 132"], {"epoches": 5}),
        (["epochs: .nan"], {"epoches": pytest.approx(math.nan, nan_ok=True)}),  # which the check of its field refuses
    ],
)
def test_what_is_merged(files: list[str], expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    for name in ("HOME", "USERPROFILE", "MY_CONFIGS"):
        monkeypatch.setenv(name, str(folder))
    for number, text in enumerate(files):
        write(folder, f"{number}.yml", text.replace("{here}", folder.as_posix()))
    merged = merge_yaml(folder / "0.yml")
    assert merged == expected
    _spoil(merged.get("a"))
    assert merged.get("c") == (expected.get("c") if isinstance(expected, dict) else None), "aliases are copies"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [1, 2", ["a.yml: bad YAML: line 1, column 9", "flow sequence"]),
        ("a: 1\n\tb: 2", ["line 2, column 1", "'\\t'"]),
        ("a: 1\nb: {c: 1, c: 2}", ["line 2, column 11", "'c' is given twice", "keep one"]),
        ("a: {<<: {b: 1}, <<: {c: 1}, 1: 2}", ["found the key '1', expected a name"]),
        ("on: 1", ["found the key 'on'", "in quotes"]),
        ("? [a]\n: 1", ["line 1", "expected a name"]),
        ("- a\n- b", ["found a list at the top", "`key: value`"]),
        ("just text", ["found a text at the top"]),
        ("a: 1\n---\nb: 1", ["line 2", "single document"]),
        ("a: !!python/object/apply:os.system ['echo hi']", ["line 1, column 4", "python/object/apply:os.system"]),
        ("a: !!float abc", ["a value cannot be read", "abc"]),
        ("a: !!bool abc", ["a value cannot be read", "abc"]),
        ("a: " + "9" * 5000, ["a value cannot be read"]),
        ("a: \x00", ["bad YAML", "#x0000"]),
        ("a: &x [*x]", ["an alias (*name) contains itself"]),
        ("a: *nobody", ["undefined alias"]),
        ("[" * 3000, ["nested too deeply"]),
        (BOMB, ["aliases (*name) expand to more than 100,000 values", "write the values out"]),
        ("epochs: 3\nepoches: 4", ["epochs is 3 but epoches, its other spelling, is 4", "keep one"]),
        ("lrscheduler: a\nlrsheduler: b", ["lrscheduler is 'a' but lrsheduler"]),
        ("__include__: 3", ["`__include__` is 3, expected a list of file names"]),
        ("__include__: [1]", ["expected a list of file names"]),
        ("__include__: [missing.yml]", ["a.yml: `__include__` names 'missing.yml'", "correct the path"]),
        ("__include__: [.]", ["names '.', but there is no file"]),
        ('__include__: ["a\\0b"]', ["names 'a\\x00b', but there is no file"]),
        (f"__include__: [{'a' * 300}]", ["there is no file"]),
        ("__include__: [~nobody-of-that-name/a.yml]", ["there is no file"]),
        ("? " * 3000, ["nested too deeply"]),
        (MERGE_BOMB, ["aliases (*name) expand to more than 100,000 values"]),
        ("__include__: [a.yml]", ["goes in a circle: a.yml -> a.yml"]),
    ],
)
def test_bad_files(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, "a.yml", text)
    with pytest.raises(UserError) as error:
        merge_yaml(path)
    for part in ["a.yml", *parts]:
        assert part in str(error.value)


def test_includes_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "b.yml", "__include__: [c.yml]")
    write(tmp_path, "c.yml", "__include__: [b.yml]")
    with pytest.raises(UserError, match=r"circle: b\.yml -> c\.yml -> b\.yml"):
        merge_yaml(write(tmp_path, "a.yml", "__include__: [b.yml]"))


def test_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path, "file.yml", "a: 1")
    with pytest.raises(UserError, match=r"none\.yml: config file not found; .*`-c config` lists the configs"):
        merge_yaml(tmp_path / "none.yml")
    with pytest.raises(UserError, match="cannot read this config file"):
        merge_yaml(tmp_path / "file.yml" / "inside.yml")
    (tmp_path / "latin.yml").write_bytes("a: \xe4".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yml: not UTF-8 text \(byte 3\); save it as UTF-8"):
        merge_yaml(tmp_path / "latin.yml")
    write(tmp_path, "large.yml", "a: '" + "x" * MAX_FILE_BYTES)
    with pytest.raises(UserError, match=r"large\.yml: larger than 200,000 bytes"):
        merge_yaml(tmp_path / "large.yml")


def test_overrides() -> None:
    overrides = ["a.b=1", "a.c=[1, 2]", "d=x=y", "a.b=2", "e=", "f={g: 1}", "epochs=7", "h = lote 2", "i = 3"]
    assert parse_overrides(overrides, {}) == {
        **{"a": {"b": 2, "c": [1, 2]}, "d": "x=y", "e": None, "f": {"g": 1}, "epoches": 7},
        **{"h": "lote 2", "i": 3},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in (
            "imgs #2", "#1", "lote 1: a", "C:", r"C:\datos\piezas #2", r"\\nas\x", "- a", "[lote] 2", "[1, 2] #x", "[1",
            "a]", "{x", "'a' #b", "'a", '"a" b', "it's", "&a x", "*a", "!x", "!!str 5", "%x", "@x", "`x`", "---",
            "--- x", "? x", "| x", "> x", "a=b", "=", "<<", "ñandú/日本 #é", "a  b ", "~/x", "$HOME/x", "${A}", "a\nb",
            "x\x7f\ty", ":", "-", "?", ",",
        )),
        ("2", 2), (" 2 ", 2), ("-1.5", -1.5), ("1e-4", 1e-4), ("0x10", 16), ("yes", True), ("False", False),
        ("~", None), ("null", None), ("", None), ("[a, 'b #c']", ["a", "b #c"]),
        ("{a: [1, x: 2]}", {"a": [1, {"x": 2}]}),
        ("'imgs #2'", "imgs #2"), ('"a\\tb: #"', "a\tb: #"), ("'2'", "2"), ("''", ""),
    ],
)  # fmt: skip
def test_an_overrides_value_is_taken_whole(text: str, value: object) -> None:
    read = parse_overrides([f"a.b={text}"], {})["a"]["b"]
    assert read == value and type(read) is type(value)


@RELAXED
@given(st.text() | st.sampled_from(["2", "on", "~", "[a]", "'x'", '"', "a #b", ""]))
def test_text_survives_as_an_override(text: str) -> None:
    assert parse_overrides([as_override("a", text)], {}) == {"a": text}


def test_all_bad_overrides_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse_overrides(["a", "=1", "a..b=1", "a. b=1", "c={p: 1, p: 2}", "ops.0.p=1"], {"ops": [{"p": 1}]})
    assert len(error.value.problems) == 6
    text = str(error.value)
    assert text.startswith("Bad override (-u):")
    assert "'a': expected key=value, such as" in text
    assert "-u c: bad YAML: line 1, column 8: the key 'p' is given twice" in text
    assert "ops: is a list, whose elements cannot be addressed (found .0); give the whole list, such as -u" in text


def test_overrides_in_both_spellings_that_disagree() -> None:
    with pytest.raises(UserError, match="-u: epochs is 3 but epoches, its other spelling, is 4; keep one"):
        parse_overrides(["epochs=3", "epoches=4"], {})
    assert parse_overrides(["epochs=3", "epochs=4"], {}) == {"epoches": 4}
