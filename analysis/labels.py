"""Every text that figures, gallery and report show, in Spanish and in English, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from analysis.result import ERROR_KINDS, ErrorKind, Interval
from data.errors import UserError
from engine.coco_metrics import METRIC_NAMES

Language = Literal["es", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

NOTHING = "–"
"""Stands where nothing could be measured."""

_CARRIED_SEPARATELY = 10_000


@dataclass(frozen=True)
class Labels:
    """The texts of one language. A text in braces is filled in with `str.format`."""

    language: Language
    decimal_mark: str
    group_mark: str
    """Between groups of three digits."""
    between: str
    """Between the ends of an interval; a decimal comma needs something else than a comma."""

    # Words of several figures
    precision: str
    recall: str
    f1: str
    score_threshold: str
    mean: str
    mean_of_classes: str
    all_classes: str
    best_threshold: str
    classes_together: str
    """One grey line a class: {count}."""
    no_ground_truth: str
    count: str
    interval_95: str
    interval_of: str

    # Figures: titles, axes, alternative texts
    pr_title: str
    pr_mean_iou: str
    pr_alt: str
    f1_title: str
    f1_best: str
    f1_each_class: str
    f1_no_best: str
    f1_alt: str
    confusion_title: str
    confusion_counts_title: str
    confusion_setting: str
    confusion_true: str
    confusion_predicted: str
    confusion_background: str
    confusion_missed: str
    confusion_share: str
    confusion_alt: str
    confusion_counts_alt: str
    errors_title: str
    errors_cost: str
    errors_count: str
    errors_alt: str
    image_level_title: str
    image_level_false_alarms: str
    image_level_miss_rate: str
    image_level_no_clean: str
    image_level_no_defective: str
    image_level_alt: str
    sizes_title: str
    sizes_axis: str
    sizes_boxes: str
    sizes_annotated: str
    sizes_found: str
    sizes_share_found: str
    sizes_alt: str
    class_ap_title: str
    class_ap_axis: str
    class_ap_alt: str

    # Gallery
    gallery_missed: str
    gallery_false_alarms: str
    gallery_truth: str
    gallery_prediction: str
    gallery_finding: str
    gallery_touched: str
    gallery_not_touched: str
    gallery_alt: str
    gallery_page: str
    gallery_left_out: str
    gallery_empty: str

    # Report
    report_title: str
    report_contents: str
    report_split: str
    report_images: str
    report_summary: str
    report_metric: str
    report_metrics: str
    report_meaning: str
    report_all: str
    report_defects: str
    report_bootstrap: str
    report_thresholds: str
    report_per_class: str
    report_class: str
    report_boxes: str
    report_class_images: str
    report_threshold: str
    report_curves: str
    report_confusion: str
    report_confusions: str
    report_confusion_truth: str
    report_confusion_taken_for: str
    report_confusion_share: str
    report_no_confusions: str
    report_errors: str
    report_error: str
    report_image_level: str
    report_operating_points: str
    report_operating_point: str
    report_at_best_f1: str
    report_miss_at_most: str
    report_clean_images: str
    report_defective_images: str
    report_sizes: str
    report_size_bin: str
    report_gallery: str
    report_cost: str
    report_no_cost: str
    report_parameters: str
    report_gflops: str
    report_gflops_value: str
    report_inference_memory: str
    report_training_memory: str
    report_device: str
    report_latency: str
    report_batch: str
    report_median: str
    report_p95: str
    report_throughput: str
    report_repeats: str
    report_cost_setting: str
    report_facts: str
    report_fact: str
    report_value: str
    report_sort_hint: str
    report_scroll: str
    yes: str
    no: str

    metric_meanings: Mapping[str, str]
    """Of COCO's twelve numbers."""
    error_kinds: Mapping[ErrorKind, str]
    """Short, for axes."""
    error_meanings: Mapping[ErrorKind, str]
    facts: Mapping[str, str]
    """Names of the facts of a run; a fact that is not here is shown under its key."""

    def __post_init__(self) -> None:
        for given, needed in (
            (self.metric_meanings, METRIC_NAMES),
            (self.error_kinds, ERROR_KINDS),
            (self.error_meanings, ERROR_KINDS),
        ):
            if set(given) != set(needed):
                raise ValueError(f"{self.language}: texts for {sorted(given)}, expected {sorted(needed)}")

    def number(self, value: float | None, decimals: int = 3) -> str:
        """A number with a fixed count of decimals; a dash for None and NaN."""
        if value is None or math.isnan(value):
            return NOTHING
        if math.isinf(value):
            return "∞" if value > 0 else "\u2212∞"
        whole, _, fraction = f"{abs(value):.{decimals}f}".partition(".")
        digits = self._grouped(int(whole)) + (f"{self.decimal_mark}{fraction}" if fraction else "")
        negative = value < 0 and any(digit in "123456789" for digit in digits)
        return f"\u2212{digits}" if negative else digits

    def integer(self, value: int | None) -> str:
        """A whole number in groups of three digits; a dash for None."""
        return NOTHING if value is None else self.number(float(value), 0)

    def percent(self, fraction: float | None, decimals: int = 1) -> str:
        """A fraction as a percentage, with the space both styles of print want (ISO 80000-1)."""
        return (
            NOTHING if fraction is None or math.isnan(fraction) else f"{self.number(100 * fraction, decimals)}\u00a0%"
        )

    def interval(self, interval: Interval | None, decimals: int = 3) -> str:
        """`[low, high]`; a dash for None."""
        if interval is None or math.isnan(interval.low) or math.isnan(interval.high):
            return NOTHING
        return f"[{self.number(interval.low, decimals)}{self.between}{self.number(interval.high, decimals)}]"

    def _grouped(self, whole: int) -> str:
        # Four digits stand together in Spanish, and in tables of either language.
        return str(whole) if whole < _CARRIED_SEPARATELY else f"{whole:,}".replace(",", self.group_mark)


