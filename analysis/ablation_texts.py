"""What an ablation says, in Spanish and English."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.ablation_answer import Reason
from analysis.ablation_statistics import Verdict
from analysis.compare import DEFECTS
from analysis.labels import Language


@dataclass(frozen=True)
class Texts:
    """The texts of one language; braces are filled in with `str.format`."""

    title: str
    intro: str
    answer: str
    modes_caption: str
    differences_caption: str
    classes_caption: str
    similarity_caption: str
    zero_shot_caption: str
    mode: str
    seeds: str
    against: str
    reference: str
    metric: str
    of_images: str
    seed_sd: str
    of_both: str
    verdict: str
    class_: str
    boxes: str
    images: str
    accuracy: str
    all_boxes: str
    mean_of_classes: str
    training_minutes: str
    verdicts: Mapping[Verdict, str]
    reasons: Mapping[Reason, str]
    """Short, for the table."""
    verdict_sentences: Mapping[Verdict, str]
    text_sentences: Mapping[Verdict, str]
    """After a verdict: the comparison with `learned`."""
    text_unknown: str
    text_other_head: str
    reason_sentences: Mapping[Reason, str]
    control_sentence: str
    notes: str
    note_interval: str
    note_images: str
    note_several: str
    note_selection: str
    note_references: str
    note_controls: str
    note_source: str
    note_no_texts: str
    note_random_weights: str
    note_few_seeds: str
    note_no_none: str
    note_no_learned: str
    note_alike: str
    note_zero_shot: str
    note_zero_shot_failed: str
    note_text_only: str
    note_no_boxes: str
    metrics: Mapping[str, str]
    figure_axis: str


_ENGLISH = Texts(
    title="Does text help? Ablation of text fusion",
    intro="Split {split}, {images} images (gt_hash {gt_hash}); seeds {seeds}. Every run starts from the same phase 1 "
    "checkpoint and trains the same epochs.",
    answer="The answer",
    modes_caption="AP and AP50: mean ± standard deviation over the seeds. Differences in AP with 95 % intervals "
    "over images and seeds.",
    differences_caption="Differences between modes, the same seeds on the same resampled images (paired bootstrap, "
    "{samples} resamples). Interval over images: of these trained models. Over images and seeds: of the mode.",
    classes_caption="AP of each class: mean ± standard deviation over seeds.",
    similarity_caption="Cosine similarity of the class texts, prompts averaged, by {source}.",
    zero_shot_caption="Text-only scores: share of cropped ground-truth boxes whose nearest class text is the right "
    "one, with 95 % Wilson intervals that count images, not boxes. Guessing gives {chance}, the most frequent class "
    "{share}.",
    mode="Mode",
    seeds="Seeds",
    against="AP minus {reference}",
    reference="Reference",
    metric="Metric",
    of_images="Difference, interval over images",
    seed_sd="SD over seeds",
    of_both="Difference, interval over images and seeds",
    verdict="Verdict",
    class_="Class",
    boxes="Boxes",
    images="Images",
    accuracy="Accuracy",
    all_boxes="all boxes",
    mean_of_classes="mean of the classes",
    training_minutes="Training (min)",
    verdicts={"helps": "helps", "no_difference": "no difference shown", "hurts": "hurts"},
    reasons={
        "reference": "reference",
        "control": "control",
        "random_weights": "no verdict: encoder with random weights",
        "few_seeds": "no verdict: fewer than 3 seeds",
        "no_reference": "no verdict: mode none was not run",
        "no_boxes": "no verdict: no ground truth",
    },
    verdict_sentences={
        "helps": "{mode} helps: AP {difference} {interval} against none.",
        "no_difference": "{mode}: no difference shown: AP {difference} {interval} against none.",
        "hurts": "{mode} hurts: AP {difference} {interval} against none.",
    },
    text_sentences={
        "helps": "It is also better than learned, the same head with free vectors ({difference} {interval}): the "
        "texts' meaning adds something.",
        "no_difference": "Against learned, the same head with free vectors, no difference is shown ({difference} "
        "{interval}): nothing shows that the texts' meaning matters.",
        "hurts": "It is worse than learned, the same head with free vectors ({difference} {interval}): the texts' "
        "meaning adds nothing.",
    },
    text_unknown="Mode learned was not run, so the head's parameters and the texts' meaning cannot be told apart.",
    text_other_head="Against learned: {difference} {interval}, but that has the head {head}, so it does not tell "
    "what the texts' meaning adds; -u MultimodalFusion.control_head={mode} in another --output-dir does.",
    reason_sentences={
        "reference": "",
        "control": "",
        "random_weights": "{mode}: no verdict. The text encoder has random weights: its vectors do not mean anything, "
        "and this run only shows that the machinery works.",
        "few_seeds": "{mode}: no verdict. Fewer than three seeds cannot tell the mode from chance in training.",
        "no_reference": "{mode}: no verdict. Mode none was not run; add --modes none.",
        "no_boxes": "{mode}: no verdict. The split has no boxes to measure on.",
    },
    control_sentence="{mode} (control): AP {difference} {interval} against none.",
    notes="Notes",
    note_interval="A verdict is the side of 0 on which the 95 % interval of the difference against none lies. The "
    "interval adds the variance over resampled images and the variance over seeds (paired, n - 1) and takes "
    "Student's t with Welch-Satterthwaite degrees of freedom; it is rather too wide than too narrow. 'No difference "
    "shown' is not 'no difference': the interval says how large one could still be.",
    note_images="The interval over images alone is narrower because it is about the trained models at hand; what other "
    "seeds would give is not in it.",
    note_several="{count} modes are compared with none, each at 95 %: if none of them had any effect, one would "
    "still be called different in up to about {chance} of all such ablations.",
    note_selection="Of every run best.pth is judged, chosen on {split}, in all modes alike: levels may be a little "
    "optimistic, differences much less.",
    note_references="none: the same epochs without a text head. learned: a head with free vectors instead of "
    "texts. A gain over none that learned has too is not a gain from text.",
    note_controls="random (fixed random vectors) and shuffled (the texts of the wrong classes) draw anew with each "
    "seed.",
    note_source="Texts: {source}, language {language}.",
    note_no_texts="No mode that reads texts was run: no similarity, no text-only scores, no verdict.",
    note_random_weights="CAUTION: the text encoder {source} was never trained. Nothing here is a finding about text.",
    note_few_seeds="CAUTION: {count} seed(s); verdicts need three or more.",
    note_no_none="CAUTION: mode none was not run, so there are no verdicts.",
    note_no_learned="Mode learned was not run: a gain cannot be traced to the texts' meaning.",
    note_alike="CAUTION: texts that are nearly the same to the encoder: {pairs}. Text cannot tell these classes apart.",
    note_zero_shot="Text-only scores use the encoder's own image tower on the cropped boxes, filled up to squares, "
    "without any training.",
    note_zero_shot_failed="No text-only scores of the boxes: {reason}",
    note_text_only="No text-only scores of the boxes: the encoder reads text only. CLIP and SigLIP also see images.",
    note_no_boxes="No text-only scores: the split has no boxes.",
    metrics={"AP": "AP", "AP50": "AP50", "AP75": "AP75", DEFECTS: "AP without NORMAL"},
    figure_axis="Cosine similarity",
)

_SPANISH = Texts(
    title="¿Ayuda el texto? Ablación de la fusión de texto",
    intro="Partición {split}, {images} imágenes (gt_hash {gt_hash}); semillas {seeds}. Todas las ejecuciones parten "
    "del mismo punto de control de la fase 1 y entrenan las mismas épocas.",
    answer="La respuesta",
    modes_caption="AP y AP50: media ± desviación estándar entre semillas. Diferencias de AP con intervalos del "
    "95 % sobre imágenes y semillas.",
    differences_caption="Diferencias entre modos, con las mismas semillas y las mismas imágenes remuestreadas "
    "(bootstrap pareado, {samples} remuestreos). Intervalo sobre imágenes: de estos modelos entrenados. Sobre "
    "imágenes y semillas: del modo.",
    classes_caption="AP de cada clase: media ± desviación estándar entre semillas.",
    similarity_caption="Similitud coseno de los textos de las clases, promediadas sus formulaciones, según {source}.",
    zero_shot_caption="Puntuación solo con texto: proporción de cajas anotadas recortadas cuyo texto de clase más "
    "cercano es el correcto, con intervalos de Wilson del 95 % que cuentan imágenes, no cajas. El azar da {chance}; la "
    "clase más frecuente, {share}.",
    mode="Modo",
    seeds="Semillas",
    against="AP menos {reference}",
    reference="Referencia",
    metric="Métrica",
    of_images="Diferencia, intervalo sobre imágenes",
    seed_sd="DE entre semillas",
    of_both="Diferencia, intervalo sobre imágenes y semillas",
    verdict="Veredicto",
    class_="Clase",
    boxes="Cajas",
    images="Imágenes",
    accuracy="Exactitud",
    all_boxes="todas las cajas",
    mean_of_classes="media de las clases",
    training_minutes="Entrenamiento (min)",
    verdicts={"helps": "ayuda", "no_difference": "no se muestra diferencia", "hurts": "perjudica"},
    reasons={
        "reference": "referencia",
        "control": "control",
        "random_weights": "sin veredicto: codificador con pesos aleatorios",
        "few_seeds": "sin veredicto: menos de 3 semillas",
        "no_reference": "sin veredicto: no se ejecutó el modo none",
        "no_boxes": "sin veredicto: sin anotaciones",
    },
    verdict_sentences={
        "helps": "{mode} ayuda: AP {difference} {interval} respecto a none.",
        "no_difference": "{mode}: no se muestra diferencia: AP {difference} {interval} respecto a none.",
        "hurts": "{mode} perjudica: AP {difference} {interval} respecto a none.",
    },
    text_sentences={
        "helps": "También supera a learned, la misma cabeza con vectores libres ({difference} {interval}): el "
        "significado de los textos aporta algo.",
        "no_difference": "Respecto a learned, la misma cabeza con vectores libres, no se muestra diferencia "
        "({difference} {interval}): nada indica que importe el significado de los textos.",
        "hurts": "Es peor que learned, la misma cabeza con vectores libres ({difference} {interval}): el significado "
        "de los textos no aporta nada.",
    },
    text_unknown="No se ejecutó el modo learned, así que no se distinguen los parámetros de la cabeza del "
    "significado de los textos.",
    text_other_head="Respecto a learned: {difference} {interval}, pero este tiene la cabeza {head}, así que no "
    "indica qué aporta el significado de los textos; lo hace -u MultimodalFusion.control_head={mode} en otro "
    "--output-dir.",
    reason_sentences={
        "reference": "",
        "control": "",
        "random_weights": "{mode}: sin veredicto. El codificador de texto tiene pesos aleatorios: sus vectores no "
        "significan nada y esta ejecución solo muestra que el mecanismo funciona.",
        "few_seeds": "{mode}: sin veredicto. Con menos de tres semillas no se distingue el modo del azar del "
        "entrenamiento.",
        "no_reference": "{mode}: sin veredicto. No se ejecutó el modo none; añádalo con --modes none.",
        "no_boxes": "{mode}: sin veredicto. La partición no tiene cajas con las que medir.",
    },
    control_sentence="{mode} (control): AP {difference} {interval} respecto a none.",
    notes="Notas",
    note_interval="El veredicto es el lado del 0 en el que queda el intervalo del 95 % de la diferencia respecto a "
    "none. El intervalo suma la varianza sobre las imágenes remuestreadas y la varianza entre semillas (pareadas, n "
    "- 1) y usa la t de Student con los grados de libertad de Welch-Satterthwaite; peca más de ancho que de "
    "estrecho. «No se muestra diferencia» no es «no hay diferencia»: el intervalo indica cuán grande podría ser aún.",
    note_images="El intervalo sobre imágenes es más estrecho porque trata de los modelos ya entrenados; no incluye "
    "lo que darían otras semillas.",
    note_several="Se comparan {count} modos con none, cada uno al 95 %: aunque ninguno tuviera efecto, en hasta "
    "cerca del {chance} de las ablaciones así se declararía distinto alguno.",
    note_selection="De cada ejecución se evalúa best.pth, elegido en {split}, igual en todos los modos: los niveles "
    "pueden ser algo optimistas; las diferencias, mucho menos.",
    note_references="none: las mismas épocas sin cabeza de texto. learned: una cabeza con vectores libres en "
    "lugar de textos. Una mejora sobre none que también tiene learned no se debe al texto.",
    note_controls="random (vectores aleatorios fijos) y shuffled (los textos de las clases equivocadas) se sortean de "
    "nuevo con cada semilla.",
    note_source="Textos: {source}, idioma {language}.",
    note_no_texts="No se ejecutó ningún modo que lea textos: no hay similitud, ni puntuación solo con texto, ni "
    "veredicto.",
    note_random_weights="ATENCIÓN: el codificador de texto {source} no está entrenado. Nada de esto dice algo sobre el "
    "texto.",
    note_few_seeds="ATENCIÓN: {count} semilla(s); los veredictos necesitan tres o más.",
    note_no_none="ATENCIÓN: no se ejecutó el modo none, así que no hay veredictos.",
    note_no_learned="No se ejecutó el modo learned: una mejora no puede atribuirse al significado de los textos.",
    note_alike="ATENCIÓN: textos casi iguales para el codificador: {pairs}. El texto no puede distinguir esas clases.",
    note_zero_shot="La puntuación solo con texto usa la torre de imagen del propio codificador sobre las cajas "
    "recortadas y completadas hasta un cuadrado, sin entrenamiento.",
    note_zero_shot_failed="Sin puntuación de las cajas solo con texto: {reason}",
    note_text_only="Sin puntuación de las cajas solo con texto: el codificador solo lee texto. CLIP y SigLIP también "
    "ven imágenes.",
    note_no_boxes="Sin puntuación solo con texto: la partición no tiene cajas.",
    metrics={"AP": "AP", "AP50": "AP50", "AP75": "AP75", DEFECTS: "AP sin NORMAL"},
    figure_axis="Similitud coseno",
)

_TEXTS: Mapping[Language, Texts] = {"en": _ENGLISH, "es": _SPANISH}


def texts_of(lang: Language) -> Texts:
    """The texts of one language."""
    return _TEXTS[lang]
