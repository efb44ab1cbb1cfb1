"""Tile features of a slide: in memory, and as HDF5 files of four programs.

One file a slide, the file's name is the slide id. We write the layout that CLAM
and TRIDENT share, and read what these and STAMP write:

    made by   features              coords [m, 2]          tile side known by
    ours      features f32 [m, d]   int64, level-0 px      tile_size_level0
    TRIDENT   features f32 [m, d]   int64, level-0 px      patch_size_level0
    CLAM      features f32 [m, d]   int, level-0 px        nothing: see `read`
    STAMP     feats f16 [m, d]      float, micrometres     tile_size_um

A leading axis of 1, `[1, m, d]`, is dropped. `coords` are top-left corners.

Beside the attributes of TRIDENT and CLAM we write `mpp`, `level0_mpp` and
`tile_size_level0`, which is `patch_size_level0` before rounding: a tile of 224
px at 0.5 um/px covers 443.04 px of a slide scanned at 0.2528. What is not known
is left out. Magnifications are 10 / mpp, not rounded to 20 or 40.

A slide without tissue has a file of 0 rows: it was looked at, and an evaluation
has to count it.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Float, Float32, Float64

from data_prep.files import atomic, names
from wsiseq_jax.data import hdf5

SUFFIXES = (".h5", ".hdf5")
UNITS = ("level0_px", "um")
_LARGEST = 1e8  # of a feature; damaged bytes are floats of any size

Number = int | float | np.integer | np.floating


@dataclasses.dataclass(frozen=True, eq=False)
class TileFeatures:
  """The tiles of one slide."""

  slide_id: str  # the slide
  features: Float32[np.ndarray, "m d"]  # one row a tile
  # x, y of the tiles' top-left corners, in `unit`.
  xy: Float64[np.ndarray, "m 2"]
  # Side of a tile's footprint, in `unit`; nan if there is no tile and the file
  # does not say.
  tile_size: float
  unit: str = "level0_px"  # 'level0_px' or 'um'
  mpp: float | None = None  # um/px that the tiles were read at; None = unknown
  level0_mpp: float | None = None  # um per level-0 pixel; None = unknown
  # Width, height of the slide in level-0 px; None = unknown.
  level0_size: tuple[int, int] | None = None
  encoder: str = ""  # what made the features; '' = unknown

  def level0_xy(
    self, mpp: Number | None = None
  ) -> tuple[Float64[np.ndarray, "m 2"], float]:
    """Corners and side of the tiles in level-0 pixels.

    Args:
      mpp: um per level-0 pixel, for files in um that do not say.

    Raises:
      ValueError: the file is in um and no mpp is known.
    """
    if self.unit == "level0_px":
      return self.xy, self.tile_size
    mpp = self.level0_mpp if mpp is None else mpp
    if mpp is None or not mpp > 0:
      raise ValueError(
        f"slide {self.slide_id!r}: tiles are in um, and level-0 pixels need "
        f"the um per level-0 pixel of the slide, which is {mpp}: give mpp"
      )
    return self.xy / float(mpp), self.tile_size / float(mpp)


def check(tiles: TileFeatures, name: str) -> None:
  """Raises a ValueError that names the file and what is wrong with it."""
  count, width = tiles.features.shape
  if width < 1:
    raise ValueError(f"{name}: features have no columns ({count}, {width})")
  if len(tiles.xy) != count:
    raise ValueError(
      f"{name}: {count} rows of features but {len(tiles.xy)} coordinates"
    )
  for what, values in (("features", tiles.features), ("coords", tiles.xy)):
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
      raise ValueError(
        f"{name}: {what} of {int(bad.sum())} of {count} tiles are NaN or "
        f"infinite, the first is row {int(bad.argmax())}"
      )
  if count and (top := float(np.abs(tiles.features).max())) > _LARGEST:
    raise ValueError(
      f"{name}: features go up to {top:.2g}, which no encoder makes: damaged?"
    )
  if tiles.unit not in UNITS:
    raise ValueError(f"{name}: unit {tiles.unit!r}, want one of {UNITS}")
  if count and not 0 < tiles.tile_size < np.inf:
    raise ValueError(f"{name}: tile size {tiles.tile_size}, want more than 0")


def find(
  folder: str | os.PathLike, doubled: dict[str, str] | None = None
) -> dict[str, pathlib.Path]:
  """Finds the feature files of a folder and the folders below it.

  Args:
    folder: one encoder's files: `h5_files` of CLAM, `features_<encoder>` of
      TRIDENT, `features` of ours.
    doubled: takes what is wrong with slides of several files, by slide, which
      are then left out.

  Returns:
    Slide id to file, sorted.

  Raises:
    ValueError: no such folder, no file in it, or two files of one slide: of
      most slides, if `doubled` takes the others.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f"no such folder of feature files: {folder}")
  files: dict[str, list[pathlib.Path]] = {}
  for path in sorted(folder.rglob("*")):
    hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
    if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
      files.setdefault(names.stem(path), []).append(path)
  if not files:
    raise ValueError(
      f"no feature file ({', '.join(SUFFIXES)}) in the folder {folder}"
    )
  twice = {
    slide_id: f"two feature files of the slide {slide_id!r}: {paths[0]} and "
    f"{paths[1]}; name the folder of one encoder"
    for slide_id, paths in files.items()
    if len(paths) > 1
  }
  if twice and (doubled is None or len(twice) > len(files) / 2):
    raise ValueError(next(iter(twice.values())))
  if doubled is not None:
    doubled |= twice
  return {k: v[0] for k, v in sorted(files.items()) if k not in twice}


