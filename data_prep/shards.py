"""Writes shards that any TFDS reader opens, one file for each slide.

`<out>/shards` is an ordinary TFDS data set in ArrayRecord format:

  import tensorflow_datasets as tfds
  source = tfds.builder_from_directory("<out>/shards").as_data_source("train")

reads it with no code of ours and without TensorFlow. Labels are beside the
records, in `targets.json`.

- *One slide = one file.* A worker writes `<out>/parts/<slide_id>/` and nobody
  else does. Putting the data set together means hard-linking those files under
  their TFDS names, so adding a slide rewrites no pixel.
- *Bytes are a function of the input.* No time stamp, path or process id goes
  into a file, and files appear complete under their final name. A run that was
  killed and started again leaves the same bytes as one that was not.
"""

import contextlib
import dataclasses
import errno
import filecmp
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_info as tfds_info
from tensorflow_datasets.core import (
  example_parser,
  example_serializer,
  naming,
)
from tensorflow_datasets.core.utils import version as tfds_version

from data_prep import records, splits
from data_prep.files.atomic import (
  TEMPORARY,
  remove_tree,
  replacing,
  sync,
  temporary_path,
  write_atomic,
)
from data_prep.targets import FILE as TARGETS
from data_prep.targets import TargetTable

NAME = "wsiseq"
VERSION = "1.0.0"
FORMAT = "array_record"


@runtime_checkable
class Schema(Protocol):
  """What the records of a data set are: what writing them needs to know."""

  description: str  # a sentence for `dataset_info.json`

  def features(self) -> tfds.features.FeaturesDict:
    """Describes a record to TFDS; all records have the same features."""

  def example(self, record: Any) -> dict[str, Any]:
    """Checks a record and turns it into what TFDS encodes.

    Raises:
      ValueError: the record is not one of this data set.
    """


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shapes all sequences of a data set share."""

  frames: int  # frames in a sequence
  panels: int  # stored images in a sequence
  panel_px: tuple[int, int]  # (h, w) of a stored image
  description: ClassVar[str] = "Sequences of histology image frames."

  def features(self) -> tfds.features.FeaturesDict:
    """Describes a record to TFDS; all records have the same shapes."""
    t = self.frames
    tensor = tfds.features.Tensor
    image = tfds.features.Image(
      shape=(*self.panel_px, 3), dtype=np.uint8, encoding_format="jpeg"
    )
    return tfds.features.FeaturesDict(
      {
        "sequence_id": tfds.features.Text(),
        "slide_id": tfds.features.Text(),
        "patient_id": tfds.features.Text(),
        "panels": tfds.features.Sequence(image, length=self.panels),
        "frame_panel": tensor(shape=(t,), dtype=np.int32),
        "frame_box": tensor(shape=(t, 4), dtype=np.float32),
        "frame_level0_xy": tensor(shape=(t, 2), dtype=np.float32),
        "time": tensor(shape=(t,), dtype=np.float32),
        "frame_mask": tensor(shape=(t,), dtype=np.float32),
        "mpp": tfds.features.Scalar(dtype=np.float32),
        "heading_deg": tfds.features.Scalar(dtype=np.float32),
      }
    )

  def example(self, record: records.SequenceRecord) -> dict[str, Any]:
    """Checks a sequence and turns it into what TFDS encodes."""
    records.validate(record)
    found = Layout(
      frames=record.frames,
      panels=len(record.panels),
      panel_px=records.panel_size(record.panels[0]),
    )
    if found != self:
      raise ValueError(
        f"sequence {record.sequence_id!r} is {found}, the data set is {self}"
      )
    return records.to_example(record)


@dataclasses.dataclass(frozen=True)
class Part:
  """The finished file of one slide."""

  path: pathlib.Path  # the ArrayRecord file
  slide_id: str  # the slide; parts are put in order by it
  split: str  # 'train', 'val' or 'test'
  sequences: int  # number of records in the file
  num_bytes: int  # bytes of serialised records in the file


def fingerprint(config: Mapping[str, Any]) -> str:
  """Names the settings that shape the pixels of a data set, as sha256.

  Training compares it, so that two data sets are mixed only on purpose.
  """
  # 2 as it was when labels left the records: the pixels are the same.
  text = canonical_json({"schema": 2, "config": config})
  return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
  """Serialises a value so that equal values give equal text."""
  return json.dumps(value, sort_keys=True, ensure_ascii=False)


def write_part(
  path: pathlib.Path,
  found: Iterable[Any],
  schema: Schema,
) -> tuple[int, int]:
  """Writes the records of one slide to one ArrayRecord file, atomically."""
  spec = schema.features()
  serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
  count = num_bytes = 0
  with replacing(path) as draft:
    # group_size:1 gives random access to single records. JPEG does not
    # compress further, so the file is stored, not squeezed.
    writer = array_record_module.ArrayRecordWriter(
      os.fspath(draft), "group_size:1,uncompressed"
    )
    try:
      for record in found:
        example = spec.encode_example(schema.example(record))
        # The features of an example are a map: without `deterministic` their
        # order, and so the bytes, may differ from one process to the next.
        data = serializer.get_tf_example(example).SerializeToString(
          deterministic=True
        )
        with _as_os_error():
          writer.write(data)
        count += 1
        num_bytes += len(data)
    finally:
      with _as_os_error():
        writer.close()
    _check_complete(draft, count)
    sync(draft)
  sync(path.parent)
  return count, num_bytes


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Turns ArrayRecord's one kind of error into what Python calls it."""
  try:
    yield
  except RuntimeError as error:
    full = os.strerror(errno.ENOSPC) in str(error)
    number = errno.ENOSPC if full else errno.EIO
    raise OSError(number, os.strerror(number)) from error


