"""What people do with DensePose's answer: body parts and coordinates of every pixel, vertices, small files.

``instances.pred_densepose`` holds maps relative to each box. Here they become pixels of the box, as detectron2's
converters and its ``apply_net.py`` do it. numpy only.

Source: projects/DensePose/densepose/structures, converters, modeling/cse/utils.py.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from tf_d2.instances import Instances
from weights.errors import UsageError

BLOCK_ELEMENTS = 1 << 24  # of a resampled map or a table of distances in memory at once
_SMALLEST_NORM = 1e-6


@dataclass(frozen=True)
class _PerBox:
    """Arrays with one row per instance; None where the model has no such output."""

    coarse_segm: np.ndarray

    def __len__(self) -> int:
        return len(self.coarse_segm)

    def __getitem__(self, item: Any) -> Any:
        """The rows ``item``: a number (which keeps one row), slice, mask or list of numbers."""
        rows: Any = [item] if isinstance(item, (int, np.integer)) else item
        return replace(self, **{name: value[rows] for name, value in self.arrays().items()})

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields that the model has, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in self.arrays().items())
        return f"{type(self).__name__}({shapes})"


@dataclass(frozen=True, repr=False)
class DensePoseChartPredictorOutput(_PerBox):
    """Charts. All float32 ``(N, C, S, S)``, relative to the boxes.

    ``coarse_segm`` body or background (or coarse parts), ``fine_segm`` 24 parts and background (0), ``u`` and ``v`` the
    coordinates on each part; ``sigma_2``, ``kappa_u``, ``kappa_v`` raw, ``*_confidence`` positive.
    """

    fine_segm: np.ndarray
    u: np.ndarray
    v: np.ndarray
    coarse_segm_confidence: np.ndarray | None = None
    fine_segm_confidence: np.ndarray | None = None
    sigma_1: np.ndarray | None = None
    sigma_2: np.ndarray | None = None
    kappa_u: np.ndarray | None = None
    kappa_v: np.ndarray | None = None


@dataclass(frozen=True, repr=False)
class DensePoseEmbeddingPredictorOutput(_PerBox):
    """Continuous surface embeddings: ``embedding`` float32 ``(N, D, S, S)``, relative to the boxes, not normalised."""

    embedding: np.ndarray
    coarse_segm_confidence: np.ndarray | None = None


_DensePoseOutput = DensePoseChartPredictorOutput | DensePoseEmbeddingPredictorOutput


def predictor_output(found: Mapping[str, np.ndarray]) -> _DensePoseOutput:
    """The object for the fields that a model returned, by name."""
    kind = DensePoseEmbeddingPredictorOutput if "embedding" in found else DensePoseChartPredictorOutput
    return kind(**found)


def with_densepose(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of instances, of which ``pred_densepose/<name>`` ``(N, S, S, C)`` become the object ``pred_densepose``."""
    prefix = "pred_densepose/"
    maps = {k.removeprefix(prefix): np.moveaxis(v, -1, 1) for k, v in found.items() if k.startswith(prefix)}
    others: dict[str, Any] = {k: v for k, v in found.items() if not k.startswith(prefix)}
    return {**others, "pred_densepose": predictor_output(maps)} if maps else others


# === Charts ===


@dataclass(frozen=True)
class DensePoseChartResult:
    """Part and coordinates of every pixel of a box. Confidences are ``(h, w)`` or None."""

    labels: np.ndarray  # int64 (h, w): 0 background, 1..24 parts
    uv: np.ndarray  # float32 (2, h, w), 0 on the background
    sigma_1: np.ndarray | None = None
    sigma_2: np.ndarray | None = None
    kappa_u: np.ndarray | None = None
    kappa_v: np.ndarray | None = None
    fine_segm_confidence: np.ndarray | None = None
    coarse_segm_confidence: np.ndarray | None = None

    @property
    def u(self) -> np.ndarray:
        return self.uv[0]

    @property
    def v(self) -> np.ndarray:
        return self.uv[1]


_CONFIDENCES = ("sigma_1", "sigma_2", "kappa_u", "kappa_v", "fine_segm_confidence", "coarse_segm_confidence")


