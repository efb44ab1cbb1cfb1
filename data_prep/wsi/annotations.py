"""What people drew on slides: XML, QuPath GeoJSON, mask pictures.

Polygons are in level-0 pixels; their groups say what they mean:

- Camelyon16 (ASAP XML): `_0`, `_1` and `Tumor` are tumour; `_2` and
  `Exclusion` were cut out of a tumour again. Camelyon17 says `metastases` and
  `normal`.
- QuPath (GeoJSON): the name of the classification, '' where there is none.
- ImageScope, HALO (XML): the name of the layer; negative regions are cut out.

Any other group is an error that lists it, since a group left out unseen is a
lesion that is missing. Exclusions are drawn last: what lies in one is out, also
where a tumour polygon lies within it, as in the masks of the challenge.

References:
  Litjens et al. 2018, "1399 H&E-stained sentinel lymph node sections of breast
  cancer patients: the CAMELYON dataset", GigaScience 7(6).
  GeoJSON: RFC 7946.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from data_prep.wsi import annotation_files

INCLUDE = ("_0", "_1", "Tumor", "tumor", "Tumour", "tumour", "metastases")
EXCLUDE = ("_2", "Exclusion", "exclusion", "normal")
Number = int | float | np.integer | np.floating
# Shapes of ASAP that have an area.
_AREAS = ("Polygon", "Spline", "Rectangle")


@dataclasses.dataclass(frozen=True, eq=False)
class Polygon:
  """One drawn shape."""

  name: str  # what the file calls it
  group: str  # its group or class
  # the outline, then holes; [n 2] x, y in level-0 pixels, not closed
  rings: tuple[Float[np.ndarray, "_ 2"], ...]
  is_cut: bool = False  # cut out of the others, whatever its group


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """The annotations of one slide."""

  include: tuple[Polygon, ...]  # what is drawn
  exclude: tuple[Polygon, ...]  # what is cut out of it
  # one sentence for each thing without an area (points, lines)
  skipped: tuple[str, ...]


def read(
  path: str | os.PathLike,
  *,
  include: Sequence[str] | None = INCLUDE,
  exclude: Sequence[str] = EXCLUDE,
  ignore: Sequence[str] = (),
  bounds_xy: tuple[Number, Number] = (0, 0),
) -> Annotations:
  """Reads an XML file of ASAP, ImageScope or HALO, or a QuPath GeoJSON file.

  Args:
    path: `.xml`, `.annotations`, `.geojson` or `.json`, which may be gzipped.
    include: groups that are drawn; None: all that are in no other list.
    exclude: groups that are cut out.
    ignore: groups that are left alone.
    bounds_xy: where the file's origin lies in level-0 pixels. QuPath counts
      from the corner of the scanned part (OpenSlide's `bounds-x`, `bounds-y`),
      ASAP from (0, 0).

  Returns:
    The polygons, in the order of the file.

  Raises:
    ValueError: not such a file, a group that is none of the three, or
      coordinates that are not numbers.
  """
  path = pathlib.Path(path)
  if not annotation_files.is_polygons(path):
    ends = ", ".join(annotation_files.POLYGONS)
    raise ValueError(f"{path}: annotations are read from {ends} files")
  is_geojson = annotation_files.is_geojson(path)
  polygons, skipped = _geojson(path) if is_geojson else _xml(path)
  groups = {p.group for p in polygons}
  if include is None:
    include = tuple(groups - {*exclude, *ignore})
  unknown = groups - {*include, *exclude, *ignore}
  if unknown:
    raise ValueError(
      f"{path}: groups {sorted(unknown)} are not in include={tuple(include)}, "
      f"exclude={tuple(exclude)} or ignore={tuple(ignore)}"
    )
  shift = np.asarray(bounds_xy, np.float64)
  polygons = [
    dataclasses.replace(p, rings=tuple(ring + shift for ring in p.rings))
    for p in polygons
  ]
  return Annotations(
    tuple(p for p in polygons if p.group in include and not p.is_cut),
    tuple(
      p
      for p in polygons
      if p.group in exclude or p.is_cut and p.group in include
    ),
    tuple(skipped),
  )


def fill(
  rings: Sequence[Shaped[np.ndarray, "_ 2"]], shape: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
  """Fills rings by the even-odd rule; a pixel is in if its centre is.

  Args:
    rings: x, y in pixels of the mask (pixel i covers [i, i + 1]), closed or
      not.
    shape: height, width of the mask.

  Returns:
    True inside. A centre on a left or upper edge is inside, on a right or lower
    one outside: polygons that share an edge share no pixel.

  Example:
    >>> square = np.array([[1, 0], [3, 0], [3, 2], [1, 2]])
    >>> fill([square], (3, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
  """
  mask = np.zeros(shape, bool)
  box = _box(rings, shape)
  if box is None:
    return mask
  left, top, right, bottom = box
  # Every edge flips all pixels to its right; an odd number of flips is inside.
  flips = np.zeros((bottom - top, right - left + 1), np.uint8)
  for ring in rings:
    start = np.asarray(ring, np.float64)
    stop = np.roll(start, -1, axis=0)
    upper = np.minimum(start[:, 1], stop[:, 1])
    lower = np.maximum(start[:, 1], stop[:, 1])
    first = np.clip(np.ceil(upper - 0.5), top, bottom).astype(np.int64)
    count = np.clip(np.ceil(lower - 0.5), top, bottom).astype(np.int64) - first
    edge = np.repeat(np.arange(len(start)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    row += first[edge]
    slope = (stop[edge, 0] - start[edge, 0]) / (stop[edge, 1] - start[edge, 1])
    x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope
    column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
    np.add.at(flips, (row - top, column - left), 1)
  odd = np.bitwise_xor.accumulate(flips & 1, axis=1)[:, :-1]
  mask[top:bottom, left:right] = odd > 0
  return mask


def _box(rings, shape) -> tuple[int, int, int, int] | None:
  """The pixels that rings can touch: left, top, right, bottom."""
  if not rings:
    return None
  points = np.concatenate(list(rings))
  left, top = np.maximum(np.floor(points.min(axis=0)), 0).astype(int).tolist()
  right, bottom = np.ceil(points.max(axis=0)).astype(int).tolist()
  right, bottom = min(right, shape[1]), min(bottom, shape[0])
  return (left, top, right, bottom) if left < right and top < bottom else None


def draw(
  annotations: Annotations,
  level0_size: tuple[int, int],
  downsample: Number,
) -> Bool[np.ndarray, "h w"]:
  """Draws annotations as a mask; exclusions are holes.

  Args:
    annotations: what `read` returned.
    level0_size: width, height of the slide in level-0 pixels.
    downsample: level-0 pixels per mask pixel.

  Returns:
    True where the centre of the pixel is in an included polygon and in no
    excluded one. Level-0 x lies in column floor(x / downsample).

  Raises:
    ValueError: a polygon lies outside the slide: file and slide, or their
      scales, do not belong together.

  Example:
    >>> ring = np.array([[0.0, 0.0], [40.0, 0.0], [40.0, 20.0], [0.0, 20.0]])
    >>> inner = np.array([[10.0, 0.0], [20.0, 0.0], [20.0, 20.0], [10.0, 20.0]])
    >>> shapes = Annotations(
    ...   (Polygon("a", "_0", (ring,)),), (Polygon("b", "_2", (inner,)),), ()
    ... )
    >>> draw(shapes, (45, 20), 10.0).astype(int).tolist()
    [[1, 0, 1, 1, 0], [1, 0, 1, 1, 0]]
  """
  mask = np.zeros(mask_shape(level0_size, downsample), bool)
  for polygon in (*annotations.include, *annotations.exclude):
    rings = [ring / downsample for ring in polygon.rings]
    box = _box(rings, mask.shape)
    if box is None:
      low, high = polygon.rings[0].min(axis=0), polygon.rings[0].max(axis=0)
      raise ValueError(
        f"annotation {polygon.name!r} ({low.round().tolist()} to "
        f"{high.round().tolist()}) lies outside the slide of "
        f"{level0_size[0]}x{level0_size[1]} level-0 px"
      )
    left, top, right, bottom = box
    window = mask[top:bottom, left:right]
    inside = fill([ring - (left, top) for ring in rings], window.shape)
    window[inside] = polygon in annotations.include
  return mask


def mask_shape(
  level0_size: tuple[int, int], downsample: Number
) -> tuple[int, int]:
  """Height, width of a mask that covers a slide to its last pixel.

  Example:
    >>> mask_shape((100, 64), 32)
    (2, 4)
  """
  if not downsample > 0:
    raise ValueError(f"downsample={downsample}: must be positive")
  width, height = (math.ceil(side / downsample) for side in level0_size)
  return height, width


def _xml(path) -> tuple[list[Polygon], list[str]]:
  """The polygons of an XML file, and what has no area."""
  polygons, skipped = [], []
  for one in annotation_files.xml(path):
    rings, before = [one.points], len(polygons)
    _keep(polygons, skipped, path, one.name, one.group, one.kind, rings)
    polygons[before:] = [
      dataclasses.replace(p, is_cut=one.is_cut) for p in polygons[before:]
    ]
  return polygons, skipped


def _geojson(path) -> tuple[list[Polygon], list[str]]:
  """Polygons of a GeoJSON file as QuPath writes it, and what has no area."""
  try:
    data = annotation_files.load_json(path)
    found = list(annotation_files.features(data))
  except OSError as error:
    raise ValueError(f"{path}: not a JSON file: {error}") from error
  except ValueError as error:
    text = str(error)
    raise ValueError(
      text if str(path) in text else f"{path}: {text}"
    ) from error
  polygons, skipped = [], []
  for number, feature in enumerate(found):
    said = annotation_files.properties(feature)
    name = str(said.get("name") or f"feature {number}")
    group = annotation_files.class_of(feature)
    shapes = list(annotation_files.shapes(feature.get("geometry")))
    if not shapes:
      skipped.append(f"{name}: it has no geometry")
    for kind, rings in shapes:
      _keep(polygons, skipped, path, name, group, kind, rings)
  return polygons, skipped


def _keep(polygons, skipped, path, name, group, kind, rings) -> None:
  """Adds one shape to the polygons, or says why it is not one."""
  if kind not in (*_AREAS, "MultiPolygon"):
    skipped.append(f"{name}: a {kind} has no area")
    return
  if not rings:
    raise ValueError(f"{path}: {name!r} has no coordinates")
  arrays = []
  for ring in rings if isinstance(rings, list) else [rings]:
    try:
      ring = np.array([point[:2] for point in ring], np.float64)
      ring = ring.reshape(len(ring), 2)
    except (TypeError, ValueError, LookupError) as error:
      raise ValueError(f"{path}: {name!r} has odd coordinates") from error
    if not np.isfinite(ring).all():
      raise ValueError(f"{path}: {name!r} has coordinates that are not finite")
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
      ring = ring[:-1]
    if len(ring) >= 3:
      arrays.append(ring)
    elif not arrays:
      skipped.append(f"{name}: {len(ring)} points have no area")
      return
  polygons.append(Polygon(name, group, tuple(arrays)))
