"""The class texts: exactly the thesis' own, and a text for every class or a message."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.class_descriptions import _BUILT_IN, ALIASES, CLASS_DESCRIPTIONS, texts_for_classes
from data.errors import UserError
from texts import Language

OURS, NEU_DET = _BUILT_IN["industrial"], _BUILT_IN["neu_det"]


def test_the_thesis_texts_are_letter_for_letter() -> None:
    assert CLASS_DESCRIPTIONS == {
        "PERFORACIONES": "Agujero circular u orificio visible en la superficie del material",
        "RAYONES_ARANAZOS": "Línea fina y alargada de daño superficial en el recubrimiento",
        "ROTURA_FRACTURA": "Grieta profunda o ruptura completa del material estructural",
        "DEFORMACIONES": "Alteración de la forma original con abombamiento o hundimiento",
        "CONTAMINACION": "Presencia de partículas extrañas o manchas en la superficie",
        "NORMAL": "Superficie sin defectos visibles ni anomalías",
    }


@pytest.mark.parametrize("group", _BUILT_IN)
def test_every_class_has_a_description_and_further_phrasings(group: str) -> None:
    assert list(_BUILT_IN[group]["es"]) == list(_BUILT_IN[group]["en"])
    for classes in _BUILT_IN[group].values():
        texts = [text for several in classes.values() for text in several]
        assert len(classes) == 6 and all(4 <= len(several) <= 6 for several in classes.values())
        assert len(set(texts)) == len(texts), "no text stands for two classes"
        for text in texts:
            assert text == text.strip() == unicodedata.normalize("NFC", text) and text[0].isupper() and text[-1] != "."
    assert set(ALIASES.values()) <= set(CLASS_DESCRIPTIONS)


@pytest.mark.parametrize(
    ("known", "spellings"),
    [
        ("RAYONES_ARANAZOS", ["RAYONES", "Rayones/Arañazos"]),
        ("ROTURA_FRACTURA", ["rotura", "rotura-fractura"]),
        ("CONTAMINACION", ["Contaminación"]),
        ("NORMAL", [" normal "]),
        ("rolled-in_scale", ["Rolled In Scale", "ROLLED_IN_SCALE", "rolledinscale"]),
    ],
)
def test_names_are_matched_however_they_are_spelled(known: str, spellings: list[str]) -> None:
    for written in spellings:
        assert texts_for_classes([written], language="es")[0] == (OURS["es"] | NEU_DET["es"])[known]


@given(st.permutations([*OURS["en"], *NEU_DET["en"]]), st.sampled_from(["es", "en"]), st.booleans())
def test_texts_come_in_the_order_of_the_classes(names: list[str], language: Language, use_phrasings: bool) -> None:
    texts = texts_for_classes(names, language=language, use_phrasings=use_phrasings)
    alone = [texts_for_classes([name], language=language, use_phrasings=use_phrasings)[0] for name in names]
    assert texts == alone
    assert all((len(prompts) > 1) == use_phrasings for prompts in texts)


def test_own_texts_replace_the_built_in_ones() -> None:
    own = {"contaminación": "Polvo", "burbuja": ("Bulto con aire", "Ampolla"), "NORMAL": {"es": "Bien", "en": ["Fine"]}}
    names = ["CONTAMINACION", "BURBUJA", "NORMAL", "ROTURA"]
    texts = texts_for_classes(names, language="es", own_texts=own, use_phrasings=False)
    assert texts == [["Polvo"], ["Bulto con aire", "Ampolla"], ["Bien"], [CLASS_DESCRIPTIONS["ROTURA_FRACTURA"]]]
    assert texts_for_classes(["NORMAL"], language="en", own_texts={"NORMAL": own["NORMAL"]}) == [["Fine"]]
    spanish = {"NORMAL": {"es": "Bien"}}
    assert texts_for_classes(["NORMAL"], language="en", own_texts=spanish)[0] == OURS["en"]["NORMAL"]


def test_the_template_goes_around_every_text() -> None:
    texts = texts_for_classes(["x"], language="en", own_texts={"x": ["a {hole}", " dent "]}, template="photo of {}!")
    assert texts == [["photo of a {hole}!", "photo of dent!"]]


def test_waffle_has_as_many_words_as_long() -> None:
    names = list(OURS["es"])
    texts, waffled, other = (
        texts_for_classes(names, language="es", template="foto de {}, 3 mm", waffle_seed=seed) for seed in (None, 0, 1)
    )
    again = texts_for_classes(names, language="es", template="foto de {}, 3 mm", waffle_seed=0)
    assert waffled == again != other
    for one, two in zip([t for of in texts for t in of], [t for of in waffled for t in of], strict=True):
        assert [len(word) for word in one.split()] == [len(word) for word in two.split()]
        assert two.startswith("foto de ") and two.endswith(", 3 mm"), "the template is no text of the class"
        meant = {word for word in one.removeprefix("foto de ").lower().split() if len(word) > 4}
        assert not meant & set(two.split())


def test_everything_wrong_is_said_at_once() -> None:
    own = {"OXIDO": {"es": "Óxido"}, "rayone": "typo", "NORMAL": ["  "], "normal": "twice", "zzz": "unknown"}
    with pytest.raises(UserError) as caught:
        texts_for_classes(["PERFORACIONES", "OXIDO", "BURBUJA", "RAYONES", "NORMAL"], language="en", own_texts=own)
    text = str(caught.value)
    assert caught.value.problems == (
        "texts.own.rayone: no class of the data set has this name; did you mean RAYONES?",
        "texts.own.normal: the same class as texts.own.NORMAL; keep one",
        "texts.own.zzz: no class of the data set has this name; the classes are PERFORACIONES, OXIDO, BURBUJA, "
        "RAYONES, NORMAL",
        "OXIDO: no text in English (texts.own has it only in Spanish)",
        "BURBUJA: no text in English",
    )
    assert 'texts:\n    own:\n      OXIDO: "what this defect looks like' in text
    assert "built-in texts: PERFORACIONES, RAYONES_ARANAZOS" in text and "rolled-in_scale" in text


@pytest.mark.parametrize("empty", ["", "  ", ["good", " "]])
def test_empty_own_texts_are_refused(empty: str | list[str]) -> None:
    with pytest.raises(UserError, match="NORMAL: texts.own holds an empty text"):
        texts_for_classes(["NORMAL"], language="en", own_texts={"NORMAL": empty})
