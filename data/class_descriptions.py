"""What each defect class looks like, in words: the texts that the text head is given.

`CLASS_DESCRIPTIONS` holds the project's six classes in Spanish; beside it stand the English texts, further
phrasings of each for prompt averaging, and the six classes of NEU-DET. Class names are matched without regard to
accents, case, hyphens, underscores and spaces. Texts describe what a camera sees, because that is what the
detector can learn from; causes appear only where they shape the look.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal

from data.errors import UserError

Language = Literal["es", "en"]
Prompts = str | Sequence[str]
"""One text, or several for prompt averaging."""
OwnTexts = Mapping[str, Prompts | Mapping[Language, Prompts]]
"""Class name -> its texts, or language -> its texts. They replace everything built in for the class."""

CLASS_DESCRIPTIONS: dict[str, str] = {
    "PERFORACIONES": "Agujero circular u orificio visible en la superficie del material",
    "RAYONES_ARANAZOS": "Línea fina y alargada de daño superficial en el recubrimiento",
    "ROTURA_FRACTURA": "Grieta profunda o ruptura completa del material estructural",
    "DEFORMACIONES": "Alteración de la forma original con abombamiento o hundimiento",
    "CONTAMINACION": "Presencia de partículas extrañas o manchas en la superficie",
    "NORMAL": "Superficie sin defectos visibles ni anomalías",
}
CLASS_DESCRIPTIONS_EN: dict[str, str] = {
    "PERFORACIONES": "Circular hole or opening visible in the surface of the material",
    "RAYONES_ARANAZOS": "Thin, elongated line of surface damage in the coating",
    "ROTURA_FRACTURA": "Deep crack or complete rupture of the structural material",
    "DEFORMACIONES": "Change of the original shape with bulging or sinking",
    "CONTAMINACION": "Presence of foreign particles or stains on the surface",
    "NORMAL": "Surface without visible defects or anomalies",
}
PHRASINGS: dict[str, tuple[str, ...]] = {
    "PERFORACIONES": (
        "Perforación redonda que atraviesa la pieza",
        "Orificio oscuro de borde definido en la superficie",
        "Hueco circular abierto en el material",
        "Punto agujereado con el borde marcado",
    ),
    "RAYONES_ARANAZOS": (
        "Rayón delgado y largo sobre la superficie",
        "Arañazo lineal poco profundo en la pintura",
        "Marca estrecha y alargada dejada por un roce",
        "Trazo fino que raspa el recubrimiento",
    ),
    "ROTURA_FRACTURA": (
        "Fractura irregular que parte la pieza",
        "Grieta profunda y ramificada en el material",
        "Rotura con bordes quebrados y separados",
        "Fisura abierta que atraviesa la estructura",
    ),
    "DEFORMACIONES": (
        "Abolladura o bulto que altera la forma de la pieza",
        "Superficie combada, hundida o abombada",
        "Zona deformada con sombras suaves por el relieve",
        "Hundimiento liso de la superficie sin material roto",
    ),
    "CONTAMINACION": (
        "Mancha de suciedad, aceite u óxido sobre la superficie",
        "Partículas ajenas adheridas al material",
        "Zona sucia de color distinto al del resto",
        "Residuos o polvo depositados sobre la pieza",
    ),
    "NORMAL": (
        "Superficie lisa y uniforme en buen estado",
        "Material limpio e intacto, sin daños",
        "Pieza sin marcas, manchas ni grietas",
        "Textura homogénea sin imperfecciones visibles",
    ),
}
PHRASINGS_EN: dict[str, tuple[str, ...]] = {
    "PERFORACIONES": (
        "Round perforation that goes through the part",
        "Dark opening with a sharp edge in the surface",
        "Open circular hollow in the material",
        "Punched spot with a pronounced rim",
    ),
    "RAYONES_ARANAZOS": (
        "Long thin scratch on the surface",
        "Shallow linear scrape in the paint",
        "Narrow elongated mark left by rubbing",
        "Fine stroke that scores the coating",
    ),
    "ROTURA_FRACTURA": (
        "Irregular fracture that splits the part",
        "Deep branching crack in the material",
        "Break with jagged, separated edges",
        "Open fissure running through the structure",
    ),
    "DEFORMACIONES": (
        "Dent or bump that alters the shape of the part",
        "Warped, sunken or bulging surface",
        "Deformed area with soft shadows from its relief",
        "Smooth depression of the surface without broken material",
    ),
    "CONTAMINACION": (
        "Stain of dirt, oil or rust on the surface",
        "Foreign particles stuck to the material",
        "Soiled area of a different colour from the rest",
        "Residue or dust deposited on the part",
    ),
    "NORMAL": (
        "Smooth and uniform surface in good condition",
        "Clean, intact material without damage",
        "Part without marks, stains or cracks",
        "Homogeneous texture without visible imperfections",
    ),
}

NEU_DET_DESCRIPTIONS: dict[str, str] = {
    "crazing": "Red de grietas finas y superficiales en el acero laminado",
    "inclusion": "Material extraño no metálico, como escoria u óxido, incrustado en la superficie del acero",
    "patches": "Zona irregular de la superficie del acero con un brillo claramente distinto al de su entorno",
    "pitted_surface": "Superficie del acero picada, con muchos hoyos pequeños y poco profundos",
    "rolled-in_scale": "Cascarilla de óxido incrustada en la superficie del acero durante la laminación",
    "scratches": "Rayas rectas y delgadas sobre la superficie del acero causadas por un roce",
}
NEU_DET_DESCRIPTIONS_EN: dict[str, str] = {
    "crazing": "Network of fine, shallow cracks in rolled steel",
    "inclusion": "Non-metallic foreign material, such as slag or oxide, embedded in the steel surface",
    "patches": "Irregular area of the steel surface that is clearly brighter or darker than its surroundings",
    "pitted_surface": "Pitted steel surface with many small, shallow cavities",
    "rolled-in_scale": "Oxide scale pressed into the steel surface during rolling",
    "scratches": "Thin straight lines on the steel surface caused by rubbing",
}
NEU_DET_PHRASINGS: dict[str, tuple[str, ...]] = {
    "crazing": (
        "Malla de fisuras muy finas sobre el acero",
        "Craquelado superficial de líneas delgadas y oscuras",
        "Textura cuarteada que cubre la chapa",
    ),
    "inclusion": (
        "Veta o mancha oscura y alargada de escoria atrapada en el acero",
        "Inclusión no metálica alineada con la dirección de laminación",
        "Cuerpo extraño incrustado en la chapa de acero",
    ),
    "patches": (
        "Parches claros u oscuros de contorno irregular sobre la chapa",
        "Mancha extensa y difusa en el acero laminado",
        "Áreas de tono desigual en la superficie metálica",
    ),
    "pitted_surface": (
        "Picaduras pequeñas y numerosas repartidas por el acero",
        "Superficie rugosa con cavidades puntuales oscuras",
        "Grupo de hoyuelos en la chapa de acero",
    ),
    "rolled-in_scale": (
        "Escamas oscuras de óxido prensadas en la chapa",
        "Restos de cascarilla de laminación hundidos en el metal",
        "Manchas ásperas de calamina incrustada en el acero",
    ),
    "scratches": (
        "Arañazos lineales y brillantes en la chapa",
        "Marcas largas y estrechas que cruzan el acero",
        "Línea fina y clara rayada en el metal",
    ),
}
NEU_DET_PHRASINGS_EN: dict[str, tuple[str, ...]] = {
    "crazing": (
        "Mesh of very fine fissures on the steel",
        "Superficial craquelure of thin dark lines",
        "Finely cracked texture covering the strip",
    ),
    "inclusion": (
        "Dark elongated streak or spot of slag trapped in the steel",
        "Non-metallic inclusion aligned with the rolling direction",
        "Foreign body embedded in the steel strip",
    ),
    "patches": (
        "Light or dark patches of irregular outline on the strip",
        "Large diffuse blotch on rolled steel",
        "Areas of uneven tone on the metal surface",
    ),
    "pitted_surface": (
        "Small and numerous pits spread over the steel",
        "Rough surface with dark point-like cavities",
        "Cluster of tiny dimples in the steel strip",
    ),
    "rolled-in_scale": (
        "Dark flakes of oxide pressed into the strip",
        "Remains of mill scale sunk into the metal",
        "Rough blotches of mill scale embedded in the steel",
    ),
    "scratches": (
        "Bright linear scratches on the strip",
        "Long narrow marks across the steel",
        "Fine light line scored into the metal",
    ),
}

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
) -> list[list[str]]:
    """The texts of each class, in the order of `class_names`; every class gets at least one.

    Args:
        class_names: Names as the data set spells them.
        language: Which of the built-in texts, and which of `own_texts` where those name languages.
        own_texts: Texts from the config; for a class they replace the built-in ones and their phrasings.
        use_phrasings: False leaves one built-in text per class.
        template: Put around every text, which stands for its `{}`.

    Raises:
        UserError: Classes without a text, texts for classes that do not exist, empty texts; all at once.
    """
    own, problems = _own_by_class(class_names, own_texts or {})
    texts: list[list[str]] = []
    for name in class_names:
        found = _own_prompts(own, name, language) or _built_in(name, language, use_phrasings)
        texts.append(found)
        if not found:
            other = [_LANGUAGE_NAMES[known] for known in _languages_of(own.get(_folded(name)))]
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
            f"{', '.join([*CLASS_DESCRIPTIONS, *NEU_DET_DESCRIPTIONS])}. To mend:",
            problems,
        )
    return [[_filled(template, text.strip()) for text in found] for found in texts]


def _filled(template: str | None, text: str) -> str:
    return text if template is None else template.replace("{}", text)


def _built_in(name: str, language: Language, use_phrasings: bool) -> list[str]:
    descriptions, phrasings = {
        "es": (CLASS_DESCRIPTIONS | NEU_DET_DESCRIPTIONS, PHRASINGS | NEU_DET_PHRASINGS),
        "en": (CLASS_DESCRIPTIONS_EN | NEU_DET_DESCRIPTIONS_EN, PHRASINGS_EN | NEU_DET_PHRASINGS_EN),
    }[language]
    key = {_folded(known): known for known in descriptions} | {_folded(k): known for k, known in ALIASES.items()}
    known = key.get(_folded(name))
    if known is None:
        return []
    return [descriptions[known], *(phrasings[known] if use_phrasings else ())]


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


def _own_prompts(own: Mapping[str, Prompts | Mapping[Language, Prompts]], name: str, language: Language) -> list[str]:
    prompts = own.get(_folded(name), ())
    if isinstance(prompts, Mapping):
        prompts = prompts.get(language, ())
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _languages_of(prompts: Prompts | Mapping[Language, Prompts] | None) -> list[Language]:
    return list(prompts) if isinstance(prompts, Mapping) else []


def _folded(name: str) -> str:
    """`name` without accents, case, and everything that is no letter or digit."""
    decomposed = unicodedata.normalize("NFKD", name).casefold()
    return "".join(character for character in decomposed if character.isalnum())
