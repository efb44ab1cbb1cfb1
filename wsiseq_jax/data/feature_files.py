"""Feature files: one slide's tile features and where the tiles lie.

HDF5, one file a slide, the file's name is the slide id. We write the layout
that CLAM and TRIDENT share, and read what these and STAMP write:

    made by   features              coords [m, 2]          tile side known by
    ours      features f32 [m, d]   int64, level-0 px      tile_size_level0
    TRIDENT   features f32 [m, d]   int64, level-0 px      patch_size_level0
    CLAM      features f32 [m, d]   int, level-0 px        nothing: see `read`
    STAMP     feats f16 [m, d]      float, micrometres     tile_size_um

`coords` are top-left corners everywhere. The attributes of `coords` that we
write are TRIDENT's (`patch_size`, `patch_size_level0`, `level0_magnification`,
`target_magnification`, `overlap`, `name`, `savetodir`, `level0_width`,
`level0_height`), CLAM's (`patch_level`, `downsample`, `custom_downsample`,
`level_dim`, `downsampled_level_dim`), and ours: `mpp`, `level0_mpp`, and
`tile_size_level0`, which is `patch_size_level0` before rounding: a tile of 224
px at 0.5 um/px covers 443.04 px of a slide scanned at 0.2528. What is not known
is left out. Magnifications are 10 / mpp, not rounded to 20 or 40.

A slide without tissue has a file too, with 0 rows: it is a slide that was
looked at, and an evaluation has to count it.
"""

import collections
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from data_prep.files import atomic
from wsiseq_jax.data.tile_features import TileFeatures, check

__all__ = [
  "SUFFIXES",
  "TileFeatures",
  "check",
  "common_width",
  "find",
  "read",
  "shape",
  "slide_id_of",
  "write",
]

SUFFIXES = (".h5", ".hdf5")

Number = int | float | np.integer | np.floating


def slide_id_of(path: str | os.PathLike) -> str:
  """Returns the slide id: the file's name without .h5.

  Args:
    path: a feature file.

  Returns:
    The slide id.

  Example:
    >>> slide_id_of("features/TCGA-A1-A0SB.1.h5")
    'TCGA-A1-A0SB.1'
  """
  return pathlib.Path(path).stem