def labels_of(language: str) -> Labels:
    """The texts of a language.

    Raises:
        UserError: There are no texts in it.
    """
    if language not in _LABELS:
        raise UserError(f"Language {language!r} is not known: choose {' or '.join(LANGUAGES)}.")
    return _LABELS[language]


_ENGLISH = Labels(
    language="en",
    decimal_mark=".",
    group_mark=",",
    between=", ",
    precision="Precision",
    recall="Recall",
    f1="F1",
    score_threshold="Confidence threshold",
    mean="mean",
    mean_of_classes="Mean of the classes",
    all_classes="All classes together",
    best_threshold="Best threshold",
    classes_together="Single classes ({count})",
    no_ground_truth="no annotated boxes",
    count="Count",
    interval_95="95\u00a0% interval",
    interval_of="{name}, 95\u00a0% CI",
    pr_title="Precision against recall",
    pr_mean_iou="IoU 0.50 to 0.95, mean",
    pr_alt="Precision-recall curves of {classes} classes and their mean, at IoU 0.50, at IoU 0.75 and averaged over "
    "IoU 0.50 to 0.95. AP {ap}, AP50 {ap50}, AP75 {ap75}.",
    f1_title="F1 against the confidence threshold",
    f1_best="best F1 {f1} at confidence {score}",
    f1_each_class="Each class",
    f1_no_best="no best threshold",
    f1_alt="F1 of every class, and precision, recall and F1 of all classes together, against the confidence "
    "threshold at IoU 0.5. Best threshold {score}: F1 {f1}, precision {precision}, recall {recall}.",
    confusion_title="Confusion matrix, shares of each true class",
    confusion_counts_title="Confusion matrix, counts",
    confusion_setting="IoU ≥ {iou}, confidence ≥ {score}",
    confusion_true="True class",
    confusion_predicted="Predicted class",
    confusion_background="background",
    confusion_missed="missed",
    confusion_share="Share of the row",
    confusion_alt="Confusion matrix of {classes} classes and background, each row divided by its sum, at IoU {iou} and "
    "confidence {score}. {right} of {total} annotated boxes are found as their own class.",
    confusion_counts_alt="Confusion matrix of {classes} classes and background in counts, at IoU {iou} and confidence "
    "{score}. {right} of {total} annotated boxes are found as their own class.",
    errors_title="What the errors cost",
    errors_cost="AP50 gained without them",
    errors_count="How many, at any confidence",
    errors_alt="Errors by kind: AP50 that mending only this kind would gain, and their number. {items}.",
    image_level_title="Defect or no defect: AUROC {auroc}",
    image_level_false_alarms="False alarms per defect-free image",
    image_level_miss_rate="Share of defective images missed",
    image_level_no_clean="no defect-free images",
    image_level_no_defective="no defective images",
    image_level_alt="False alarms per defect-free image ({clean} images) and share of defective images missed "
    "({defective} images), against the confidence threshold. AUROC {auroc}.",
    sizes_title="Annotated and found boxes by size",
    sizes_axis="Size of the box: square root of its area (px)",
    sizes_boxes="Boxes",
    sizes_annotated="annotated",
    sizes_found="found",
    sizes_share_found="Share found",
    sizes_alt="Histogram of the annotated boxes by size, and how many of them are found: {found} of {total}.",
    class_ap_title="Average precision of each class with 95\u00a0% intervals",
    class_ap_axis="Average precision",
    class_ap_alt="AP and AP50 of each class with 95 % intervals. {items}.",
    gallery_missed="Worst misses",
    gallery_false_alarms="Worst false alarms",
    gallery_truth="annotated",
    gallery_prediction="predicted (confidence ≥ {score})",
    gallery_finding="the finding: thick line",
    gallery_touched="touched with confidence {score}",
    gallery_not_touched="nothing near",
    gallery_alt="{title}: {count} crops with annotated and predicted boxes. {items}.",
    gallery_page="{title} ({page} of {pages})",
    gallery_left_out="Left out of the gallery:",
    gallery_empty="None.",
    report_title="Evaluation report",
    report_contents="Contents",
    report_split="Split",
    report_images="Images",
    report_summary="Summary",
    report_metric="Number",
    report_metrics="COCO's twelve numbers",
    report_meaning="Meaning",
    report_all="All classes",
    report_defects="Without NORMAL",
    report_bootstrap="Intervals: 95\u00a0%, from a bootstrap over images ({samples} resamples), its bias taken off.",
    report_thresholds="Confidence threshold with the best F1 (IoU 0.5)",
    report_per_class="Classes",
    report_class="Class",
    report_boxes="Boxes",
    report_class_images="Images",
    report_threshold="Threshold",
    report_curves="Curves",
    report_confusion="Confusion",
    report_confusions="Most frequent confusions",
    report_confusion_truth="True class",
    report_confusion_taken_for="Taken for",
    report_confusion_share="Share of the true class",
    report_no_confusions="No class is taken for another.",
    report_errors="Errors",
    report_error="Error",
    report_image_level="Image level",
    report_operating_points="Operating points",
    report_operating_point="Operating point",
    report_at_best_f1="Best F1",
    report_miss_at_most="At most {share} of the defective images missed",
    report_clean_images="Defect-free images",
    report_defective_images="Defective images",
    report_sizes="Sizes",
    report_size_bin="Size (px)",
    report_gallery="Gallery",
    report_cost="Cost",
    report_no_cost="Not measured.",
    report_parameters="Parameters",
    report_gflops="GFLOPs",
    report_gflops_value="{gflops} at {height} × {width} px (a multiply-add counts as two)",
    report_inference_memory="Peak memory, inference of one image",
    report_training_memory="Peak memory, one training step",
    report_device="Measured on",
    report_latency="Latency",
    report_batch="Images per batch",
    report_median="Median (ms)",
    report_p95="95th percentile (ms)",
    report_throughput="Images per second",
    report_repeats="Timed runs",
    report_cost_setting="{device}, {dtype}, {threads} threads",
    report_facts="Run",
    report_fact="Fact",
    report_value="Value",
    report_sort_hint="A click on a column's heading sorts the table by it.",
    report_scroll="{title}, can be scrolled",
    yes="yes",
    no="no",
    metric_meanings={
        "AP": "mean over IoU 0.50 to 0.95",
        "AP50": "IoU 0.50",
        "AP75": "IoU 0.75",
        "AP_small": "area below 32 × 32 px",
        "AP_medium": "area from 32 × 32 to 96 × 96 px",
        "AP_large": "area above 96 × 96 px",
        "AR_1": "recall, 1 detection per image",
        "AR_10": "recall, 10 detections per image",
        "AR_100": "recall, 100 detections per image",
        "AR_small": "recall, area below 32 × 32 px",
        "AR_medium": "recall, area from 32 × 32 to 96 × 96 px",
        "AR_large": "recall, area above 96 × 96 px",
    },
    error_kinds={
        "classification": "classification",
        "localisation": "localisation",
        "both": "class and place",
        "duplicate": "duplicate",
        "background": "background",
        "missed": "missed",
    },
    error_meanings={
        "classification": "right place, wrong class",
        "localisation": "right class, box too far off (IoU 0.1 to 0.5)",
        "both": "wrong class and box too far off",
        "duplicate": "a second detection of a box already found",
        "background": "a detection where nothing is annotated (IoU below 0.1)",
        "missed": "an annotated box that no detection explains",
    },
    facts={
        "checkpoint": "Checkpoint",
        "weights": "Weights",
        "epoch": "Epoch",
        "epochs": "Epochs planned",
        "seed": "Seed",
        "parameters": "Parameters",
        "train_seconds": "Training time (s)",
        "seconds_per_image": "Evaluation time per image (s)",
        "use_amp": "Mixed precision",
        "nms_iou": "Suppression of repeats above an IoU of",
        "config": "Configuration",
        "device": "Device",
        "split": "Split",
        "gt_hash": "Hash of images and annotations",
        "versions": "Versions",
    },
)