def int_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(N, 4)`` xyxy -> int64 ``(N, 4)`` (x, y, w, h): each truncated, width and height at least 1."""
    boxes = np.asarray(boxes)
    whole = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.int64)
    whole[:, 2:] = np.maximum(whole[:, 2:], 1)
    return whole


def chart_results(instances: Instances) -> list[DensePoseChartResult]:
    """Parts and coordinates of each instance, at the size of its box (:func:`int_boxes`).

    Raises ValueError for a model of embeddings (see :func:`closest_vertices`).
    """
    output = _output(instances, DensePoseChartPredictorOutput, "charts; use closest_vertices")
    return [_chart_result(one, box) for one, box in zip(output, int_boxes(instances.pred_boxes), strict=True)]


def _chart_result(one: Any, box: np.ndarray) -> DensePoseChartResult:
    grid = _Grid(one.u.shape[2:], int(box[3]), int(box[2]))
    labels = grid.argmax(one.fine_segm[0]) * (grid.argmax(one.coarse_segm[0]) > 0)
    uv = np.stack([np.where(labels > 0, grid.of_channel(x[0], labels), 0) for x in (one.u, one.v)])
    confidences = {}
    for name in _CONFIDENCES:
        value = getattr(one, name)
        if value is None:
            continue
        by_part = value.shape[1] == one.u.shape[1]
        chosen = grid.of_channel(value[0], labels if by_part else np.zeros_like(labels))
        confidences[name] = np.where(labels > 0, chosen, 0) if by_part else chosen
    return DensePoseChartResult(labels, uv.astype(np.float32), **confidences)


def quantized(result: DensePoseChartResult) -> np.ndarray:
    """uint8 ``(3, h, w)``: labels, and u and v times 255, truncated."""
    uv = np.clip(result.uv * np.float32(255), 0, 255)
    return np.concatenate([result.labels[None], uv]).astype(np.uint8)


# === Embeddings ===


@dataclass(frozen=True)
class DensePoseVertices:
    """The mesh vertex that every pixel of a box shows."""

    vertices: np.ndarray  # int64 (h, w); 0 outside of the mask
    mask: np.ndarray  # bool (h, w): the body
    mesh: str


def vertex_embeddings(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mesh name -> normalised embeddings float32 ``(vertices, D)``, of the embedder tensors in a state dict.

    Source: modeling/cse/vertex_feature_embedder.py, vertex_direct_embedder.py.
    """
    prefix, found = "roi_heads.embedder.embedder_", {}
    for key, embeddings in state.items():
        if not (key.startswith(prefix) and key.endswith(".embeddings")):
            continue
        mesh = key.removeprefix(prefix).removesuffix(".embeddings")
        features = state.get(f"{prefix}{mesh}.features")
        rows = np.asarray(embeddings, np.float32)
        if features is not None:
            rows = np.asarray(features, np.float32) @ rows
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        found[mesh] = rows / np.maximum(norms, np.float32(_SMALLEST_NORM))
    return found


def closest_vertices(
    instances: Instances, meshes: Mapping[int, str], embeddings: Mapping[str, np.ndarray]
) -> list[DensePoseVertices]:
    """The vertex whose embedding is nearest to each body pixel's, at the size of each box.

    Args:
        meshes: class -> name of its mesh (``Predictor.class_to_mesh``).
        embeddings: name of a mesh -> ``(vertices, D)`` (``Predictor.vertex_embeddings``).

    Raises ValueError for a model of charts, or a class without a mesh that has embeddings.
    """
    output = _output(instances, DensePoseEmbeddingPredictorOutput, "embeddings; use chart_results")
    found = []
    for one, box, label in zip(output, int_boxes(instances.pred_boxes), instances.pred_classes, strict=True):
        mesh = meshes.get(int(label), "")
        if mesh not in embeddings:
            raise UsageError(
                f"class {label}: no vertex embeddings of its mesh {mesh!r}; there are some of "
                f"{', '.join(embeddings) or 'no mesh'} (DATASETS.CLASS_TO_MESH_NAME_MAPPING names the meshes)"
            )
        grid = _Grid(one.embedding.shape[2:], int(box[3]), int(box[2]))
        mask = grid.argmax(one.coarse_segm[0]) > 0
        vertices = np.zeros(mask.shape, np.int64)
        vertices[mask] = _nearest(grid.at(one.embedding[0], mask), embeddings[mesh])
        found.append(DensePoseVertices(vertices, mask, mesh))
    return found


