"""What each defect class looks like, in words: the texts that the text head is given.

The texts are in `texts/classes.yml`: the project's six classes and NEU-DET's, in Spanish and English.
`CLASS_DESCRIPTIONS` holds the project's six in Spanish, without further phrasings. Class names are matched without
regard to accents, case, hyphens, underscores and spaces.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
import yaml

from data.errors import UserError
from texts import Language

Prompts = str | Sequence[str]
"""One text, or several for prompt averaging."""
OwnTexts = Mapping[str, Prompts | Mapping[Language, Prompts]]
"""Class name -> its texts, or language -> its texts. They replace everything built in for the class."""

_BUILT_IN: dict[str, dict[Language, dict[str, list[str]]]] = yaml.safe_load(
    files("texts").joinpath("classes.yml").read_text(encoding="utf-8")
)
"""Set of classes -> language -> class name -> its description, then further phrasings of it."""
CLASS_DESCRIPTIONS: dict[str, str] = {name: texts[0] for name, texts in _BUILT_IN["industrial"]["es"].items()}
ALIASES: dict[str, str] = {"RAYONES": "RAYONES_ARANAZOS", "ROTURA": "ROTURA_FRACTURA"}
"""Short class names -> the names the texts stand under."""
_LANGUAGE_NAMES: dict[Language, str] = {"es": "Spanish", "en": "English"}


def texts_for_classes(
    class_names: Sequence[str],
    *,
    language: Language,
    own_texts: OwnTexts | None = None,
    use_phrasings: bool = True,
    template: str | None = None,
    waffle_seed: int | None = None,
) -> list[list[str]]:
    """Return the texts of each class, in the order of `class_names`; every class gets at least one.

    Those of `own_texts` replace the built-in ones of a class and their phrasings; without `use_phrasings` one built-in
    text is left per class. Each stands for the `{}` of the template. A `waffle_seed` replaces the words by meaningless
    ones.

    Raises:
        UserError: Classes without a text, texts for classes that do not exist, empty texts; all at once.
    """
    own, problems = _own_by_class(class_names, own_texts or {})
    texts: list[list[str]] = []
    for name in class_names:
        given = own.get(_folded(name), ())
        mine = given.get(language, ()) if isinstance(given, Mapping) else given
        found = ([mine] if isinstance(mine, str) else list(mine)) or _built_in(name, language, use_phrasings)
        texts.append(found)
        if not found:
            other = [_LANGUAGE_NAMES[known] for known in given] if isinstance(given, Mapping) else []
            hint = f" (texts.own has it only in {' and '.join(other)})" if other else ""
            problems.append(f"{name}: no text in {_LANGUAGE_NAMES[language]}{hint}")
        elif any(not text.strip() for text in found):
            problems.append(f"{name}: texts.own holds an empty text; write what the defect looks like")
    if problems:
        example = next((name for name, found in zip(class_names, texts, strict=True) if not found), class_names[0])
        raise UserError(
            f"The text head needs at least one text per class, in the language of texts.language ({language}). "
            "Give your own in the config file, one text or a list of phrasings, such as\n"
            f'  texts:\n    own:\n      {example}: "what this defect looks like in an image"\n'
            "(or per language, `es:` and `en:` under the class). Classes with built-in texts: "
            f"{', '.join(name for group in _BUILT_IN.values() for name in group['es'])}. To mend:",
            problems,
        )
    if waffle_seed is not None:
        texts = _waffle(texts, waffle_seed)
    return [[(template or "{}").replace("{}", text.strip()) for text in found] for found in texts]


def _waffle(texts: Sequence[Sequence[str]], seed: int) -> list[list[str]]:
    """Replace every word by random letters of the same number, consonants and vowels in turn; all else stays.

    A control of texts (WaffleCLIP, Roth et al., ICCV 2023): the encoder is given as much, and it means nothing.
    """
    rng = np.random.default_rng(seed)

    def word(found: re.Match[str]) -> str:
        kinds = ("bcdfghklmnprstvz", "aeiou")
        return "".join(kinds[place % 2][rng.integers(len(kinds[place % 2]))] for place in range(len(found[0])))

    return [[re.sub(r"[^\W\d_]+", word, text) for text in of_class] for of_class in texts]


def _built_in(name: str, language: Language, use_phrasings: bool) -> list[str]:
    known = {_folded(key): texts for group in _BUILT_IN.values() for key, texts in group[language].items()}
    known |= {_folded(alias): known[_folded(key)] for alias, key in ALIASES.items()}
    return known.get(_folded(name), [])[: None if use_phrasings else 1]


def _own_by_class(
    class_names: Sequence[str], own_texts: OwnTexts
) -> tuple[dict[str, Prompts | Mapping[Language, Prompts]], list[str]]:
    """`own_texts` by folded name, and what is wrong with its keys."""
    known = {_folded(name): name for name in class_names}
    spelled: dict[str, str] = {}
    problems = []
    for name in own_texts:
        key = _folded(name)
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {known[near[0]]}?" if near else f"the classes are {', '.join(class_names)}"
            problems.append(f"texts.own.{name}: no class of the data set has this name; {meant}")
        elif key in spelled:
            problems.append(f"texts.own.{name}: the same class as texts.own.{spelled[key]}; keep one")
        spelled.setdefault(key, name)
    return {_folded(name): prompts for name, prompts in own_texts.items()}, problems


def _folded(name: str) -> str:
    """`name` without accents, case, and everything that is no letter or digit."""
    decomposed = unicodedata.normalize("NFKD", name).casefold()
    return "".join(character for character in decomposed if character.isalnum())
