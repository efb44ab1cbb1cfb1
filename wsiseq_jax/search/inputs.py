"""What can be indexed, and how it becomes vectors with places.

    tiles       feature files of ours, TRIDENT, CLAM or STAMP, a file a slide
    + mil       the same through a MIL model's first layer, before its ReLU:
                what HERE retrieves by
    + region_um the mean over the tiles of squares of the slide
    sequences   `embeddings/<split>.npz` of the job `embed`, all slides of a
                split in one file

An `Item` is one slide of one of these. It can be sent to another machine, and
is read there.

Deviation from HERE: vectors before the ReLU, which could be zero after it.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32

from data_prep.files import done, tables
from data_prep.files.errors import SlideError, as_slide_error
from wsiseq_jax.data import tile_features
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.search import store
from wsiseq_jax.search.clustering import l2_normalise
from wsiseq_jax.search.settings import IndexBlock
from wsiseq_jax.search.store import SlideRows


@dataclasses.dataclass(frozen=True)
class Item:
  """A slide in a file of features."""

  slide_id: str
  path: str
  digest: str  # of its features and of how they are read
  rows: int  # tiles or sequences; rows of the index are never more


@dataclasses.dataclass(frozen=True)
class Maker:
  """What made features."""

  width: int
  # Of ours: the encoder's fingerprint, or the checkpoint's identity; '' = the
  # files do not say.
  fingerprint: str
  mpp: float | None  # um per pixel of the tiles; None = unknown

  def __str__(self) -> str:
    scale = f"{self.mpp:g}" if self.mpp else "unknown"
    return (
      f"features of width {self.width} by encoder "
      f"{self.fingerprint or 'unknown'} at {scale} um/px"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
  """A linear layer that is applied to features."""

  kernel: Float32[np.ndarray, "d e"]
  bias: Float32[np.ndarray, " e"]

  def __call__(
    self, features: Float32[np.ndarray, "n d"]
  ) -> Float32[np.ndarray, "n e"]:
    """What attention would see, before its ReLU."""
    return features @ self.kernel + self.bias


@dataclasses.dataclass(frozen=True, eq=False)
class How:
  """How items are read."""

  source: str  # 'tiles' or 'sequences'
  layer: Layer | None = None
  layer_name: str = ""  # which one, for digests
  maps: str = ""  # folder of the MIL job's maps, for scores
  region_um: float = 0.0
  tile_size: float | None = None
  # um per level-0 pixel, and um of a frame's side, by slide
  scales: Mapping[str, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def identity(self) -> list:
    """What the rows of an item depend on beside its file."""
    return [
      *(self.source, self.layer_name, self.region_um, self.tile_size or 0),
      bool(self.scales),
    ]


def find(
  block: IndexBlock, how: How
) -> tuple[list[Item], Maker, list[SlideError]]:
  """Finds all slides of a source, and who made their features.

  Args:
    block: the block `index` of the config.
    how: how items are read.

  Returns:
    Items, by slide id; what made the features; and slides that cannot be used:
    broken, or made by another encoder than most.

  Raises:
    ValueError: there is nothing.
  """
  if how.source == "sequences":
    return _find_sequences(pathlib.Path(block.features), how)
  return _find_tiles(pathlib.Path(block.features).expanduser(), how)


def _find_tiles(
  folder: pathlib.Path, how: How
) -> tuple[list[Item], Maker, list[SlideError]]:
  doubled: dict[str, str] = {}
  try:
    files = tile_features.find(folder, doubled)
  except ValueError as error:
    raise ValueError(f"config.index.features: {error}") from error
  errors = [SlideError(v, "find", "two_files", k) for k, v in doubled.items()]
  headers, makers = {}, collections.Counter()
  for slide_id, path in files.items():
    try:
      header = headers[slide_id] = tile_features.header(path)
      makers[Maker(header.width, header.encoder, header.mpp)] += 1
    except ValueError as error:
      errors.append(SlideError(str(error), "read", "unreadable", slide_id))
  if not makers:
    raise ValueError(f"config.index.features: {errors[0].message}")
  items, ((most, _),) = [], makers.most_common(1)
  for slide_id, header in headers.items():
    maker = Maker(header.width, header.encoder, header.mpp)
    if maker != most:
      errors.append(_other_encoder(slide_id, maker, most))
      continue
    digest = done.digest([header.identity, how.identity])
    items.append(Item(slide_id, str(files[slide_id]), digest, header.tiles))
  return items, most, errors


def _other_encoder(slide_id: str, maker: Maker, first: Maker) -> SlideError:
  return SlideError(
    f"{maker}, but the index has {first}: an index holds what one encoder made "
    "at one scale",
    "read",
    "other_encoder",
    slide_id,
  )


def _find_sequences(
  folder: pathlib.Path, how: How
) -> tuple[list[Item], Maker, list[SlideError]]:
  inner = folder / "embeddings"
  folder = inner if inner.is_dir() else folder
  paths = sorted(folder.glob("*.npz"))
  if not paths:
    raise ValueError(
      f"config.index.features = {str(folder)!r}: no embeddings there (*.npz); "
      "write them with --config.job=embed"
    )
  items, made_by = [], {}
  for path in paths:
    arrays = _npz(str(path))
    made_by[path.name] = str(arrays["checkpoint"])
    ids = arrays["slide_id"].astype(str)
    for slide_id in np.unique(ids):
      mine = ids == slide_id
      content = hashlib.sha256(arrays["features"][mine].tobytes()).hexdigest()
      digest = done.digest([content, made_by[path.name], how.identity])
      items.append(Item(slide_id, str(path), digest, int(mine.sum())))
  if len(set(made_by.values())) > 1:
    raise ValueError(
      f"config.index.features: {folder} has embeddings of several checkpoints, "
      f"{made_by}: run --config.job=embed again"
    )
  items.sort(key=lambda item: item.slide_id)
  return items, Maker(arrays["features"].shape[1], made_by[path.name], None), []


@functools.lru_cache(maxsize=1)
def _npz(path: str) -> dict[str, np.ndarray]:
  """The arrays of a split; slides are read one after another."""
  try:
    with np.load(path, allow_pickle=False) as file:
      found = {name: file[name] for name in file.files}
    for name in ("features", "slide_id", "frame_level0_xy", "checkpoint"):
      found[name]
  except Exception as error:  # NumPy and zipfile raise whatever they like
    raise ValueError(f"{path} has no embeddings: {error!r}") from error
  return found


def read(item: Item, how: How) -> SlideRows:
  """Reads a slide.

  Raises:
    SlideError: it cannot be used.
  """
  try:
    if how.source == "sequences":
      return _sequences(item, how)
    return _tiles(item, how)
  except Exception as error:  # whatever a stranger's file makes a library do
    raise as_slide_error(
      error, item.slide_id, "read", "config.workdir"
    ) from error


def _tiles(item: Item, how: How) -> SlideRows:
  tiles = tile_features.read(item.path, how.tile_size)
  vectors = tiles.features
  if how.layer is not None:
    vectors = how.layer(vectors)
  vectors = l2_normalise(vectors) if len(vectors) else vectors
  rows = np.full(len(vectors), np.nan, store.ROW)
  if tiles.unit == "level0_px" or tiles.level0_mpp:
    xy, side = tiles.level0_xy()
    rows["x0"], rows["y0"] = xy.T
    rows["w0"] = rows["h0"] = side
  rows["score"] = _scores(item, how, tiles)
  if how.region_um and len(vectors):
    vectors, rows = _regions(tiles, vectors, rows, how.region_um)
  return SlideRows(item.slide_id, vectors, rows, level0_mpp=tiles.level0_mpp)


def _scores(
  item: Item, how: How, tiles: tile_features.TileFeatures
) -> Float[np.ndarray, " m"] | float:
  """Probabilities of the MIL job's map; NaN without one of these tiles."""
  path = pathlib.Path(how.maps) / f"{item.slide_id}.npz"
  if not how.maps or not path.is_file():
    return np.nan
  found = TileMap.load(path)
  is_same = found.xy.shape == tiles.xy.shape and (found.xy == tiles.xy).all()
  return found.probability if is_same else np.nan