def _nearest(points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Index of the vertex ``(V, D)`` nearest to each point ``(P, D)``; of equals the first."""
    lengths = (vertices * vertices).sum(axis=1)
    rows = max(1, BLOCK_ELEMENTS // max(1, len(vertices)))
    nearest = np.zeros(len(points), np.int64)
    for start in range(0, len(points), rows):
        block = points[start : start + rows]
        distances = block @ (-2 * vertices.T)
        distances += (block * block).sum(axis=1, keepdims=True) + lengths
        nearest[start : start + rows] = distances.argmin(axis=1)
    return nearest


# === Files and pictures ===


def to_file(
    instances: Instances, vertices: list[DensePoseVertices] | None = None, file_name: str = ""
) -> dict[str, Any]:
    """What ``apply_net.py dump`` keeps of a picture, small and as plain JSON values.

    Of charts each instance becomes a PNG in base64 whose three channels are :func:`quantized` (detectron2's
    ``DensePoseChartResultCompressed``: ``shape_chw``, ``labels_uv_str``), of vertices a 16-bit PNG of vertex + 1.
    """
    rows: list[dict[str, Any]] = []
    if vertices is not None:
        for one in vertices:
            shifted = np.where(one.mask, one.vertices + 1, 0).astype(np.uint16)
            rows.append({"mesh": one.mesh, "shape_hw": list(shifted.shape), "vertices_str": _png(shifted)})
    elif isinstance(instances.get_fields().get("pred_densepose"), DensePoseChartPredictorOutput):
        for result in chart_results(instances):
            pixels = quantized(result)
            image = _png(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
            rows.append({"shape_chw": list(pixels.shape), "labels_uv_str": image})
    return {
        "file_name": file_name,
        "scores": [float(score) for score in instances.scores],
        "pred_classes": [int(label) for label in instances.pred_classes],
        "pred_boxes_XYXY": [[float(x) for x in box] for box in instances.pred_boxes],
        "pred_densepose": rows,
    }


def from_file(row: Mapping[str, Any]) -> np.ndarray:
    """One entry of ``pred_densepose`` as pixels.

    Charts: uint8 ``(3, h, w)``, labels, u, v. Vertices: int64 ``(h, w)``, -1 where there is no body.
    """
    text = row.get("labels_uv_str", row.get("vertices_str", ""))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    return np.moveaxis(pixels, -1, 0) if "labels_uv_str" in row else pixels.astype(np.int64) - 1


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def draw_densepose(image_bgr: np.ndarray, instances: Instances) -> np.ndarray:
    """The picture with parts (hue) and their coordinates (brightness) over it: uint8 BGR ``(H, W, 3)``.

    Embeddings show as colours that change along the surface: their three main directions over all instances.
    """
    from tf_d2.visualize import color_of, rgb_canvas

    output = instances.get_fields().get("pred_densepose")
    canvas = rgb_canvas(image_bgr)[:, :, ::-1]
    if output is None or not len(instances):
        return canvas.astype(np.uint8)
    if isinstance(output, DensePoseChartPredictorOutput):
        results = chart_results(instances)
        palette = np.array([color_of(part) for part in range(output.u.shape[1])], np.float32)[:, ::-1]
        layers = []
        for result in results:
            light = 0.45 + 0.55 * np.clip(result.uv.mean(axis=0), 0, 1)
            layers.append((palette[result.labels] * light[:, :, None], result.labels > 0))
    else:
        layers = _embedding_layers(output, instances)
    boxes = int_boxes(instances.pred_boxes)
    for (color, mask), (x, y, w, h) in reversed(list(zip(layers, boxes, strict=True))):
        window = canvas[y : y + h, x : x + w]
        mask, color = mask[: window.shape[0], : window.shape[1]], color[: window.shape[0], : window.shape[1]]
        window[mask] = window[mask] * 0.3 + color[mask] * 0.7
    return canvas.round().astype(np.uint8)


def _embedding_layers(
    output: DensePoseEmbeddingPredictorOutput,
    instances: Instances,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Colour ``(h, w, 3)`` and mask of every instance."""
    found = []
    for one, box in zip(output, int_boxes(instances.pred_boxes), strict=True):
        grid = _Grid(one.embedding.shape[2:], int(box[3]), int(box[2]))
        mask = grid.argmax(one.coarse_segm[0]) > 0
        found.append((grid.at(one.embedding[0], mask), mask))
    every = np.concatenate([points for points, _ in found]) if found else np.zeros((0, 1), np.float32)
    if not len(every):
        return [(np.zeros((*mask.shape, 3), np.float32), mask) for _, mask in found]
    centre = every.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(every.T) if len(every) > 1 else np.eye(every.shape[1]))
    main = directions[:, ::-1][:, :3]
    spread = np.abs((every - centre) @ main).max(axis=0) + 1e-6
    layers = []
    for points, mask in found:
        color = np.zeros((*mask.shape, 3), np.float32)
        color[mask, : main.shape[1]] = 127.5 + 127.5 * ((points - centre) @ main) / spread
        layers.append((color, mask))
    return layers


