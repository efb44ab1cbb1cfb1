"""What can be laid on a slide: pictures, shapes and points.

Everything is in level-0 pixels. A picture covers the slide from its corner
(0, 0); shapes are polygons with holes by the even-odd rule; points are packed,
since a slide may have a million.
"""

import contextlib
import dataclasses
import json
import pathlib
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from jaxtyping import Int, Shaped, UInt8

from data_prep.files import names
from data_prep.wsi import annotation_files, pictures, tissue
from data_prep.wsi import annotations as drawn
from data_prep.wsi.find import SlideEntry
from wsiseq_jax import launch
from wsiseq_jax.maps import annotations, heatmaps, regions
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.search import clustering
from wsiseq_jax.spatial import points as cells
from wsiseq_jax.view import settings
from wsiseq_jax.view.pyramid import Pyramid

PICTURE, SHAPES, POINTS = "picture", "shapes", "points"
_LONGEST_PX = 2048  # of pictures; a screen is no larger
_TISSUE_PX = 1024
_MOST_POINTS = 4_000_000
_OF_SEQUENCES = ("slide_id", "level0_xy", "features")
# Eight for any colour vision (Okabe and Ito), then a larger table.
_COLOURS = [
  *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00"),
  *("#cc79a7", "#666666"),
  *(matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["tab20b"].colors),
]
_WHITE_LINE, _PEOPLE = "#14a34a", "#00c2d1"


@dataclasses.dataclass(frozen=True)
class SlideLayer:
  """One layer of a slide."""

  name: str  # in addresses
  title: str  # for people
  kind: str  # PICTURE, SHAPES or POINTS
  # Its content: bytes, and for pictures level-0 pixels per pixel.
  make: Callable[[Pyramid], tuple[bytes, float]]


def colour(number: int) -> str:
  """The colour of a class.

  Example:
    >>> colour(0), colour(28) == colour(0)
    ('#e69f00', True)
  """
  return _COLOURS[number % len(_COLOURS)]


def shapes(
  names_: Sequence[str],
  found: Sequence[tuple[str, int, Sequence[np.ndarray]]],
  colours: Sequence[str] | None = None,
) -> bytes:
  """Packs polygons: (name, number of its class, rings) each."""
  colours = colours or [colour(i) for i in range(len(names_))]
  return json.dumps(
    {
      "classes": [
        {"name": name, "colour": tint}
        for name, tint in zip(names_, colours, strict=True)
      ],
      "shapes": [
        {
          "name": name,
          "class": number,
          "rings": [np.round(ring, 1).ravel().tolist() for ring in rings],
        }
        for name, number, rings in found
      ],
    }
  ).encode()


def points(
  names_: Sequence[str],
  xy: Shaped[np.ndarray, "n 2"],
  classes: Int[np.ndarray, " n"],
  radius_px: float,
) -> bytes:
  """Packs points: length of a head, head (JSON), x y float32, class uint8.

  Raises:
    ValueError: too many, or more than 255 classes.
  """
  if len(xy) > _MOST_POINTS or len(names_) > 255:
    raise ValueError(
      f"{len(xy)} points of {len(names_)} classes: at most {_MOST_POINTS} of "
      "255 can be shown"
    )
  head = json.dumps(
    {
      "count": len(xy),
      "radius": radius_px,
      "classes": [
        {"name": name, "colour": colour(i)} for i, name in enumerate(names_)
      ],
    }
  ).encode()
  head += b" " * (-len(head) % 4)
  return b"".join(
    (
      struct.pack("<I", len(head)),
      head,
      np.asarray(xy, "<f4").tobytes(),
      np.asarray(classes, np.uint8).tobytes(),
    )
  )


def png(rgba: UInt8[np.ndarray, "h w 4"]) -> bytes:
  """A picture with opacity as a file."""
  return cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[
    1
  ].tobytes()


