"""What a comparison says, in Spanish and English."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.compare import DEFECTS
from analysis.labels import Language


@dataclass(frozen=True)
class Texts:
    """The texts of one language; braces are filled in with `str.format`."""

    title: str
    intro: str
    main_caption: str
    seeds_caption: str
    classes_caption: str
    differences_caption: str
    model: str
    seeds: str
    class_: str
    metric: str
    difference: str
    p: str
    p_holm: str
    parameters: str
    gflops: str
    latency: str
    inference_memory: str
    training_memory: str
    epochs: str
    training_hours: str
    notes: str
    note_seeds: str
    note_cost: str
    note_differences: str
    note_devices: str
    note_configs: str
    note_unknown_config: str
    note_same_seed: str
    metrics: Mapping[str, str]
    axis_parameters: str
    axis_latency: str
    axis_memory: str
    axis_ap: str


_ENGLISH = Texts(
    title="Model comparison",
    intro="Split {split}, {images} images (gt_hash {gt_hash}). Brackets: 95 % intervals of a bootstrap over images, "
    "{samples} resamples, seed {seed}, the same images for every model.",
    main_caption="Detection quality and cost. Brackets: 95 % intervals of a bootstrap over the {images} images.",
    seeds_caption="± is the standard deviation over seeds.",
    classes_caption="AP of each class. Brackets: 95 % intervals of a bootstrap over the {images} images.",
    differences_caption="Differences from {reference} on the same images (paired bootstrap), with 95 % intervals. "
    "Two-sided p-values, as they are and after Holm's correction over the models.",
    model="Model",
    seeds="Seeds",
    class_="Class",
    metric="Metric",
    difference="Difference",
    p="p",
    p_holm="p (Holm)",
    parameters="Parameters (M)",
    gflops="GFLOPs",
    latency="Latency (ms)",
    inference_memory="Memory, inference (MB)",
    training_memory="Memory, training (MB)",
    epochs="Epochs",
    training_hours="Training (h)",
    notes="Notes",
    note_seeds="Several seeds are one row: mean ± standard deviation (n - 1) of the seeds. The interval is of the mean "
    "and tells how much the choice of test images matters; the spread over seeds is not in it, nor in the p-values.",
    note_cost="Latency: median for one image, from the image on the device to detections. Memory: peak for one image, "
    "and of one training step. Epochs and training time: until the judged checkpoint.",
    note_differences="The smallest p that {samples} resamples can show is {smallest}.",
    note_devices="CAUTION: cost was measured under different conditions and cannot be compared: {devices}.",
    note_configs="CAUTION: the runs joined under the label {label} have different configs: {keys}.",
    note_unknown_config="No config was found for {folders}: not joined with other seeds. Give the seeds of one config "
    "the same label with --labels to join them.",
    note_same_seed="Of equal config and checkpoint, yet kept apart because their seeds are not different: {folders}.",
    metrics={"AP": "AP", "AP50": "AP50", "AP75": "AP75", DEFECTS: "AP without NORMAL"},
    axis_parameters="Parameters (millions)",
    axis_latency="Median latency of one image (ms)",
    axis_memory="Peak memory, inference of one image (MB)",
    axis_ap="AP with 95\u00a0% interval",
)

_SPANISH = Texts(
    title="Comparación de modelos",
    intro="Partición {split}, {images} imágenes (gt_hash {gt_hash}). Entre corchetes: intervalos del 95 % de un "
    "bootstrap sobre las imágenes, {samples} remuestreos, semilla {seed}, las mismas imágenes para todos los modelos.",
    main_caption="Calidad de detección y coste. Entre corchetes: intervalos del 95 % de un bootstrap sobre las "
    "{images} imágenes.",
    seeds_caption="± es la desviación estándar entre semillas.",
    classes_caption="AP de cada clase. Entre corchetes: intervalos del 95 % de un bootstrap sobre las {images} "
    "imágenes.",
    differences_caption="Diferencias respecto a {reference} sobre las mismas imágenes (bootstrap pareado), con "
    "intervalos del 95 %. Valores p bilaterales, sin corregir y con la corrección de Holm sobre los modelos.",
    model="Modelo",
    seeds="Semillas",
    class_="Clase",
    metric="Métrica",
    difference="Diferencia",
    p="p",
    p_holm="p (Holm)",
    parameters="Parámetros (M)",
    gflops="GFLOPs",
    latency="Latencia (ms)",
    inference_memory="Memoria, inferencia (MB)",
    training_memory="Memoria, entrenamiento (MB)",
    epochs="Épocas",
    training_hours="Entrenamiento (h)",
    notes="Notas",
    note_seeds="Varias semillas forman una fila: media ± desviación estándar (n - 1) de las semillas. El intervalo es "
    "el de la media e indica cuánto importa la elección de las imágenes de prueba; ni él ni los valores p incluyen la "
    "variación entre semillas.",
    note_cost="Latencia: mediana para una imagen, desde la imagen en el dispositivo hasta las detecciones. Memoria: "
    "máximo para una imagen y de un paso de entrenamiento. Épocas y tiempo de entrenamiento: hasta el punto de "
    "control evaluado.",
    note_differences="El menor valor p que pueden mostrar {samples} remuestreos es {smallest}.",
    note_devices="ATENCIÓN: el coste se midió en condiciones distintas y no es comparable: {devices}.",
    note_configs="ATENCIÓN: las ejecuciones unidas con la etiqueta {label} tienen configuraciones distintas: {keys}.",
    note_unknown_config="No se encontró la configuración de {folders}: sin unir con otras semillas. Para unirlas, dé "
    "la misma etiqueta con --labels a las semillas de una configuración.",
    note_same_seed="Con igual configuración y punto de control, pero separadas porque sus semillas no son distintas: "
    "{folders}.",
    metrics={"AP": "AP", "AP50": "AP50", "AP75": "AP75", DEFECTS: "AP sin NORMAL"},
    axis_parameters="Parámetros (millones)",
    axis_latency="Latencia mediana de una imagen (ms)",
    axis_memory="Memoria máxima, inferencia de una imagen (MB)",
    axis_ap="AP con intervalo del 95\u00a0%",
)

_TEXTS: Mapping[Language, Texts] = {"en": _ENGLISH, "es": _SPANISH}


def texts_of(lang: Language) -> Texts:
    """The texts of one language."""
    return _TEXTS[lang]
