"""Opens shards: records by index, and what the data set says of itself.

Shards are a TFDS directory. Files are opened with Grain's ArrayRecord source
and parsed with TFDS's NumPy example parser, both without TensorFlow. TFDS's own
decoder is not used: it decodes images one by one in Python, at half the rate.

Labels are joined here, from `targets.json` beside the shards. A data set names
the version of its schema; one that this code does not know is refused.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import example_parser

from data_prep import records, targets


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """What all records of a data set share."""

  fingerprint: str  # names schema and preparation settings; equal means mixable
  geometry: str  # 'drift', 'walk', 'zoom' or 'series'
  frames: int  # stored frames of a sequence (T)
  panels: int  # stored images of a sequence (p)
  panel_px: tuple[int, int]  # (h, w) of a panel
  frame_px: tuple[int, int]  # (h, w) of a frame in panel pixels
  time_unit: str  # unit of `time`: 'um', 's', 'year' or 'frame'
  target_names: tuple[str, ...]  # names of the labels in `targets`
  # class names of each label that is a class, in the order of their numbers; a
  # label that is a number is not in it
  target_classes: Mapping[str, tuple[str, ...]] = dataclasses.field(hash=False)
  # the whole `metadata.json`
  metadata: Mapping[str, Any] = dataclasses.field(repr=False, hash=False)

  @property
  def panels_shape(self) -> tuple[int, int, int, int]:
    """Shape of a record's pixels, (p, h, w, c)."""
    return (self.panels, *self.panel_px, 3)


def shard_folder(path: str | os.PathLike) -> epath.Path:
  """The TFDS directory: the path, or `shards` in what preparation wrote."""
  # Unlike pathlib, also understands gs://bucket/folder.
  folder = epath.Path(path)
  for candidate in (folder, folder / "shards"):
    if str(path) and (candidate / "features.json").is_file():
      return candidate
  raise ValueError(
    f"config.data.path = {os.fspath(path)!r}: no shards there (no "
    "features.json); write them with `python -m data_prep`"
  )


def read_spec(path: str | os.PathLike) -> DataSpec:
  """Reads what a data set says of itself."""
  folder = shard_folder(path)
  builder = tfds.builder_from_directory(folder)
  metadata = dict(builder.info.metadata or {})
  version = metadata.get("schema_version")
  if version not in records.KNOWN_SCHEMAS or not metadata.get("fingerprint"):
    known = ", ".join(map(str, records.KNOWN_SCHEMAS))
    raise ValueError(
      f"config.data.path = {os.fspath(path)!r}: shards of schema version "
      f"{version!r} with fingerprint {metadata.get('fingerprint')!r}; this "
      f"code reads version {known}. Prepare the data again, or use the "
      "release that wrote it"
    )
  table = read_targets(folder)
  columns = {t.name: t.classes for t in table.targets} if table else {}
  return DataSpec(
    fingerprint=metadata["fingerprint"],
    geometry=metadata["geometry"],
    frames=int(metadata["frames"]),
    panels=int(metadata["panels"]),
    panel_px=tuple(metadata["panel_px"]),
    frame_px=tuple(metadata["frame_px"]),
    time_unit=metadata["time_unit"],
    # Labels of schema 2 are in the records, their names in the metadata.
    target_names=tuple(columns or metadata.get("target_names", ())),
    target_classes={
      name: tuple(classes)
      for name, classes in (
        columns or metadata.get("target_classes", {})
      ).items()
      if classes
    },
    metadata=metadata,
  )


def read_targets(folder: epath.Path) -> targets.TargetTable | None:
  """The labels beside the shards; None where the records hold them."""
  file = folder / targets.FILE
  if not file.is_file():
    return None
  return targets.TargetTable.from_json(file.read_text())


def split_names(path: str | os.PathLike) -> tuple[str, ...]:
  """The splits that have records, in the order train, val, test."""
  splits = tfds.builder_from_directory(shard_folder(path)).info.splits
  order = {"train": 0, "val": 1, "test": 2}
  return tuple(sorted(splits, key=lambda name: (order.get(name, 3), name)))


@runtime_checkable
class Records(Protocol):
  """Records by index: what reading batches needs of a source."""

  spec: DataSpec  # what the data set says of itself
  split: str  # name of the split, for messages
  identity: str  # tells these records from others that were prepared alike

  def __len__(self) -> int: ...

  def record(self, index: int) -> records.SequenceRecord:
    """Reads a record."""


class RecordSource:
  """The records of one split, by index.

  Picklable: worker processes open the files anew.

  Args:
    path: the shards, or the folder that preparation wrote.
    split: name of the split.
    key: config key of `split`, for the error.

  Raises:
    ValueError: no shards, an unknown schema, or no such split.
  """

  def __init__(
    self, path: str | os.PathLike, split: str, key: str = "data.train_split"
  ):
    self.spec = read_spec(path)
    folder = shard_folder(path)
    info = tfds.builder_from_directory(folder).info
    if split not in info.splits or not info.splits[split].num_examples:
      raise ValueError(
        f"config.{key} = {split!r}: no records; {folder} has "
        + ", ".join(f"{k} ({v.num_examples})" for k, v in info.splits.items())
      )
    self.split = split
    self._targets = read_targets(folder)
    self._parser = example_parser.ExampleParserNp(
      info.features.get_serialized_info()
    )
    # Records are read one by one in random order: reading ahead would fetch
    # neighbours that nobody asked for.
    self._folder = folder
    self._paths = [os.fspath(file) for file in info.splits[split].filepaths]
    try:
      self._files = grain.sources.ArrayRecordDataSource(self._paths)
      len(self._files)
    except Exception as error:  # ArrayRecord raises whatever it likes
      raise self._damaged(error) from error

  @functools.cached_property
  def identity(self) -> str:
    """Tells these records from those of any other data set.

    Unlike the fingerprint, which data sets prepared alike share.
    """
    small = ("dataset_info.json", "metadata.json")
    parts = [(self._folder / name).read_bytes() for name in small]
    sizes = (epath.Path(file).stat().length for file in self._paths)
    parts += [str(size).encode() for size in sizes]
    return hashlib.sha256(b"|".join(parts)).hexdigest()

  def __len__(self) -> int:
    return len(self._files)

  def _damaged(self, error: Exception) -> ValueError:
    return ValueError(
      f"the shards of {self.split!r} in {self._folder} are damaged: {error}; "
      "run `python -m data_prep` again"
    )

  def record(self, index: int) -> records.SequenceRecord:
    """Reads a record and joins its labels; its panels stay JPEG.

    Args:
      index: from 0, in the order of the shards.

    Raises:
      ValueError: it is damaged.
    """
    try:
      stored = self._files[index]
    except RuntimeError as error:
      raise self._damaged(error) from error
    record = records.from_example(self._parser.parse_example(stored))
    if self._targets is None:
      return record
    labels = self._targets.of(record.sequence_id)
    return dataclasses.replace(record, targets=labels)
