"""Windows and regions of a slide as polygons in µm.

The window is where cells can be: the tissue, within what is annotated or within
the whole slide. Regions are what cells are held against: those of a MIL map, a
mask, or an annotation.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Bool, Float
from scipy import ndimage

from data_prep.files.errors import SlideError
from data_prep.wsi import annotation_files, annotation_masks, annotations
from wsiseq_jax.maps import annotations as map_annotations
from wsiseq_jax.maps import regions as map_regions
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.spatial import windows
from wsiseq_jax.spatial.placing import Place
from wsiseq_jax.spatial.windows import Window

_MAP = ".npz"
ENDS = (*map_annotations.ENDS, _MAP)
# Outlines are kept to this. Bands around the stairs of a mask take a hundred
# times as long as around what they stand for, and no hand is so exact.
_OUTLINE_UM = 1.0
_BY_SIDES = ndimage.generate_binary_structure(2, 1)
_MIN_ON_TISSUE = 0.1  # share of the regions' area
Groups = Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
  """How a file of regions is read."""

  # Groups, or values of a mask; () = the usual names, None = all groups.
  include: Groups | None = ()
  exclude: Groups = ()  # cut out again
  ignore: Groups = ()  # left alone; any other group is an error
  threshold: float = 0.5  # of the probability of tiles, for maps
  min_area_um2: float = 0.0  # smaller pieces are left out
  mask_um: float = 2.0  # pixel at which masks are outlined


def find(
  folder: str,
  ids: Sequence[str],
  key: str,
  doubled: dict[str, str] | None = None,
) -> dict[str, pathlib.Path]:
  """Files of regions of slides; of a MIL job its workdir will do."""
  place = pathlib.Path(folder).expanduser()
  if folder and (place / "maps").is_dir():
    folder = str(place / "maps")
  return map_annotations.find(folder, ids, key, ENDS, doubled)


def read(
  path: str | os.PathLike, where: Place, drawn: Drawn
) -> tuple[Window | None, list[SlideError]]:
  """The regions of a slide.

  Args:
    path: annotations (ASAP, QuPath), a mask of the whole slide, or a map of
      MIL.
    where: the slide.
    drawn: how it is read.

  Returns:
    Their union in µm, None if there is none, and a row for each thing that the
    reader of the results should know.

  Raises:
    ValueError: the file cannot be read, or does not belong to the slide.
  """
  path = pathlib.Path(path)
  end = path.suffix.lower()
  notes: list[SlideError] = []
  if annotation_files.is_polygons(path):
    found, notes = _annotated(path, where, drawn)
  elif end == _MAP:
    found = _of_map(path, where, drawn)
  else:
    found = _of_mask(path, where, drawn)
  whole = _large(found, drawn.min_area_um2)
  if whole is None:
    notes.append(_note(f"{path.name} holds no region", "no_region"))
  return whole, notes


def _note(message: str, code: str) -> SlideError:
  return SlideError(message, "regions", code)


def off_tissue(region: Window, window: Window) -> list[SlideError]:
  """Says that regions lie on glass: of another slide, or another scale."""
  share = region.intersection(window).area / region.area
  if share >= _MIN_ON_TISSUE:
    return []
  text = (
    f"only {share:.0%} of the regions' area lies on tissue: they may be of "
    "another slide, or count pixels of another level"
  )
  return [_note(text, "regions_off_tissue")]


def _annotated(path, where: Place, drawn: Drawn):
  """What people drew, less what they cut out."""
  include = None
  if drawn.include is not None:
    include = tuple(drawn.include) or annotations.INCLUDE
  others = (g for g in annotations.EXCLUDE if g not in (include or ()))
  is_qupath = annotation_files.is_geojson(path)
  try:
    found = annotations.read(
      path,
      include=include,
      exclude=tuple(drawn.exclude) or tuple(others),
      ignore=tuple(drawn.ignore),
      bounds_xy=where.bounds_xy if is_qupath else (0, 0),
    )
  except ValueError as error:
    keys = "config.regions.include, .exclude, .ignore"
    raise ValueError(f"{error} (groups are named in {keys})") from error
  notes = [_note(text, "no_area") for text in found.skipped]
  drawn_in = [_polygon(p.rings, where.mpp) for p in found.include]
  cut = [_polygon(p.rings, where.mpp) for p in found.exclude]
  if where.size_px is not None:
    slide = shapely.box(0, 0, *where.size_um)
    for one, polygon in zip(found.include, drawn_in, strict=True):
      if not polygon.intersects(slide):
        low, high = one.rings[0].min(axis=0), one.rings[0].max(axis=0)
        raise ValueError(
          f"{path.name}: annotation {one.name!r} ({low.round().tolist()} to "
          f"{high.round().tolist()}) lies outside the slide of "
          f"{where.size_px[0]}x{where.size_px[1]} level-0 px"
        )
  whole = shapely.union_all(drawn_in)
  twice = sum(p.area for p in drawn_in) - whole.area
  if twice > 1e-6 * max(whole.area, 1.0):
    notes.append(
      _note(
        f"regions of {path.name} overlap by {twice / 1e6:.4g} mm², which is "
        "counted once: they are joined",
        "overlapping_regions",
      )
    )
  return whole.difference(shapely.union_all(cut)), notes


def _polygon(rings: Sequence[np.ndarray], mpp: float) -> shapely.Geometry:
  """A drawn shape in µm; one that crosses itself is mended."""
  outer, *holes = (np.asarray(ring, np.float64) * mpp for ring in rings)
  return shapely.make_valid(shapely.Polygon(outer, holes))


def _of_mask(path, where: Place, drawn: Drawn) -> shapely.Geometry:
  if where.size_px is None:
    raise ValueError(f"{path.name}: a mask needs the slide it belongs to")
  values = [int(v) for v in drawn.include or () if v.isdigit()]
  downsample = max(1.0, drawn.mask_um / where.mpp)
  mask = annotation_masks.read_mask(
    path, where.size_px, downsample, values or None
  )
  return outlines(mask, downsample * where.mpp)


def _of_map(path, where: Place, drawn: Drawn) -> shapely.Geometry:
  """Where tiles say more than a threshold."""
  tile_map = TileMap.load(path)
  if not tile_map.level0_mpp:
    tile_map = dataclasses.replace(tile_map, level0_mpp=where.mpp)
  if not tile_map.level0_size and where.size_px is not None:
    tile_map = dataclasses.replace(tile_map, level0_size=where.size_px)
  found = map_regions.find_regions(tile_map, drawn.threshold)
  shapes = [_polygon(region.rings, where.mpp) for region in found]
  return shapely.union_all(shapes)


def outlines(
  mask: Bool[np.ndarray, "h w"], um_per_px: float
) -> shapely.Geometry:
  """A mask as polygons with holes, in µm from the corner of pixel (0, 0).

  Example:
    >>> mask = np.ones((5, 6), bool); mask[2, 2:4] = False
    >>> shape = outlines(mask, 10.0)
    >>> len(shape.interiors), round(shape.area)
    (1, 2800)
  """
  labels, _ = ndimage.label(mask, structure=_BY_SIDES)
  shapes = []
  for number, box in enumerate(ndimage.find_objects(labels), 1):
    corner = np.array([box[1].start, box[0].start], np.float64)
    rings = map_regions.outline(labels[box] == number)
    outer, *holes = ((ring + corner) * um_per_px for ring in rings)
    shapes.append(shapely.Polygon(outer, holes))
  return shapely.union_all(shapes)


def _large(shape: shapely.Geometry, min_area_um2: float) -> Window | None:
  """The pieces that have an area, and a large one; None if there is none."""
  parts = [
    part
    for part in shapely.get_parts(shape).tolist()
    if part.geom_type == "Polygon" and part.area > max(min_area_um2, 0)
  ]
  if not parts:
    return None
  return windows.union([windows.union(parts).simplify(_OUTLINE_UM)])


def window(
  where: Place,
  tissue: shapely.Geometry | None,
  annotated: Window | None,
  min_area_um2: float = 0.0,
) -> Window:
  """Where cells can be: tissue within what is annotated, or in the slide.

  Raises:
    SlideError: nothing of the slide is left.
  """
  shapes: list[shapely.Geometry] = []
  if where.size_px is not None:
    shapes.append(shapely.box(0, 0, *where.size_um))
  shapes += [shape for shape in (tissue, annotated) if shape is not None]
  found = _large(functools.reduce(shapely.intersection, shapes), min_area_um2)
  if found is None:
    raise SlideError(
      "there is no tissue"
      + (" within what is annotated" if annotated is not None else ""),
      "window",
      "no_tissue",
    )
  return found


def around(
  xy_um: Float[np.ndarray, "n 2"], close_um: float, pixel_um: float = 5.0
) -> shapely.Geometry:
  """Where cells are, for tables without a slide: closing by a disc.

  Two cells nearer than twice the radius have no gap between them; the outline
  runs along the outermost cells, about a pixel away.

  Args:
    xy_um: the cells.
    close_um: radius of the disc.
    pixel_um: how finely it is drawn.
  """
  reach = close_um + 2 * pixel_um
  low = xy_um.min(axis=0) - reach
  shape = np.ceil((xy_um.max(axis=0) + reach - low) / pixel_um).astype(int)
  mask = np.zeros(shape[::-1], bool)
  column, row = ((xy_um - low) / pixel_um).astype(int).T
  mask[row, column] = True
  reach_px = close_um / pixel_um
  grown = ndimage.distance_transform_edt(~mask) <= reach_px
  # A pixel is left around cells: they have a size, and would be single teeth.
  mask = ndimage.distance_transform_edt(grown) > reach_px - 1
  return shapely.affinity.translate(outlines(mask, pixel_um), *low)


def features(
  region: Window, mpp: float, bounds_xy: tuple[float, float] = (0, 0)
) -> list[list[Float[np.ndarray, "_ 2"]]]:
  """Rings of each polygon in level-0 pixels, as QuPath counts them."""
  origin = np.array(bounds_xy, np.float64)
  return [
    [
      shapely.get_coordinates(r) / mpp - origin
      for r in (p.exterior, *p.interiors)
    ]
    for p in shapely.get_parts(region).tolist()
  ]
