"""Cells as other programs write them: one reader for each kind of file.

    QuPath          .geojson, .json, and its measurements as .tsv, .csv, .txt
    HoVer-Net       .json with `nuc`
    CellViT         .json with `cells` and `wsi_metadata`
    StarDist        .npz of the details of a prediction; label images
    Cellpose        label images .png, .tif, and *_cp_outlines.txt
    HALO            .csv with XMin, XMax, YMin, YMax
    ASAP            .xml with dots and point sets
    anybody         .csv, .tsv, .parquet with x, y (see `cell_tables.py`)

What a file says of its unit is kept; `placing.py` makes µm of it.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data_prep.wsi import annotation_files, pictures
from wsiseq_jax.spatial import cell_tables
from wsiseq_jax.spatial.raw_cells import (
  LABELS,
  PIXEL,
  QUPATH,
  RawCells,
  centroid,
  make,
)

# Rows of a label image that are summed up at once.
_BAND_PX = 1 << 26


def read(path: str | os.PathLike, score: str = "") -> RawCells:
  """Reads a file of cells of one slide.

  Args:
    path: see the module docstring.
    score: column of a table, measurement of QuPath's GeoJSON, or key of a cell
      in JSON, that is the score; '' = a probability.

  Raises:
    ValueError: no such file, or none that holds cells, or not that score; says
      what is wanted.
  """
  path = pathlib.Path(path)
  table = functools.partial(cell_tables.read, score=score)
  readers: dict[str, Callable[[pathlib.Path], RawCells]] = {
    **dict.fromkeys((".geojson", ".json"), functools.partial(_json, score)),
    **dict.fromkeys((".csv", ".tsv", ".parquet"), table),
    ".xml": _asap,
    ".npz": _stardist,
    **dict.fromkeys((".png", ".tif", ".tiff"), _labels),
    ".txt": _outlines if is_outlines(path) else table,
  }
  end = pathlib.Path(path.name.lower().removesuffix(".gz")).suffix
  if end == ".npy":
    raise ValueError(
      f"{path}: a _seg.npy of Cellpose is a pickled program and is not opened; "
      "save masks as PNG or TIFF, or outlines as text (--save_png, --save_tif, "
      "--save_txt)"
    )
  if end not in readers:
    raise ValueError(f"{path}: cells are read from {', '.join(readers)} files")
  try:
    if end not in (".geojson", ".json", *cell_tables.ENDS):
      _no_choice(path, score)
    return readers[end](path)
  except OSError as error:
    raise ValueError(f"{path}: cannot be read: {error}") from error


def is_outlines(path: pathlib.Path) -> bool:
  """Whether a text file is named as Cellpose names its outlines."""
  return path.name.lower().endswith("_cp_outlines.txt")


def _no_choice(path: pathlib.Path, score: str) -> None:
  if score:
    raise ValueError(
      f"{path}: config.cells.score = {score!r}, and these files have no named "
      "scores"
    )


# JSON.


def _json(score: str, path: pathlib.Path) -> RawCells:
  data = annotation_files.load_json(path)
  try:
    if isinstance(data, dict) and isinstance(data.get("nuc"), dict):
      return _hovernet(data, score)
    if isinstance(data, dict) and isinstance(data.get("cells"), list):
      return _cellvit(data, score)
    if isinstance(data, dict) and {"points", "prob"} <= set(data):
      _no_choice(path, score)
      return _details(data)
    return _geojson(path, data, score)
  except (LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"{path}: odd cells: {error!r}") from error


def _hovernet(data: Mapping[str, Any], name: str) -> RawCells:
  found = list(data["nuc"].values())
  types = [_number_name(cell.get("type")) for cell in found]
  score = [cell.get(name or "type_prob") for cell in found]
  return make(
    "HoVer-Net",
    [cell["centroid"] for cell in found],
    types,
    [np.nan if value is None else value for value in score],
    unit=PIXEL,
    magnification=_scale(data.get("mag")),
  )


def _cellvit(data: Mapping[str, Any], name: str) -> RawCells:
  names = {str(k): str(v) for k, v in (data.get("type_map") or {}).items()}
  found = data["cells"]
  types = [_number_name(cell.get("type")) for cell in found]
  score = [cell.get(name or "type_prob", np.nan) for cell in found]
  facts = data.get("wsi_metadata") or {}
  return make(
    "CellViT",
    [cell["centroid"] for cell in found],
    [names.get(name, name) for name in types],
    score,
    unit=PIXEL,
    mpp=_scale(facts.get("base_mpp")),
  )


def _scale(value: Any) -> float | None:
  return float(value) if value else None


def _number_name(value: Any) -> str:
  """The name of a type that has none."""
  return "" if value is None else str(value)


def _details(data: Mapping[str, Any]) -> RawCells:
  """StarDist counts rows before columns."""
  points = np.asarray(data["points"], np.float64).reshape(-1, 2)
  types = None
  if "class_id" in data:
    types = [str(v) for v in np.asarray(data["class_id"]).tolist()]
  prob = np.asarray(data["prob"], np.float64)
  return make("StarDist", points[:, ::-1], types, prob, unit=PIXEL)


def _stardist(path: pathlib.Path) -> RawCells:
  try:
    with np.load(path, allow_pickle=False) as file:
      wanted = [k for k in ("points", "prob", "class_id") if k in file.files]
      data = {name: file[name] for name in wanted}
    return _details(data)
  except (ValueError, LookupError) as error:
    raise ValueError(
      f"{path}: no details of StarDist (arrays `points` and `prob`): {error}"
    ) from error


def _geojson(path: pathlib.Path, data: Any, score_name: str) -> RawCells:
  """Detections, cells and points of QuPath; annotated areas are no cells."""
  try:
    found = list(annotation_files.features(data))
  except ValueError as error:
    raise ValueError(
      f"{path}: neither GeoJSON nor cells of HoVer-Net, CellViT or StarDist"
    ) from error
  xy, types, score = [], [], []
  no_cells = collections.Counter()
  for feature in found:
    properties = annotation_files.properties(feature)
    name = annotation_files.class_of(feature)
    value = _score(properties.get("measurements"), score_name)
    geometry = feature.get("nucleusGeometry") or feature.get("geometry")
    for centre, no_cell in _centres(geometry, properties.get("objectType")):
      if no_cell:
        no_cells[no_cell] += 1
        continue
      xy.append(centre)
      types.append(name)
      score.append(value)
  skipped = tuple(f"{n} {what}" for what, n in sorted(no_cells.items()))
  return make(QUPATH, xy, types, score, unit=PIXEL, skipped=skipped)


def _centres(geometry: Any, kind: Any) -> Iterator[tuple[Any, str]]:
  """The centre of each shape or point, or else why it is no cell."""
  parts = list(annotation_files.shapes(geometry))
  if not parts:
    yield None, "features have no geometry"
  elif {part[0] for part in parts} == {"MultiPolygon"}:
    # A cell in pieces is where its largest piece is.
    parts = [max(parts, key=lambda part: len(part[1][0]) if part[1] else 0)]
  for shape, places in parts:
    is_area = shape in ("Polygon", "MultiPolygon")
    if is_area and kind == "annotation":
      yield None, "annotated areas are no cells"
    elif not places or is_area and not places[0]:
      yield None, "shapes have no coordinates"
    elif is_area:
      yield centroid(places[0]), ""
    elif shape == "Point":
      yield places[:2], ""
    elif shape == "MultiPoint":
      yield from ((place[:2], "") for place in places)
    else:
      yield None, f"shapes are a {shape}, and no cells"


def _score(measurements: Any, score: str) -> float:
  """The score among the measurements of a detection; NaN without it."""
  if isinstance(measurements, list):  # as QuPath wrote them before 0.4
    measurements = {m.get("name"): m.get("value") for m in measurements}
  for name, value in (measurements or {}).items():
    is_it = name == score if score else "probability" in str(name).lower()
    if is_it and isinstance(value, int | float):
      return float(value)
  return np.nan


# Other files.


def _asap(path: pathlib.Path) -> RawCells:
  """Dots and point sets; the group is the type."""
  xy, types, others = [], [], 0
  for one in annotation_files.xml(path):
    if one.kind not in ("Dot", "PointSet"):
      others += 1
      continue
    xy += one.points
    types += ["" if one.group == "None" else one.group] * len(one.points)
  skipped = (f"{others} shapes are no points",) if others else ()
  return make("ASAP", xy, types, unit=PIXEL, skipped=skipped)


def _labels(path: pathlib.Path) -> RawCells:
  """A picture in which every cell has a number of its own."""
  picture = pictures.numbers(path)
  if picture.dtype.kind == "f" and (picture == np.rint(picture)).all():
    picture = picture.astype(np.int64)
  is_one = (picture == picture[..., :1]).all()
  if not is_one or picture.dtype.kind not in "iu":
    raise ValueError(
      f"{path}: {picture.dtype} of shape {picture.shape}: want whole numbers "
      "[height, width], one for each cell"
    )
  picture = picture[..., 0]
  top = int(picture.max(initial=0))
  if top in (1, 255) and set(np.unique(picture).tolist()) == {0, top}:
    raise ValueError(
      f"{path}: a mask of one value, which does not part cells: want a number "
      "for each"
    )
  if picture.min(initial=0) < 0 or top > picture.size:
    raise ValueError(f"{path}: numbers up to {top}: want 1, 2, ... of cells")
  height, width = picture.shape
  count, x, y = (np.zeros(top + 1) for _ in range(3))
  band = max(1, _BAND_PX // max(width, 1))
  for start in range(0, height, band):
    rows, columns = np.nonzero(picture[start : start + band])
    number = picture[start : start + band][rows, columns]
    count += np.bincount(number, minlength=top + 1)
    x += np.bincount(number, columns + 0.5, top + 1)
    y += np.bincount(number, rows + start + 0.5, top + 1)
  there = count > 0
  xy = np.stack([x[there], y[there]], axis=1) / count[there, None]
  return make(LABELS, xy, unit=PIXEL, size_px=(width, height))


def _outlines(path: pathlib.Path) -> RawCells:
  """A line for each cell: x, y, x, y, ..."""
  centres = []
  lines = path.read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      ring = np.array(line.split(","), np.float64).reshape(-1, 2)
    except ValueError as error:
      raise ValueError(
        f"{path}, line {number}: want x,y,x,y,... of an outline"
      ) from error
    # Outlines are of whole pixels, whose middle lies half a pixel further.
    centres.append(centroid(ring) + 0.5)
  return make("Cellpose", centres, unit=PIXEL)