class FeatureHeader(NamedTuple):
  """What a file says without its features being read.

  `identity` hashes the shape, all places and 16 rows of features: the same for
  a copy, another one for another encoder, other tiles or another run.
  """

  tiles: int
  width: int
  identity: str
  encoder: str  # fingerprint of ours; '' in files of others
  mpp: float | None  # um per pixel of the tiles


def header(path: str | os.PathLike) -> FeatureHeader:
  """Reads the header of a feature file; a ValueError if it is none."""
  with hdf5.opened(path) as file:
    features, coords = hdf5.datasets(file, path)
    count, width = features.shape[-2:]
    digest = hashlib.blake2b(repr((count, width)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(coords[:]))
    for row in sorted({round(i) for i in np.linspace(0, count - 1, 16)}):
      if count:
        digest.update(np.ascontiguousarray(features[..., row, :]))
    a = {"tile_size_um": 0, "tile_size_px": 1, **coords.attrs, **file.attrs}
    mpp = float(a.get("mpp", a["tile_size_um"] / a["tile_size_px"])) or None
  made = digest.hexdigest(), hdf5.text(a.get("encoder_fingerprint", "")), mpp
  return FeatureHeader(count, width, *made)


def read(
  path: str | os.PathLike, tile_size: Number | None = None
) -> TileFeatures:
  """Reads a feature file of ours, TRIDENT's, CLAM's or STAMP's.

  CLAM's files do not say how large a tile is. It is then the distance of most
  neighbours in a row or a column, which is right where tiles do not overlap.

  Args:
    path: the file.
    tile_size: side of a tile in the file's unit, for files that do not say
      and whose tiles are too few or overlap.

  Raises:
    ValueError: naming the file and what is wrong with it.
  """
  with hdf5.opened(path) as file:
    features, coords = hdf5.datasets(file, path)
    # Half precision is STAMP's; anything wider overflows to inf, an error.
    with np.errstate(over="ignore"):
      rows = features[:].astype(np.float32)
    rows = rows.reshape(features.shape[-2:])
    xy = coords[:].astype(np.float64).reshape(-1, 2)
    on_file, on_features = dict(file.attrs), dict(features.attrs)
    on_coords = dict(coords.attrs)
    is_stamp = features.name == "/feats"
  common = {"slide_id": names.stem(path), "features": rows, "xy": xy}
  if is_stamp:
    tiles = _stamp(path, on_file, tile_size, common)
  else:
    tiles = _level0(path, on_features, on_coords, tile_size, common)
  check(tiles, str(path))
  if len(rows) and not rows.any():
    raise ValueError(f"{path}: all features are 0: the encoder failed?")
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
    OSError: it cannot be written; an old file is still there.
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


def _stamp(
  path: str | os.PathLike,
  attributes: Mapping[str, Any],
  tile_size: Number | None,
  common: Mapping[str, Any],
) -> TileFeatures:
  unit = hdf5.text(attributes.get("unit", ""))
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
    encoder=hdf5.text(attributes.get("extractor", "")),
  )


def _level0(
  path: str | os.PathLike,
  on_features: Mapping[str, Any],
  on_coords: Mapping[str, Any],
  tile_size: Number | None,
  common: Mapping[str, Any],
) -> TileFeatures:
  def number(name: str) -> float | None:
    if name not in on_coords:
      return None
    try:
      found = {float(value) for value in np.ravel(on_coords[name])}
    except ValueError:
      found = set()
    if len(found) != 1:  # of x and y
      raise ValueError(
        f"{path}: the attribute {name} of coords is {on_coords[name]!r}: want "
        "one number"
      )
    return found.pop()

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
    encoder=hdf5.text(on_features.get("encoder", "")),
  )


def _spacing(xy: Float[np.ndarray, "m 2"]) -> float | None:
  """The usual distance of neighbours in a row or a column, if any."""
  # Each piece of tissue may have a grid of its own: only tiles that share a row
  # or a column exactly are compared.
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