class LayerFinder:
  """Finds the layers of slides; reads each when it is asked for.

  Args:
    config: `config.layers`.
    folder: `config.data.annotations`.
    ids: the slides.

  Raises:
    ValueError: a folder that is not there, or has nothing of these slides.
  """

  def __init__(self, config: settings.Layers, folder: str, ids: Sequence[str]):
    self._config = config
    self._maps = _files("layers.mil", config.mil, ids, (".npz",), "maps")
    self._cells = _cell_files(config.cells, ids)
    self._masks = _files(
      "layers.segmentation", config.segmentation, ids, (".png", ".tif", ".tiff")
    )
    self._drawn = annotations.find(folder, ids, doubled=(twice := {}))
    list(map(launch.log, twice.values()))
    self._sequences = _Sequences(config.sequences, config.clusters)
    self._limit: float | None = None
    self._lock = threading.Lock()

  def of(self, entry: SlideEntry, has_scale: bool) -> dict[str, SlideLayer]:
    """The layers of a slide by name, in the order they are listed in."""
    name, found = entry.slide_id, []
    if has_scale or entry.mask_path:
      found.append(
        SlideLayer("tissue", "Tissue", SHAPES, lambda p: self._tissue(p, entry))
      )
    if name in self._maps:
      path = self._maps[name]
      titles = {
        "probability": "MIL: probability of tiles",
        "contribution": "MIL: contribution of tiles",
        "percentile": "MIL: rank of attention (display only)",
      }
      for kind, title in titles.items():
        found.append(
          SlideLayer(
            f"mil_{kind}",
            title,
            PICTURE,
            lambda p, kind=kind: self._map(path, kind),
          )
        )
      found.append(
        SlideLayer(
          "mil_regions", "MIL: regions", SHAPES, lambda p: _regions(path)
        )
      )
    if name in self._masks:
      mask = self._masks[name]
      found.append(
        SlideLayer(
          "segmentation", "Segmentation", PICTURE, lambda p: _mask(mask, p)
        )
      )
    if name in self._sequences.slides:
      found.append(
        SlideLayer(
          "clusters",
          "Clusters of sequences",
          POINTS,
          lambda p: (self._sequences.points(name, p.slide.mpp), 0.0),
        )
      )
    if name in self._cells:
      table = self._cells[name]
      found.append(
        SlideLayer("cells", "Cells", POINTS, lambda p: _cells(table, p))
      )
    if name in self._drawn:
      file = self._drawn[name]
      found.append(
        SlideLayer(
          "annotations", "Annotations", SHAPES, lambda p: _annotations(file, p)
        )
      )
    return {layer.name: layer for layer in found}

  def _tissue(self, pyramid: Pyramid, entry: SlideEntry) -> tuple[bytes, float]:
    thumbnail, downsample = pyramid.thumbnail(_TISSUE_PX)
    if entry.mask_path:
      mask = tissue.load_mask(
        entry.mask_path,
        thumbnail.shape[:2],
        entry.tissue.get("mask_values", ""),
      )
    else:
      mask = tissue.tissue_mask(
        thumbnail,
        mpp=pyramid.slide.mpp * downsample,
        **{"method": self._config.tissue, **entry.tissue},
      )
    rings = [np.array(r) for r in tissue.mask_polygons(mask, downsample)]
    return shapes(["tissue"], [("tissue", 0, rings)], [_WHITE_LINE]), 0.0

  def _map(self, path: pathlib.Path, kind: str) -> tuple[bytes, float]:
    tile_map = TileMap.load(path)
    if not tile_map.can_be_drawn:
      raise ValueError(f"{path}: the slide's size or scale is unknown")
    limit = self._cohort_limit() if kind == "contribution" else None
    side = tile_map.in_level0().tile_size
    # A tile is at least a pixel, and eight are enough.
    downsample = min(
      max(max(tile_map.level0_size) / _LONGEST_PX, side / 8), side
    )
    canvas = heatmaps.draw(
      tile_map,
      kind,
      um_per_px=downsample * tile_map.level0_mpp,
      limit=limit,
    )
    rgb = heatmaps.colours(canvas.values, kind, canvas.limits)
    alpha = heatmaps.covered(canvas, None).astype(np.uint8) * 255
    return png(np.dstack([rgb, alpha])), canvas.downsample

  def _cohort_limit(self) -> float:
    with self._lock:
      if self._limit is None:
        maps = []
        for path in self._maps.values():
          with contextlib.suppress(ValueError):  # said where it is shown
            maps.append(TileMap.load(path))
        self._limit = heatmaps.cohort_range(
          [found.contribution for found in maps if len(found.contribution)]
        )
      return self._limit


def _files(
  key: str,
  folder: str,
  ids: Sequence[str],
  ends: tuple[str, ...],
  below: str = "",
) -> Mapping[str, pathlib.Path]:
  """Files of slides in a folder of the config."""
  if not folder:
    return {}
  place = pathlib.Path(folder).expanduser() / below
  if not place.is_dir():
    raise ValueError(f"config.{key} = {folder!r}: there is no folder {place}")
  files = {
    names.stem(path.name[: -len(path.suffix)]): path
    for path in sorted(place.iterdir())
    if path.suffix.lower() in ends
  }
  found = names.match(ids, files)
  if not found:
    raise ValueError(
      f"config.{key} = {folder!r}: none of the {len(ids)} slides has a file "
      f"there, such as {ids[0]}{ends[0]}"
    )
  return found


