"""The verdicts and notes of an ablation in words."""

from __future__ import annotations

from analysis.ablation_answer import JUDGED, TEXT_MODES, Answer, Judgement, ModeResult, TextFacts
from analysis.ablation_statistics import LEAST_SEEDS, Effect
from analysis.ablation_texts import Texts, texts_of
from analysis.labels import Language, labels_of
from analysis.tables import Number, format_cell, format_number

_FALSE_ALARM = 0.05


def short_verdict(judgement: Judgement, texts: Texts) -> str:
    """For a cell of a table."""
    if judgement.verdict is not None:
        return texts.verdicts[judgement.verdict]
    assert judgement.reason is not None
    return texts.reasons[judgement.reason]


def sentences_of(answer: Answer, lang: Language) -> list[str]:
    """One plain sentence or two for every mode but the reference."""
    texts = texts_of(lang)
    written = [_sentence(result, answer.control_head, texts, lang) for result in answer.modes]
    return [sentence for sentence in written if sentence]


def _sentence(result: ModeResult, control_head: str, texts: Texts, lang: Language) -> str:
    judgement = result.judgement
    against = {name: _filled(result.mode, effects[JUDGED], lang) for name, effects in result.against.items()}
    if judgement.verdict is not None:
        first = texts.verdict_sentences[judgement.verdict].format(**against["none"])
        if judgement.texts is None and "learned" in against:
            return f"{first} {texts.text_other_head.format(head=control_head, **against['learned'])}"
        if judgement.texts is None:
            return f"{first} {texts.text_unknown}"
        return f"{first} {texts.text_sentences[judgement.texts].format(**against['learned'])}"
    assert judgement.reason is not None
    if judgement.reason == "control":
        return texts.control_sentence.format(**against["none"]) if "none" in against else ""
    return texts.reason_sentences[judgement.reason].format(mode=result.mode)


def _filled(mode: str, found: Effect, lang: Language) -> dict[str, str]:
    number = format_cell(Number(found.value, interval=found.interval, interval_digits=3, signed=True), lang)
    difference, _, interval = number.partition(" ")
    return {"mode": mode, "difference": difference, "interval": interval}


def notes_of(answer: Answer, lang: Language) -> list[str]:
    """What a reader must know to read the numbers; cautions first."""
    texts = texts_of(lang)
    modes = {result.mode for result in answer.modes}
    notes = [*_cautions(answer, modes, lang), texts.note_references, texts.note_interval, texts.note_images]
    judged = [result.mode for result in answer.modes if result.judgement.verdict is not None]
    if len(judged) > 1:
        chance = labels_of(lang).percent(1 - (1 - _FALSE_ALARM) ** len(judged), 0)
        notes.append(texts.note_several.format(count=len(judged), chance=chance))
    notes.append(texts.note_selection.format(split=answer.split))
    if modes & {"random", "shuffled"}:
        notes.append(texts.note_controls)
    return notes + _text_notes(answer.texts, texts)


def _cautions(answer: Answer, modes: set[str], lang: Language) -> list[str]:
    texts, facts, notes = texts_of(lang), answer.texts, []
    if facts is not None and not facts.embeddings.has_real_weights:
        notes.append(texts.note_random_weights.format(source=facts.embeddings.source))
    if len(answer.seeds) < LEAST_SEEDS:
        notes.append(texts.note_few_seeds.format(count=len(answer.seeds)))
    if "none" not in modes:
        notes.append(texts.note_no_none)
    if "learned" not in modes and modes & set(TEXT_MODES):
        notes.append(texts.note_no_learned)
    if facts is not None and facts.alike:
        pairs = (f"{one.first} / {one.second} ({format_number(one.similarity, 3, lang)})" for one in facts.alike)
        notes.append(texts.note_alike.format(pairs=", ".join(pairs)))
    return notes


def _text_notes(facts: TextFacts | None, texts: Texts) -> list[str]:
    if facts is None:
        return [texts.note_no_texts]
    source = texts.note_source.format(source=facts.embeddings.source, language=facts.language)
    known = {"text_only": texts.note_text_only, "no_boxes": texts.note_no_boxes, None: texts.note_zero_shot}
    failed = texts.note_zero_shot_failed.format(reason=facts.no_zero_shot)
    return [source, known.get(facts.no_zero_shot, failed)]