def _check_complete(path: pathlib.Path, count: int) -> None:
  """Reads the index of a file back: the writer may hide a full disk."""
  try:
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
      found = reader.num_records()
    finally:
      reader.close()
  except (RuntimeError, ValueError) as error:
    found = error
  if found != count:
    free = shutil.disk_usage(path.parent).free
    number = errno.ENOSPC if free < 1 << 20 else errno.EIO
    raise OSError(
      number, f"{os.strerror(number)}: {count} records written, read: {found}"
    )


def read_some(
  folder: pathlib.Path, parts: Iterable[Part], wanted: np.ndarray
) -> Iterator[tuple[Part, dict[str, Any]]]:
  """Reads some records of finished parts, each with its part.

  Args:
    folder: the data set that the parts belong to.
    parts: its parts, in an order of the caller's.
    wanted: numbers of records, counted through those parts; ascending.

  Yields:
    The part, and the values of the record by feature.
  """
  info = tfds.builder_from_directory(folder).info
  spec = example_parser.ExampleParserNp(info.features.get_serialized_info())
  start = 0
  for part in parts:
    inside = wanted[(wanted >= start) & (wanted < start + part.sequences)]
    if len(inside):
      with contextlib.closing(
        array_record_module.ArrayRecordReader(str(part.path))
      ) as reader:
        data = reader.read((inside - start).tolist())
      for example in data:
        yield part, spec.parse_example(example)
    start += part.sequences


def assemble(
  folder: pathlib.Path,
  parts: Sequence[Part],
  schema: Schema,
  metadata: Mapping[str, Any],
  targets: TargetTable,
) -> bool:
  """Makes `folder` the TFDS data set of the given parts.

  It is built next to `folder` and then takes its place, so a reader never sees
  half of it. Where only labels differ, only their file is written.
  """
  by_split = {
    split: sorted(
      (part for part in parts if part.split == split and part.sequences),
      key=lambda part: part.slide_id,
    )
    for split in splits.NAMES
  }
  by_split = {split: items for split, items in by_split.items() if items}
  if not by_split:
    raise ValueError(f"no slide gave a sequence: no shards for {folder}")
  links = {
    _shard_name(split, index, len(items)): part.path
    for split, items in by_split.items()
    for index, part in enumerate(items)
  }
  building = temporary_path(folder)
  remove_tree(building)
  building.mkdir(parents=True)
  try:
    _write_info(building, by_split, schema, metadata)
    if _same(folder, building, links):
      return write_atomic(folder / TARGETS, targets.to_json())
    write_atomic(building / TARGETS, targets.to_json())
    for name, source in links.items():
      _link(source, building / name)
    for item in building.iterdir():
      sync(item)
    sync(building)
    # A directory cannot be replaced in one step; the old one steps aside.
    old = folder.with_name(folder.name + TEMPORARY + "old")
    remove_tree(old)
    if folder.exists():
      os.rename(folder, old)
    os.rename(building, folder)
    sync(folder.parent)
    remove_tree(old)
  finally:
    remove_tree(building)
  return True


def _shard_name(split: str, index: int, count: int) -> str:
  return f"{NAME}-{split}.{FORMAT}-{index:05d}-of-{count:05d}"


def _write_info(
  folder: pathlib.Path,
  by_split: Mapping[str, Sequence[Part]],
  schema: Schema,
  metadata: Mapping[str, Any],
) -> None:
  """Writes features.json, dataset_info.json and metadata.json through TFDS."""
  info = tfds.core.DatasetInfo(
    # `data_dir` and `module_name` stay empty: the data set may move.
    builder=tfds_info.DatasetIdentity(
      name=NAME,
      version=tfds_version.Version(VERSION),
      data_dir=os.fspath(folder),
      module_name="",
    ),
    description=schema.description,
    features=schema.features(),
    disable_shuffling=True,
    # Through JSON, so that a tuple reads back as what is compared: a list.
    metadata=tfds.core.MetadataDict(json.loads(canonical_json(metadata))),
  )
  info.set_file_format(FORMAT)
  info.set_splits(
    tfds.core.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[part.sequences for part in parts],
          num_bytes=sum(part.num_bytes for part in parts),
          filename_template=naming.ShardedFileTemplate(
            dataset_name=NAME,
            data_dir=folder,
            split=split,
            filetype_suffix=FORMAT,
          ),
        )
        for split, parts in by_split.items()
      ]
    )
  )
  info.write_to_directory(folder)


def _same(
  folder: pathlib.Path,
  building: pathlib.Path,
  links: Mapping[str, pathlib.Path],
) -> bool:
  """Whether `folder` already is what `building` and `links` would make it."""
  if not folder.is_dir():
    return False
  small = {item.name for item in building.iterdir()}
  found = {item.name for item in folder.iterdir()} - {TARGETS}
  if found != small | set(links):
    return False
  if not all(
    filecmp.cmp(folder / name, building / name, shallow=False) for name in small
  ):
    return False
  # Size and time of change stand for the pixels: they survive a copy too.
  return all(
    filecmp.cmp(folder / name, source, shallow=True)
    for name, source in links.items()
  )


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  try:
    os.link(source, target)
  except OSError as error:
    # Some network and FAT file systems know no hard links.
    if error.errno not in (errno.EPERM, errno.EXDEV, errno.ENOTSUP):
      raise
    shutil.copy2(source, target)