def find(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
  """Finds the feature files of a folder and the folders below it.

  Args:
    folder: where; one encoder's files (`h5_files` of CLAM,
      `.../features_<encoder>` of TRIDENT, `features` of ours).

  Returns:
    Slide id to file, by slide id.

  Raises:
    ValueError: no such folder, no file in it, or two files of one slide.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f"no such folder of feature files: {folder}")
  found: dict[str, pathlib.Path] = {}
  for path in sorted(folder.rglob("*")):
    hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
    if path.suffix.lower() not in SUFFIXES or hidden or not path.is_file():
      continue
    slide_id = slide_id_of(path)
    if slide_id in found:
      raise ValueError(
        f"two feature files of the slide {slide_id!r}: {found[slide_id]} and "
        f"{path}; name the folder of one encoder"
      )
    found[slide_id] = path
  if not found:
    raise ValueError(
      f"no feature file ({', '.join(SUFFIXES)}) in the folder {folder}"
    )
  return dict(sorted(found.items()))


def shape(path: str | os.PathLike) -> tuple[int, int]:
  """Returns the number of tiles and the feature width, without reading them.

  Args:
    path: a feature file.

  Returns:
    m, d.

  Raises:
    ValueError: it is no feature file.
  """
  with _open(path) as file:
    return _dataset(file, path)[0].shape


def common_width(files: Mapping[str, pathlib.Path]) -> int:
  """Returns the feature width that all files have.

  Args:
    files: slide id to file, from `find`.

  Returns:
    d.

  Raises:
    ValueError: they differ: features of two encoders are mixed.
  """
  if not files:
    raise ValueError("no feature files")
  widths = {slide_id: shape(path)[1] for slide_id, path in files.items()}
  first: dict[int, str] = {}
  for slide_id, width in widths.items():
    first.setdefault(width, slide_id)
  if len(first) > 1:
    counts = collections.Counter(widths.values())
    each = ", ".join(
      f"{counts[width]} of width {width} (such as {files[slide_id]})"
      for width, slide_id in first.items()
    )
    raise ValueError(
      f"feature files of different widths: {each}; they come from different "
      "encoders and cannot be used together"
    )
  return next(iter(first))


def read(
  path: str | os.PathLike, tile_size: Number | None = None
) -> TileFeatures:
  """Reads a feature file of ours, TRIDENT's, CLAM's or STAMP's.

  CLAM's files do not say how large a tile is. It is then taken from the
  spacing of the coordinates, if most neighbours in a row or a column are
  equally far apart; that is right where tiles do not overlap.

  Args:
    path: the file.
    tile_size: side of a tile in the file's unit, for files that do not say
      and whose tiles are too few or overlap.

  Returns:
    The tiles; features as float32.

  Raises:
    ValueError: no such file, no feature file, NaN, mismatching lengths, an
      unknown unit, or an unknown tile size.
  """
  with _open(path) as file:
    features, coords = _dataset(file, path)
    # Half precision is STAMP's; anything wider overflows to inf, an error.
    with np.errstate(over="ignore"):
      rows = features[:].astype(np.float32)
    xy = coords[:].astype(np.float64)
    on_file, on_features = dict(file.attrs), dict(features.attrs)
    on_coords = dict(coords.attrs)
    is_stamp = features.name == "/feats"
  common = {
    "slide_id": slide_id_of(path),
    "features": rows,
    "xy": xy,
  }
  if is_stamp:
    tiles = _stamp(path, on_file, tile_size, common)
  else:
    tiles = _level0(path, on_features, on_coords, tile_size, common)
  check(tiles, str(path))
  return tiles


def write(
  path: str | os.PathLike,
  tiles: TileFeatures,
  attributes: Mapping[str, Any] | None = None,
  overlap_px: int = 0,
) -> None:
  """Writes a feature file: complete or not at all.

  Args:
    path: the file; its folder must exist. The name is the slide id.
    tiles: the tiles, in level-0 px (corners are rounded to whole ones).
    attributes: more attributes, put on the file itself, where other programs
      do not look.
    overlap_px: overlap of neighbouring tiles, px at `tiles.mpp`.

  Raises:
    ValueError: NaN, mismatching lengths, or tiles in um.
    OSError: the disk is full or not writable; an old file is still there.
  """
  path = pathlib.Path(path)
  check(tiles, str(path))
  if tiles.unit != "level0_px":
    raise ValueError(
      f"{path}: tiles in {tiles.unit!r} cannot be written, only in level-0 px"
    )
  with atomic.replacing(path) as draft:
    with h5py.File(draft, "w") as file:
      features = file.create_dataset("features", data=tiles.features)
      features.attrs.update(
        name=tiles.slide_id, encoder=tiles.encoder, savetodir=str(path.parent)
      )
      coords = file.create_dataset(
        "coords", data=np.rint(tiles.xy).astype(np.int64)
      )
      for name, value in _coords_attributes(tiles, overlap_px).items():
        coords.attrs[name] = value
      coords.attrs.update(name=tiles.slide_id, savetodir=str(path.parent))
      file.attrs.update(attributes or {})
    atomic.sync(draft)


def _coords_attributes(tiles: TileFeatures, overlap_px: int) -> dict[str, Any]:
  found: dict[str, Any] = {"overlap": overlap_px, "patch_level": 0}
  size = tiles.tile_size
  found["downsample"] = np.ones(2)
  if np.isfinite(size):
    found["tile_size_level0"] = float(size)
    found["patch_size_level0"] = round(size)
  if tiles.level0_mpp is not None:
    found["level0_mpp"] = tiles.level0_mpp
    found["level0_magnification"] = 10 / tiles.level0_mpp
  if tiles.mpp is not None:
    found["mpp"] = tiles.mpp
    found["target_magnification"] = 10 / tiles.mpp
  if tiles.mpp and tiles.level0_mpp and np.isfinite(size):
    found["patch_size"] = round(size * tiles.level0_mpp / tiles.mpp)
    # CLAM: footprint = patch_size x downsample x custom_downsample.
    found["custom_downsample"] = float(size) / found["patch_size"]
  if tiles.level0_size is not None:
    found["level0_width"], found["level0_height"] = tiles.level0_size
    found["level_dim"] = np.array(tiles.level0_size)
    found["downsampled_level_dim"] = np.array(tiles.level0_size)
  return found


def _open(path: str | os.PathLike) -> h5py.File:
  if not pathlib.Path(path).is_file():
    raise ValueError(f"no such feature file: {path}")
  try:
    return h5py.File(path, "r")
  except OSError as error:
    raise ValueError(f"cannot read the feature file {path}: {error}") from error


def _dataset(
  file: h5py.File, path: str | os.PathLike
) -> tuple[h5py.Dataset, h5py.Dataset]:
  """Returns features and coordinates, checked but not read."""
  names = [name for name in ("features", "feats") if name in file]
  if len(names) != 1 or "coords" not in file:
    raise ValueError(
      f"{path} holds {sorted(file)}: expected 'features' and 'coords' (CLAM, "
      "TRIDENT) or 'feats' and 'coords' (STAMP)"
    )
  features, coords = file[names[0]], file["coords"]
  if features.ndim != 2 or features.dtype.kind != "f":
    raise ValueError(
      f"{path}: {names[0]} is {features.dtype} {features.shape}, want "
      "floating-point (tiles, width)"
    )
  if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
    raise ValueError(
      f"{path}: coords is {coords.dtype} {coords.shape}, want (tiles, 2)"
    )
  if len(features) != len(coords):
    raise ValueError(
      f"{path}: {len(features)} rows of features but {len(coords)} coordinates"
    )
  return features, coords


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _stamp(
  path: str | os.PathLike,
  attributes: Mapping[str, Any],
  tile_size: Number | None,
  common: Mapping[str, Any],
) -> TileFeatures:
  unit = _text(attributes.get("unit", ""))
  if unit != "um":
    raise ValueError(
      f"{path}: coords of 'feats' have the unit {unit!r} (attribute 'unit' of "
      "the file), want 'um'"
    )
  size = attributes.get("tile_size_um", tile_size)
  if size is None:
    raise ValueError(
      f"{path} has no attribute 'tile_size_um': give tile_size, in um"
    )
  pixels = attributes.get("tile_size_px")
  return TileFeatures(
    **common,
    tile_size=float(size),
    unit="um",
    mpp=None if pixels is None else float(size) / float(pixels),
    encoder=_text(attributes.get("extractor", "")),
  )


def _level0(
  path: str | os.PathLike,
  on_features: Mapping[str, Any],
  on_coords: Mapping[str, Any],
  tile_size: Number | None,
  common: Mapping[str, Any],
) -> TileFeatures:
  def number(name: str) -> float | None:
    return None if name not in on_coords else float(on_coords[name])

  size = number("tile_size_level0") or number("patch_size_level0")
  if size is None and "patch_size" in on_coords and "downsample" in on_coords:
    factors = (on_coords["downsample"], on_coords.get("custom_downsample", 1))
    size = number("patch_size") * float(
      np.prod([np.ravel(factor)[0] for factor in factors])
    )
  if size is None:
    size = float("nan") if not len(common["xy"]) else tile_size
  if size is None:
    size = _spacing(common["xy"])
  if size is None:
    raise ValueError(
      f"{path} does not say how large its tiles are, and the spacing of its "
      f"{len(common['xy'])} coordinates does not tell: give tile_size, in "
      "level-0 pixels"
    )
  sides = [on_coords.get(f"level0_{name}") for name in ("width", "height")]
  return TileFeatures(
    **common,
    tile_size=float(size),
    mpp=number("mpp"),
    level0_mpp=number("level0_mpp"),
    level0_size=None if None in sides else tuple(int(side) for side in sides),
    encoder=_text(on_features.get("encoder", "")),
  )


def _spacing(xy: Float[np.ndarray, "m 2"]) -> float | None:
  """Returns the usual distance of neighbours in a row or a column, if any.

  Each piece of tissue may have a grid of its own, so distances are taken only
  between tiles that share a row or a column exactly; gaps are longer.

  Example:
    >>> xy = np.array([[0, 0], [256, 0], [512, 0], [37, 99], [37, 355]])
    >>> _spacing(xy.astype(float))
    256.0
  """
  steps = []
  for across, along in ((0, 1), (1, 0)):
    order = np.lexsort((xy[:, along], xy[:, across]))
    step = np.diff(xy[order], axis=0)
    steps.append(step[(step[:, across] == 0) & (step[:, along] > 0), along])
  steps = np.concatenate(steps)
  if not len(steps):
    return None
  values, counts = np.unique(steps, return_counts=True)
  best = counts.argmax()
  return float(values[best]) if counts[best] > len(steps) / 2 else None