def _regions(
  tiles: tile_features.TileFeatures,
  vectors: Float32[np.ndarray, "m d"],
  rows: np.ndarray,
  region_um: float,
) -> tuple[Float32[np.ndarray, "r d"], np.ndarray]:
  """Means over the tiles whose middle is in a square of the slide."""
  if tiles.unit == "um":
    side = region_um
  elif tiles.level0_mpp:
    side = region_um / tiles.level0_mpp
  else:
    raise ValueError(
      "config.index.region_um: the slide's um per pixel is unknown"
    )
  cell = np.floor((tiles.xy + tiles.tile_size / 2) / side).astype(np.int64)
  _, of, count = np.unique(
    cell, axis=0, return_inverse=True, return_counts=True
  )
  of = of.ravel()
  summed = np.zeros((len(count), vectors.shape[1]), np.float32)
  np.add.at(summed, of, vectors)
  out = np.full(len(count), np.nan, store.ROW)
  for low, size in (("x0", "w0"), ("y0", "h0")):
    ends = np.full((2, len(count)), np.inf)
    np.minimum.at(ends[0], of, rows[low])
    np.minimum.at(ends[1], of, -(rows[low] + rows[size]))
    out[low], out[size] = ends[0], -ends[1] - ends[0]
  total = np.zeros(len(count))
  np.add.at(total, of, rows["score"])
  out["score"] = total / count
  return l2_normalise(summed), out


def _sequences(item: Item, how: How) -> SlideRows:
  arrays = _npz(item.path)
  mine = arrays["slide_id"].astype(str) == item.slide_id
  vectors = l2_normalise(arrays["features"][mine])
  rows = np.full(len(vectors), np.nan, store.ROW)
  xy = arrays["frame_level0_xy"][mine]
  low, high = np.nanmin(xy, axis=1), np.nanmax(xy, axis=1)
  mpp, frame_um = how.scales.get(item.slide_id, (np.nan, np.nan))
  # Without a scale the way of the frames' centres is all that is known.
  half = frame_um / mpp / 2 if mpp > 0 and frame_um > 0 else 0.0
  rows["x0"], rows["y0"] = (low - half).T
  rows["w0"], rows["h0"] = (high - low + 2 * half).T
  return SlideRows(
    item.slide_id, vectors, rows, level0_mpp=mpp if mpp > 0 else None
  )


def scales(
  prep: str, frame_px: Sequence[int]
) -> dict[str, tuple[float, float]]:
  """Scale, um per level-0 pixel, and um of a frame, of prepared slides."""
  found = {}
  for row in tables.rows_of(pathlib.Path(prep) / "slides.csv"):
    mpp, target = row.get("mpp", ""), row.get("target_mpp", "")
    if mpp:
      frame = max(frame_px) * float(target or mpp)
      found[row["slide_id"]] = float(mpp), frame
  return found
