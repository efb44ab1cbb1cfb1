"""Labelled pictures by index, and the batches that training is fed.

    DATA         shards, or the folder that preparation wrote
    synthetic    a tiny cohort, drawn for the presets `smoke`

Arrays of a batch, on the devices, `b` pictures or crops of `h` × `w`:

    pixels   uint8 [b, h, w, 3]     RGB, 0 in padding
    labels   float32 [b, y]         of the foreground classes: 0, 1, NaN = not
                                    known; all 0 is a certain negative
    truth    uint8 [b, h, w]        0 background, 1..y classes, 255 not known;
                                    certain negatives are 0 without a mask too
    tissue   uint8 [b, h, w]        1 tissue, 0 glass and padding
    points   float32 [b, p, 3]      x, y in px of this array, class 0..y; class
                                    -1 fills up; whole numbers are centres of
                                    pixels
    size     int32 [b, 2]           real (h, w) of what may be padded
    index    int32 [b]              number of the picture in its split
    mask     float32 [b]            0 where a row only fills up the batch
    target   uint8 [b, h, w]        with maps of an earlier stage: classes,
    weight   float32 [b, h, w]      255 = ignore, and how much each counts

Pictures are decoded and cut on the host, in threads. What is drawn is a
function of seed and step and nothing else: a run that goes on sees what an
undisturbed one would.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import cv2
import grain
import jax
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from tensorflow_datasets.core import example_parser

from data_prep.pictures import records
from data_prep.synthetic import pictures as synthetic
from wsiseq_jax import parallel
from wsiseq_jax.data import loader, source
from wsiseq_jax.segment import cuts
from wsiseq_jax.segment.cuts import Crops
from wsiseq_jax.segment.maps import Maps

Batch = dict[str, np.ndarray]
NOT_KNOWN = records.NOT_KNOWN
THREADS = 4  # that read and decode; decoding releases Python's lock
_BATCHES_AHEAD = 2  # in the making while one is used
# Padded shapes of a set; each is compiled anew.
_MOST_SHAPES = 8


@dataclasses.dataclass(frozen=True)
class PictureSpec:
  """What all pictures of a data set share."""

  fingerprint: str  # names schema and preparation settings
  classes: tuple[str, ...]  # of the foreground, class 1 first
  most_points: int  # points of the picture that has most
  metadata: Mapping[str, Any] = dataclasses.field(repr=False, hash=False)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledPicture:
  """One picture with all that is known of it; arrays as in a batch."""

  id: str
  patient_id: str
  slide_id: str
  size: tuple[int, int]  # (h, w)
  mpp: float  # micrometres per pixel, NaN where unknown
  level0_xy: tuple[float, float]  # top left corner on the slide, or NaN
  pixels: UInt8[np.ndarray, "h w 3"]
  labels: Float[np.ndarray, " y"]
  truth: UInt8[np.ndarray, "h w"]
  tissue: UInt8[np.ndarray, "h w"]
  points: Float[np.ndarray, "n 3"]


class Pictures:
  """The pictures of one split, by index.

  Args:
    path: shards, the folder that preparation wrote, or `synthetic`.
    split: name of the split.
    key: config key of `split`, for the error.

  Raises:
    ValueError: no shards of pictures there, or no such split.
  """

  def __init__(
    self, path: str | os.PathLike, split: str, key: str = "data.train_split"
  ):
    if str(path) == "synthetic":
      path = synthetic.cached()
    self._folder = source.shard_folder(path)
    info = tfds.builder_from_directory(self._folder).info
    metadata = dict(info.metadata or {})
    version = metadata.get("schema_version")
    if version != records.SCHEMA_VERSION:
      raise ValueError(
        f"config.data.path = {os.fspath(path)!r}: shards of schema version "
        f"{version!r}, want {records.SCHEMA_VERSION!r}: labelled pictures, "
        "which `python -m data_prep --config=configs/prep_pictures.py` writes"
      )
    if split not in info.splits or not info.splits[split].num_examples:
      raise ValueError(
        f"config.{key} = {split!r}: no pictures; {self._folder} has "
        + ", ".join(f"{k} ({v.num_examples})" for k, v in info.splits.items())
      )
    self.split = split
    table = source.read_targets(self._folder)
    self.spec = PictureSpec(
      fingerprint=metadata["fingerprint"],
      classes=tuple(target.name for target in table.targets),
      most_points=int(metadata["most_points"]),
      metadata=metadata,
    )
    index = metadata["pictures"][split]
    self.ids = tuple(index["picture_id"])
    self.patient_ids = tuple(index["patient_id"])
    self.slide_ids = tuple(index["slide_id"])
    self.sizes = np.array(index["size"], np.int32)  # [n, 2], (h, w)
    self.labels = np.stack([table.of(name) for name in self.ids])  # [n, y]
    # Whether the truth is known: of certain negatives it is without a mask.
    self.has_truth = index["has_mask"] | (self.labels == 0).all(1)  # [n]
    self._parser = example_parser.ExampleParserNp(
      info.features.get_serialized_info()
    )
    self._paths = [os.fspath(file) for file in info.splits[split].filepaths]
    self._files = grain.sources.ArrayRecordDataSource(self._paths)

  @functools.cached_property
  def identity(self) -> str:
    """Tells these pictures and labels from those of any other data set."""
    names = ("dataset_info.json", "metadata.json", "targets.json")
    parts = [(self._folder / name).read_bytes() for name in names]
    parts += [str(os.path.getsize(p)).encode() for p in self._paths]
    parts.append(self.split.encode())
    return hashlib.sha256(b"|".join(parts)).hexdigest()

  def __len__(self) -> int:
    return len(self.ids)

  def picture(self, index: int) -> LabelledPicture:
    """Reads and decodes a picture.

    Args:
      index: from 0, in the order of the shards.

    Raises:
      ValueError: the shards hold something that is no picture.
    """
    example = self._parser.parse_example(self._files[index])
    record = records.from_example(example)
    try:
      pixels = _decode_rgb(record.image)
      mask = _decode_grey(record.mask)
      tissue = _decode_grey(record.tissue)
    except ValueError as error:
      raise ValueError(f"picture {record.picture_id!r}: {error}") from error
    return LabelledPicture(
      record.picture_id,
      record.patient_id,
      record.slide_id,
      record.size,
      record.mpp,
      record.level0_xy,
      pixels,
      self.labels[index],
      records.settled(mask, self.labels[index]),
      tissue,
      record.points,
    )


def _decode_rgb(image: bytes) -> UInt8[np.ndarray, "h w 3"]:
  if image[:2] == b"\xff\xd8":
    return simplejpeg.decode_jpeg(image)
  pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
  if pixels is None:
    raise ValueError("neither JPEG nor PNG")
  return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _decode_grey(png: bytes) -> UInt8[np.ndarray, "h w"]:
  pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.ndim != 2:
    raise ValueError("its mask is no grey PNG")
  return pixels


def train_batches(
  pictures: Pictures,
  settings: Crops,
  seed: int,
  mesh: Mesh,
  start_step: int = 0,
  targets: str | os.PathLike | None = None,
  order: Callable[[int], Sequence[int]] | None = None,
) -> Iterator[dict[str, jax.Array]]:
  """Endless batches of random crops.

  Args:
    pictures: a split.
    settings: how crops are cut.
    seed: of order and crops.
    mesh: the devices.
    start_step: first step; what a step sees does not depend on it.
    targets: folder of maps of an earlier stage (`Maps`).
    order: step → indices of its pictures; all, shuffled each epoch, by
      default.

  Yields:
    Batches on the devices, see the module. Close the iterator to end its
    threads.

  Raises:
    ValueError: the batch does not divide over the devices, or a map is missing
      or has another size.
  """
  b = settings.batch_size
  parallel.check_batch_size(b, mesh)
  maps = None if targets is None else Maps(targets)
  count, shape = len(pictures), (settings.crop_px,) * 2

  def shuffled(step):
    return loader.batch_indices(count, seed, b, step)

  order = order or shuffled

  def crop(index, position):
    arrays = _arrays(pictures, index, maps)
    return cuts.crop(arrays, settings, cuts.uniform(seed, position))

  def jobs():
    step = start_step
    while True:
      yield shape, [(int(i), step * b + r) for r, i in enumerate(order(step))]
      step += 1

  yield from _batches(pictures, jobs(), mesh, lambda j, _: crop(*j))


def whole_batches(
  pictures: Pictures,
  batch_size: int,
  mesh: Mesh,
  multiple: int = 32,
  targets: str | os.PathLike | None = None,
) -> Iterator[dict[str, jax.Array]]:
  """Every picture once, whole, padded at right and bottom.

  Pictures of one padded size share batches; there are at most eight sizes.
  They come by size: `index` says which is which.

  Args:
    pictures: a split.
    batch_size: pictures of all devices together.
    mesh: the devices.
    multiple: sides are padded to a multiple of it; of a larger one where sizes
      are many.
    targets: folder of maps of an earlier stage (`Maps`).

  Yields:
    Batches on the devices, see the module.

  Raises:
    ValueError: as `train_batches`.
  """
  parallel.check_batch_size(batch_size, mesh)
  maps = None if targets is None else Maps(targets)

  def jobs():
    for shape, members in padded_shapes(pictures.sizes, multiple).items():
      for first in range(0, len(members), batch_size):
        rows = members[first : first + batch_size]
        fill = [(rows[-1], 0.0)] * (batch_size - len(rows))
        yield shape, [(index, 1.0) for index in rows] + fill

  def whole(job, shape):
    index, mask = job
    arrays = _arrays(pictures, index, maps)
    return {**cuts.padded(arrays, shape), "mask": np.float32(mask)}

  yield from _batches(pictures, jobs(), mesh, whole)


def padded_shapes(
  sizes: np.ndarray, multiple: int
) -> dict[tuple[int, int], list[int]]:
  """The pictures of each padded shape, a few shapes in all.

  Example:
    >>> padded_shapes(np.array([[30, 64], [65, 64], [32, 50]]), 32)
    {(32, 64): [0, 2], (96, 64): [1]}
  """
  while True:
    found: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes.tolist()):
      shape = tuple(-(-side // multiple) * multiple for side in size)
      found.setdefault(shape, []).append(index)
    if len(found) <= _MOST_SHAPES:
      return dict(sorted(found.items()))
    multiple *= 2


def _batches(
  pictures: Pictures,
  jobs: Iterator[tuple[tuple[int, int], list[Any]]],
  mesh: Mesh,
  make: Callable[[Any, tuple[int, int]], Batch],
) -> Iterator[dict[str, jax.Array]]:
  """Makes the rows of this process in threads, a few batches ahead."""
  waiting: collections.deque = collections.deque()
  most = max(1, pictures.spec.most_points)

  def finish(rows):
    rows = [row.result() for row in rows]
    return loader.stack([{**r, "points": _fill(r, most)} for r in rows])

  def host():
    with futures.ThreadPoolExecutor(THREADS) as pool:
      try:
        for shape, batch in jobs:
          mine = parallel.local_rows(mesh, len(batch))
          waiting.append([pool.submit(make, batch[r], shape) for r in mine])
          if len(waiting) > _BATCHES_AHEAD:
            yield finish(waiting.popleft())
        while waiting:
          yield finish(waiting.popleft())
      finally:
        pool.shutdown(wait=True, cancel_futures=True)

  with contextlib.closing(host()) as batches:
    yield from parallel.prefetch(batches, mesh)


def _fill(row: Batch, most: int) -> np.ndarray:
  points = np.full((most, 3), -1, np.float32)
  points[: len(row["points"])] = row["points"]
  return points


def _arrays(pictures: Pictures, index: int, maps: Maps | None) -> Batch:
  """What a batch has of a picture, before it is cut or padded."""
  picture = pictures.picture(index)
  arrays = {
    "pixels": picture.pixels,
    "labels": picture.labels,
    "truth": picture.truth,
    "tissue": picture.tissue,
    "points": picture.points,
    "size": np.array(picture.size, np.int32),
    "index": np.int32(index),
    "mask": np.float32(1),
  }
  if maps is not None:
    target, weight = maps.target(picture.id)
    if target.shape != picture.size:
      raise ValueError(
        f"{maps.path(picture.id)}: classes of {target.shape}, the picture has "
        f"{picture.size} (h, w)"
      )
    arrays |= {"target": target, "weight": weight}
  return arrays