def _cell_files(folder: str, ids: Sequence[str]) -> Mapping[str, pathlib.Path]:
  """Tables of cells: of a job `spatial`, or one a slide in a folder."""
  found = names.match(ids, cells.files(folder)) if folder else {}
  return found or _files("layers.cells", folder, ids, (".parquet",))


class _Sequences:
  """Clusters of the sequences of a run, made when first asked for."""

  def __init__(self, workdir: str, clusters: int):
    self._clusters, self._lock = clusters, threading.Lock()
    self._assignment: np.ndarray | None = None
    self.slides: frozenset[str] = frozenset()
    if not workdir:
      return
    folder = pathlib.Path(workdir).expanduser() / "embeddings"
    files = sorted(folder.glob("*.npz"))
    if not files:
      raise ValueError(
        f"config.layers.sequences = {workdir!r}: no {folder}/*.npz; it must "
        "name the workdir of a job 'embed'"
      )
    parts = []
    for file in files:
      try:
        with np.load(file) as arrays:
          parts.append([arrays[k] for k in _OF_SEQUENCES])
      except Exception as error:  # NumPy and zipfile raise whatever they like
        launch.log(f"{file} has no embeddings: {error!r}")
    if not parts:
      raise ValueError(f"config.layers.sequences: nothing in {folder} is read")
    self._ids, self._xy, self._features = map(
      np.concatenate, zip(*parts, strict=True)
    )
    self.slides = frozenset(map(str, np.unique(self._ids)))

  def points(self, slide_id: str, mpp: float) -> bytes:
    """The middles of the sequences of a slide, by cluster."""
    with self._lock:
      if self._assignment is None:
        count = min(self._clusters, len(self._features))
        found = clustering.kmeans(self._features, count)
        self._assignment = found.assignment
    mine = (self._ids == slide_id) & np.isfinite(self._xy).all(axis=1)
    texts = [f"cluster {i}" for i in range(self._assignment.max() + 1)]
    return points(texts, self._xy[mine], self._assignment[mine], 30 / mpp)


def _regions(path: pathlib.Path) -> tuple[bytes, float]:
  tile_map = TileMap.load(path)
  found = [
    (
      f"{region.area_mm2:.3f} mm², mean {region.mean:.2f}",
      0,
      region.rings,
    )
    for region in regions.find_regions(tile_map)
  ]
  return shapes([tile_map.class_name], found, ["#d62728"]), 0.0


def _mask(path: pathlib.Path, pyramid: Pyramid) -> tuple[bytes, float]:
  """A picture of class numbers in colours; 0 is not drawn."""
  picture = pictures.numbers(path, _LONGEST_PX)
  if (picture != picture[..., :1]).any() or picture.dtype.kind not in "bu":
    raise ValueError(f"{path}: a mask has one channel of whole numbers")
  picture = picture[..., 0]
  step = -(-max(picture.shape) // _LONGEST_PX)
  width = picture.shape[1]
  picture = picture[step // 2 :: step, step // 2 :: step]
  table = np.zeros((int(picture.max()) + 1, 4), np.uint8)
  for number in range(1, len(table)):
    rgb = matplotlib.colors.to_rgb(colour(number - 1))
    table[number] = [*(round(255 * v) for v in rgb), 255]
  return png(table[picture]), pyramid.slide.level0_px[0] / width * step


def _cells(path: pathlib.Path, pyramid: Pyramid) -> tuple[bytes, float]:
  found, mpp = cells.read(path), pyramid.slide.mpp
  return points(found.names, found.xy_um / mpp, found.type, 3 / mpp), 0.0


def _annotations(path: pathlib.Path, pyramid: Pyramid) -> tuple[bytes, float]:
  slide = pyramid.slide
  if not annotation_files.is_polygons(path):
    downsample = max(1.0, max(slide.level0_px) / _LONGEST_PX)
    mask = drawn.read_mask(path, slide.level0_px, downsample)
    rings = [np.array(r) for r in tissue.mask_polygons(mask, downsample)]
    return shapes(["annotated"], [("annotated", 0, rings)], [_PEOPLE]), 0.0
  # QuPath counts from the corner of the scanned part.
  is_geojson = annotation_files.is_geojson(path)
  corner = slide.bounds[:2] if is_geojson else (0, 0)
  found = drawn.read(path, include=None, exclude=(), bounds_xy=corner).include
  groups = list(dict.fromkeys(one.group for one in found))
  return shapes(
    [group or "no class" for group in groups],
    [(one.name, groups.index(one.group), one.rings) for one in found],
  ), 0.0


def described(layers: Mapping[str, SlideLayer]) -> list[dict[str, Any]]:
  """What the page is told of layers."""
  return [
    {"name": v.name, "title": v.title, "kind": v.kind} for v in layers.values()
  ]