_SPANISH = Labels(
    language="es",
    decimal_mark=",",
    group_mark="\u202f",
    between="; ",
    precision="Precisión",
    recall="Exhaustividad",
    f1="F1",
    score_threshold="Umbral de confianza",
    mean="media",
    mean_of_classes="Media de las clases",
    all_classes="Todas las clases juntas",
    best_threshold="Mejor umbral",
    classes_together="Cada clase ({count})",
    no_ground_truth="sin cajas anotadas",
    count="Cantidad",
    interval_95="Intervalo del 95\u00a0%",
    interval_of="{name}, IC 95\u00a0%",
    pr_title="Precisión frente a exhaustividad",
    pr_mean_iou="Media de IoU 0,50 a 0,95",
    pr_alt="Curvas de precisión y exhaustividad de {classes} clases y su media, con IoU 0,50, con IoU 0,75 y en "
    "promedio de IoU 0,50 a 0,95. AP {ap}, AP50 {ap50}, AP75 {ap75}.",
    f1_title="F1 según el umbral de confianza",
    f1_best="mejor F1 {f1} con umbral {score}",
    f1_each_class="Cada clase",
    f1_no_best="sin mejor umbral",
    f1_alt="F1 de cada clase, y precisión, exhaustividad y F1 de todas las clases juntas, según el umbral de "
    "confianza, con IoU 0,5. Mejor umbral {score}: F1 {f1}, precisión {precision}, exhaustividad {recall}.",
    confusion_title="Matriz de confusión, proporción de cada clase real",
    confusion_counts_title="Matriz de confusión, cantidades",
    confusion_setting="IoU ≥ {iou}, confianza ≥ {score}",
    confusion_true="Clase real",
    confusion_predicted="Clase predicha",
    confusion_background="fondo",
    confusion_missed="omitido",
    confusion_share="Proporción de la fila",
    confusion_alt="Matriz de confusión de {classes} clases y fondo, cada fila dividida por su suma, con IoU {iou} y "
    "confianza {score}. Se detectan con su propia clase {right} de {total} cajas anotadas.",
    confusion_counts_alt="Matriz de confusión de {classes} clases y fondo, en cantidades, con IoU {iou} y confianza "
    "{score}. Se detectan con su propia clase {right} de {total} cajas anotadas.",
    errors_title="Coste de los errores",
    errors_cost="AP50 que se ganaría sin ellos",
    errors_count="Cuántos, con cualquier confianza",
    errors_alt="Errores por tipo: AP50 que se ganaría al corregir solo ese tipo, y su cantidad. {items}.",
    image_level_title="Con defecto o sin defecto: AUROC {auroc}",
    image_level_false_alarms="Falsas alarmas por imagen sin defectos",
    image_level_miss_rate="Proporción de imágenes defectuosas omitidas",
    image_level_no_clean="no hay imágenes sin defectos",
    image_level_no_defective="no hay imágenes defectuosas",
    image_level_alt="Falsas alarmas por imagen sin defectos ({clean} imágenes) y proporción de imágenes defectuosas "
    "omitidas ({defective} imágenes), según el umbral de confianza. AUROC {auroc}.",
    sizes_title="Cajas anotadas y detectadas según su tamaño",
    sizes_axis="Tamaño de la caja: raíz cuadrada de su área (px)",
    sizes_boxes="Cajas",
    sizes_annotated="anotadas",
    sizes_found="detectadas",
    sizes_share_found="Proporción detectada",
    sizes_alt="Histograma de las cajas anotadas según su tamaño, y cuántas se detectan: {found} de {total}.",
    class_ap_title="Precisión media (AP) de cada clase con intervalos del 95\u00a0%",
    class_ap_axis="Precisión media (AP)",
    class_ap_alt="AP y AP50 de cada clase con intervalos del 95 %. {items}.",
    gallery_missed="Peores omisiones",
    gallery_false_alarms="Peores falsas alarmas",
    gallery_truth="anotado",
    gallery_prediction="predicho (confianza ≥ {score})",
    gallery_finding="el hallazgo: línea gruesa",
    gallery_touched="tocada con confianza {score}",
    gallery_not_touched="nada cerca",
    gallery_alt="{title}: {count} recortes con cajas anotadas y predichas. {items}.",
    gallery_page="{title} ({page} de {pages})",
    gallery_left_out="No figuran en la galería:",
    gallery_empty="Ninguna.",
    report_title="Informe de evaluación",
    report_contents="Contenido",
    report_split="Partición",
    report_images="Imágenes",
    report_summary="Resumen",
    report_metric="Cifra",
    report_metrics="Las doce cifras de COCO",
    report_meaning="Significado",
    report_all="Todas las clases",
    report_defects="Sin NORMAL",
    report_bootstrap="Intervalos del 95\u00a0% de un bootstrap sobre las imágenes ({samples} remuestreos), "
    "corregidos por su sesgo.",
    report_thresholds="Umbral de confianza con el mejor F1 (IoU 0,5)",
    report_per_class="Clases",
    report_class="Clase",
    report_boxes="Cajas",
    report_class_images="Imágenes",
    report_threshold="Umbral",
    report_curves="Curvas",
    report_confusion="Confusión",
    report_confusions="Confusiones más frecuentes",
    report_confusion_truth="Clase real",
    report_confusion_taken_for="Tomada por",
    report_confusion_share="Proporción de la clase real",
    report_no_confusions="Ninguna clase se toma por otra.",
    report_errors="Errores",
    report_error="Error",
    report_image_level="Por imagen",
    report_operating_points="Puntos de operación",
    report_operating_point="Punto de operación",
    report_at_best_f1="Mejor F1",
    report_miss_at_most="Se omite como máximo el {share} de las imágenes defectuosas",
    report_clean_images="Imágenes sin defectos",
    report_defective_images="Imágenes defectuosas",
    report_sizes="Tamaños",
    report_size_bin="Tamaño (px)",
    report_gallery="Galería",
    report_cost="Coste",
    report_no_cost="No se ha medido.",
    report_parameters="Parámetros",
    report_gflops="GFLOPs",
    report_gflops_value="{gflops} con {height} × {width} px (una multiplicación con suma cuenta dos veces)",
    report_inference_memory="Memoria máxima, inferencia de una imagen",
    report_training_memory="Memoria máxima, un paso de entrenamiento",
    report_device="Medido en",
    report_latency="Latencia",
    report_batch="Imágenes por lote",
    report_median="Mediana (ms)",
    report_p95="Percentil 95 (ms)",
    report_throughput="Imágenes por segundo",
    report_repeats="Medidas",
    report_cost_setting="{device}, {dtype}, {threads} hilos",
    report_facts="Ejecución",
    report_fact="Dato",
    report_value="Valor",
    report_sort_hint="Al pulsar el encabezado de una columna, la tabla se ordena por ella.",
    report_scroll="{title}, desplazable",
    yes="sí",
    no="no",
    metric_meanings={
        "AP": "media de IoU 0,50 a 0,95",
        "AP50": "IoU 0,50",
        "AP75": "IoU 0,75",
        "AP_small": "área menor que 32 × 32 px",
        "AP_medium": "área de 32 × 32 a 96 × 96 px",
        "AP_large": "área mayor que 96 × 96 px",
        "AR_1": "exhaustividad, 1 detección por imagen",
        "AR_10": "exhaustividad, 10 detecciones por imagen",
        "AR_100": "exhaustividad, 100 detecciones por imagen",
        "AR_small": "exhaustividad, área menor que 32 × 32 px",
        "AR_medium": "exhaustividad, área de 32 × 32 a 96 × 96 px",
        "AR_large": "exhaustividad, área mayor que 96 × 96 px",
    },
    error_kinds={
        "classification": "clasificación",
        "localisation": "localización",
        "both": "clase y lugar",
        "duplicate": "duplicado",
        "background": "fondo",
        "missed": "omitido",
    },
    error_meanings={
        "classification": "lugar correcto, clase equivocada",
        "localisation": "clase correcta, caja demasiado desviada (IoU de 0,1 a 0,5)",
        "both": "clase equivocada y caja demasiado desviada",
        "duplicate": "una segunda detección de una caja ya detectada",
        "background": "una detección donde no hay nada anotado (IoU menor que 0,1)",
        "missed": "una caja anotada que ninguna detección explica",
    },
    facts={
        "checkpoint": "Punto de control",
        "weights": "Pesos",
        "epoch": "Época",
        "epochs": "Épocas previstas",
        "seed": "Semilla",
        "parameters": "Parámetros",
        "train_seconds": "Tiempo de entrenamiento (s)",
        "seconds_per_image": "Tiempo de evaluación por imagen (s)",
        "use_amp": "Precisión mixta",
        "nms_iou": "Supresión de repeticiones con IoU mayor que",
        "config": "Configuración",
        "device": "Dispositivo",
        "split": "Partición",
        "gt_hash": "Hash de imágenes y anotaciones",
        "versions": "Versiones",
    },
)

_LABELS: Mapping[str, Labels] = {"es": _SPANISH, "en": _ENGLISH}