# === Resampling ===


class _Grid:
    """Bilinear resampling (align_corners False) of ``(C, S, S)`` maps to a box's size, with torch's positions."""

    def __init__(self, size: tuple[int, ...], height: int, width: int) -> None:
        self.shape = height, width
        self.y, self.x = _taps(size[0], height), _taps(size[1], width)

    def whole(self, maps: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """All channels of some rows: ``(C, rows, w)``."""
        (y0, y1, fy), (x0, x1, fx) = self.y, self.x
        wide = maps[:, :, x0] * (1 - fx) + maps[:, :, x1] * fx
        down = fy[rows, None]
        return wide[:, y0[rows]] * (1 - down) + wide[:, y1[rows]] * down

    def argmax(self, maps: np.ndarray) -> np.ndarray:
        """The channel that is largest at each pixel, int64 ``(h, w)``; of equals the first."""
        height, width = self.shape
        step = max(1, BLOCK_ELEMENTS // max(1, len(maps) * width))
        blocks = [self.whole(maps, slice(y, y + step)).argmax(axis=0) for y in range(0, height, step)]
        return np.concatenate(blocks)

    def of_channel(self, maps: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """At each pixel the channel asked for: ``(h, w)``."""
        (y0, y1, fy), (x0, x1, fx) = self.y, self.x
        y0, y1, fy = y0[:, None], y1[:, None], fy[:, None]
        above = maps[channels, y0, x0] * (1 - fx) + maps[channels, y0, x1] * fx
        below = maps[channels, y1, x0] * (1 - fx) + maps[channels, y1, x1] * fx
        return above * (1 - fy) + below * fy

    def at(self, maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """All channels of the pixels of a mask: ``(pixels, C)``, rows first."""
        y, x = np.nonzero(mask)
        (y0, y1, fy), (x0, x1, fx) = self.y, self.x
        y0, y1, fy, x0, x1, fx = y0[y], y1[y], fy[y], x0[x], x1[x], fx[x]
        above = maps[:, y0, x0] * (1 - fx) + maps[:, y0, x1] * fx
        below = maps[:, y1, x0] * (1 - fx) + maps[:, y1, x1] * fx
        return np.ascontiguousarray((above * (1 - fy) + below * fy).T)


def _taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper neighbour of each output pixel and the weight of the upper one (float32)."""
    scale = np.float64(np.float32(n_in) / np.float32(n_out))
    source = (scale * (np.arange(n_out) + 0.5) - 0.5).astype(
        np.float32
    )  # rounded once, as a fused product is
    source = np.maximum(source, np.float32(0))
    lower = np.minimum(source.astype(np.int64), n_in - 1)
    fraction = np.clip(source - lower.astype(np.float32), 0, 1).astype(np.float32)
    return lower, np.minimum(lower + 1, n_in - 1), fraction


def _output(instances: Instances, kind: type, wanted: str) -> Any:
    output = instances.get_fields().get("pred_densepose")
    if not isinstance(output, kind):
        have = "no DensePose output" if output is None else type(output).__name__
        raise UsageError(f"these instances have {have}, not {wanted}")
    return output
