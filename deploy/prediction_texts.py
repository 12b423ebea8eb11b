"""What prediction says to its user, in Spanish and in English."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.labels import Language


@dataclass(frozen=True)
class Texts:
    """The texts of one language. A text in braces is filled in with `str.format`."""

    image_columns: tuple[str, ...]
    """Of predictions.csv."""
    video_columns: tuple[str, ...]
    """Of a video's table."""
    seen: str
    """{images}, {frames} and {seconds}."""
    found: str
    nothing: str
    stretched: str
    """{count} of {total}, {example}."""
    given_threshold: str
    evaluated_thresholds: str
    default_threshold: str
    failures: str
    stopped: str
    written: str
    decimal_mark: str
    delimiter: str
    """Between the columns of a table, as the language's spreadsheets expect it."""


TEXTS: Mapping[Language, Texts] = {
    "en": Texts(
        image_columns=("file", "width", "height", "class", "category_id", "score", "xmin", "ymin", "xmax", "ymax"),
        video_columns=("frame", "seconds", "class", "category_id", "score", "xmin", "ymin", "xmax", "ymax"),
        seen="Looked at {images} images and {frames} video frames in {seconds} s.",
        found="Found {total} objects: {classes}",
        nothing="Found nothing above the thresholds.",
        stretched="12-bit values in 16-bit images ({count} of {total}, e.g. {example}): stretched from 0..4095, as in "
        "training.",
        given_threshold="Score thresholds (given): {thresholds}",
        evaluated_thresholds="Score thresholds with the best F1, from {source}: {thresholds}",
        default_threshold="Score thresholds: {thresholds}. Beside this checkpoint is no evaluation of it on its own "
        "validation split; evaluate_deimv2.py finds the best ones, --score gives one.",
        failures="{count} files could not be read and were left out:",
        stopped="Stopped before the end.",
        written="Written to {folder}",
        decimal_mark=".",
        delimiter=",",
    ),
    "es": Texts(
        image_columns=(
            "archivo",
            "ancho",
            "alto",
            "clase",
            "id_categoria",
            "puntuacion",
            "xmin",
            "ymin",
            "xmax",
            "ymax",
        ),
        video_columns=("fotograma", "segundos", "clase", "id_categoria", "puntuacion", "xmin", "ymin", "xmax", "ymax"),
        seen="Se han mirado {images} imágenes y {frames} fotogramas de vídeo en {seconds} s.",
        found="Se han encontrado {total} objetos: {classes}",
        nothing="No se ha encontrado nada por encima de los umbrales.",
        stretched="Valores de 12 bits en imágenes de 16 bits ({count} de {total}, p. ej. {example}): ampliados desde "
        "0..4095, como en el entrenamiento.",
        given_threshold="Umbrales de puntuación (dados): {thresholds}",
        evaluated_thresholds="Umbrales de puntuación con el mejor F1, de {source}: {thresholds}",
        default_threshold="Umbrales de puntuación: {thresholds}. Junto a este checkpoint no hay una evaluación suya en "
        "su propia partición de validación; evaluate_deimv2.py halla los mejores, --score da uno.",
        failures="{count} archivos no se han podido leer y se han omitido:",
        stopped="Detenido antes del final.",
        written="Escrito en {folder}",
        decimal_mark=",",
        delimiter=";",
    ),
}
