"""The texts of the attention figures in Spanish and in English."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.labels import Labels, labels_of


@dataclass(frozen=True)
class Wording:
    """The texts of one language. A text in braces is filled in with `str.format`."""

    labels: Labels
    """For numbers."""
    image: str
    truth_and_predictions: str
    predictions: str
    no_object: str
    query: str
    detection: str
    block: str
    block_read: str
    head: str
    mean_of_heads: str
    attention: str
    attention_share: str
    sampling: str
    sampling_points: str
    sampling_layer: str
    sampling_weight: str
    reference: str
    stride: str
    refinement: str
    refinement_step: str
    self_attention: str
    self_attention_to_itself: str
    self_attention_layer: str
    edges: Mapping[str, str]
    edge_title: str
    edge_axis_x: str
    edge_axis_y: str
    probability: str
    rollout_class: str
    rollout_focus: str
    features_pca: str
    similarity_block: str
    similarity: str
    relative_evidence: str
    evidence: Mapping[str, str]
    focus_point: str
    focus_object: str
    focus_centre: str

    # Captions
    main_caption: str
    baseline_caption: str
    class_caption: str
    patch_caption: str
    prefix_note: str
    features_caption: str
    object_caption: str
    queries_caption: str
    evidence_caption: str
    overview_caption: str


def wording_of(language: str) -> Wording:
    """The texts of a language.

    Raises:
        UserError: There are no texts in it.
    """
    return {"es": _SPANISH, "en": _ENGLISH}[labels_of(language).language]


_ENGLISH = Wording(
    labels=labels_of("en"),
    image="Image",
    truth_and_predictions="Annotated | predicted (dashed)",
    predictions="Predicted",
    no_object="No object",
    query="Query {query}",
    detection="Detection {query}",
    block="Block {block}",
    block_read="Block {block} (read)",
    head="Head {head}",
    attention="Attention",
    mean_of_heads="Mean of the heads, block {block}",
    attention_share="Share of the attention",
    sampling="Sampling points, layer {layer}",
    sampling_points="Sampling points",
    sampling_layer="Layer {layer}",
    sampling_weight="Weight of a point",
    reference="reference",
    stride="stride {stride}",
    refinement="Box by layer",
    refinement_step="{layer}: IoU {iou}",
    self_attention="Self-attention, layer {layer}",
    self_attention_to_itself="to itself {share}",
    self_attention_layer="Layer {layer}",
    edges={"left": "Left", "top": "Top", "right": "Right", "bottom": "Bottom"},
    edge_title="{edge}: {value} ± {spread} px",
    edge_axis_x="x (px)",
    edge_axis_y="y (px)",
    probability="Probability",
    rollout_class="Rollout from CLS",
    rollout_focus="Rollout from the patches",
    features_pca="Features (PCA), block {block}",
    similarity_block="Similarity, block {block}",
    similarity="Cosine similarity",
    relative_evidence="Evidence (share of the maximum)",
    evidence={"grad_cam": "Grad-CAM", "hires_cam": "HiResCAM", "eigen_cam": "Eigen-CAM"},
    focus_point="the patch at x = {x}, y = {y} px",
    focus_object="the patches inside the box of query {query} ({name} {score})",
    focus_centre="the patch at the image's centre",
    main_caption="Attention maps: mean over {focus}, after block {block}, the last that the detector reads; panels "
    "share one scale. Sampling points: decoder layer {layer}, size and colour by weight, cross: reference point, lines "
    "to the centre of the predicted box.",
    baseline_caption="Evidence: {method} for the best detection. A CNN has no attention to show.",
    class_caption="Attention of the class token (CLS) to the patches, by head; panels share one scale. The last "
    "block's CLS never reaches the detector, which reads patch tokens of the blocks marked as read: earlier CLS tokens "
    "act on them only through attention.",
    patch_caption="Attention of {focus} to all patches, by head; panels share one scale. These are tokens that the "
    "detector reads after the blocks marked as read.",
    prefix_note=" In brackets: share that goes to the class token and the registers, which have no place in the image.",
    features_caption="Attention rollout (residual path and mean of heads, half each, over {blocks} blocks) from CLS, "
    "whose last state never reaches the detector, and from {focus}. PCA: first three components of the foreground "
    "patches of {count} image(s) as red, green, blue ({explained} of the variance); grey: background. Similarity of "
    "every patch with {focus}, less the image's mean patch.",
    object_caption="Decoder, query {query} ({name} {score}). Top: sampling points of all heads by layer; size and "
    "colour by weight (sum 1 in a layer), shape by level, cross: reference point, lines to the final box. Below: the "
    "box layer by layer, the queries it attends to, and where each edge of the final box may lie (dotted: start of the "
    "refinement, dashed: expected, solid: annotated).",
    queries_caption="Attention among the best queries by decoder layer (mean of the heads; rows attend to columns; the "
    "rest of a row's 1 goes to queries that are not shown).",
    evidence_caption="Evidence for the class score of each object in {layer}, each map relative to its own maximum. "
    "Eigen-CAM does not know the class.",
    overview_caption="Rows: images. Attention: mean over heads and over the patches of the best object, last block "
    "that the detector reads. Sampling points: last decoder layer. One scale for all rows.",
)

_SPANISH = Wording(
    labels=labels_of("es"),
    image="Imagen",
    truth_and_predictions="Anotado | predicho (trazos)",
    predictions="Predicho",
    no_object="Ningún objeto",
    query="Consulta {query}",
    detection="Detección {query}",
    block="Bloque {block}",
    block_read="Bloque {block} (leído)",
    head="Cabeza {head}",
    attention="Atención",
    mean_of_heads="Media de las cabezas, bloque {block}",
    attention_share="Proporción de la atención",
    sampling="Puntos de muestreo, capa {layer}",
    sampling_points="Puntos de muestreo",
    sampling_layer="Capa {layer}",
    sampling_weight="Peso de un punto",
    reference="referencia",
    stride="paso {stride}",
    refinement="La caja, capa a capa",
    refinement_step="{layer}: IoU {iou}",
    self_attention="Autoatención, capa {layer}",
    self_attention_to_itself="a sí misma {share}",
    self_attention_layer="Capa {layer}",
    edges={"left": "Izquierda", "top": "Arriba", "right": "Derecha", "bottom": "Abajo"},
    edge_title="{edge}: {value} ± {spread} px",
    edge_axis_x="x (px)",
    edge_axis_y="y (px)",
    probability="Probabilidad",
    rollout_class="Rollout desde CLS",
    rollout_focus="Rollout desde los parches",
    features_pca="Características (PCA), bloque {block}",
    similarity_block="Similitud, bloque {block}",
    similarity="Similitud del coseno",
    relative_evidence="Evidencia (proporción del máximo)",
    evidence={"grad_cam": "Grad-CAM", "hires_cam": "HiResCAM", "eigen_cam": "Eigen-CAM"},
    focus_point="el parche en x = {x}, y = {y} px",
    focus_object="los parches dentro de la caja de la consulta {query} ({name} {score})",
    focus_centre="el parche en el centro de la imagen",
    main_caption="Mapas de atención: media sobre {focus}, tras el bloque {block}, el último que lee el detector; los "
    "paneles comparten escala. Puntos de muestreo: capa {layer} del decodificador, tamaño y color según el peso, cruz: "
    "punto de referencia, líneas hasta el centro de la caja predicha.",
    baseline_caption="Evidencia: {method} de la mejor detección. Una CNN no tiene atención que mostrar.",
    class_caption="Atención del token de clase (CLS) a los parches, por cabeza; los paneles comparten escala. El CLS "
    "del último bloque nunca llega al detector, que lee los tokens de parche de los bloques marcados como leídos: los "
    "CLS anteriores solo influyen en ellos mediante la atención.",
    patch_caption="Atención de {focus} a todos los parches, por cabeza; los paneles comparten escala. Son tokens que "
    "el detector lee tras los bloques marcados como leídos.",
    prefix_note=" Entre corchetes: proporción que recae en el token de clase y los registros, que no tienen lugar en "
    "la imagen.",
    features_caption="Rollout de la atención (camino residual y media de las cabezas a partes iguales, {blocks} "
    "bloques) desde CLS, cuyo último estado nunca llega al detector, y desde {focus}. PCA: las tres primeras "
    "componentes de los parches de primer plano de {count} imagen(es) como rojo, verde y azul ({explained} de la "
    "varianza); gris: fondo. Similitud de cada parche con {focus}, tras restar el parche medio de la imagen.",
    object_caption="Decodificador, consulta {query} ({name} {score}). Arriba: puntos de muestreo de todas las cabezas "
    "por capa; tamaño y color según el peso (suma 1 en cada capa), forma según el nivel, cruz: punto de referencia, "
    "líneas hasta la caja final. Debajo: la caja capa a capa, las consultas a las que atiende y dónde puede estar cada "
    "borde de la caja final (puntos: inicio del refinamiento; trazos: esperanza; continua: anotado).",
    queries_caption="Atención entre las mejores consultas por capa del decodificador (media de las cabezas; las filas "
    "atienden a las columnas; el resto hasta 1 recae en consultas que no se muestran).",
    evidence_caption="Evidencia de la confianza en la clase de cada objeto en {layer}, cada mapa relativo a su propio "
    "máximo. Eigen-CAM no conoce la clase.",
    overview_caption="Filas: imágenes. Atención: media sobre las cabezas y sobre los parches del mejor objeto, último "
    "bloque que lee el detector. Puntos de muestreo: última capa del decodificador. Una escala para todas las filas.",
)
