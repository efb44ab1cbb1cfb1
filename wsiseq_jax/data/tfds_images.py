"""TFDS image sets as sequences of one frame.

Any set with an `image` of one size and labels, such as `patch_camelyon` or
`colorectal_histology`, read through TFDS without TensorFlow:

    tfds build patch_camelyon --data_dir=DIR --file_format=array_record

A picture becomes a record of one real frame, padded to the length of the
model's clip: `frame_mask` is 1 for the first frame alone. Class labels and
numbers become targets. Pictures stay as they are stored, PNG or JPEG.

Such sets do not say which pictures are of one patient. Every picture counts as
a patient of its own here, so that intervals are too narrow where they are not.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from data_prep import records
from wsiseq_jax.data.source import DataSpec


@functools.lru_cache(maxsize=2)
def _builder(name: str, folder: str) -> Any:
  """The prepared set."""
  try:
    # From its files alone: the code that made them is not needed.
    builder = read_only_builder.builder_from_files(name, data_dir=folder)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(
      f"config.data.path = 'tfds:{folder}/{name}': not prepared; run `tfds "
      f"build {name} --data_dir={folder} --file_format=array_record`"
    ) from error
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"config.data.path = 'tfds:{name}': stored as "
      f"{builder.info.file_format.value}, which needs TensorFlow; convert it "
      "with `tfds convert_format --out_file_format=array_record`"
    )
  return builder


def read_spec(name: str, folder: str | os.PathLike, frames: int) -> DataSpec:
  """What a set says of itself, as if it were one of our shards."""
  builder = _builder(name, os.fspath(folder))
  # A `FeaturesDict` is no mapping.
  features = dict(builder.info.features.items())
  image = features.get("image")
  shape = getattr(image, "shape", (None,))
  if None in shape or len(shape) != 3:
    raise ValueError(
      f"config.data.path = 'tfds:{name}': needs a feature `image` of one size, "
      f"it has {image!r}"
    )
  targets = _targets(features)
  text = f"{builder.info.full_name} {shape} {sorted(targets.items())}"
  fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
  return DataSpec(
    fingerprint=fingerprint,
    geometry="image",
    frames=frames,
    panels=1,
    panel_px=tuple(shape[:2]),
    frame_px=tuple(shape[:2]),
    time_unit="frame",
    target_names=tuple(targets),
    target_classes={k: v for k, v in targets.items() if v},
    metadata={"tfds": builder.info.full_name},
  )


def _targets(features: Any) -> dict[str, tuple[str, ...]]:
  """{name: class names, () for a number} of all scalar labels."""
  found = {}
  for name, feature in features.items():
    if isinstance(feature, tfds.features.ClassLabel):
      found[name] = tuple(feature.names)
    elif type(feature) is tfds.features.Scalar:
      found[name] = ()
  return found


@dataclasses.dataclass(frozen=True)
class PictureSet:
  """A set as `sources.DataSet`."""

  place: str  # `[FOLDER/]NAME`; the folder is TFDS's own by default
  frames: int  # length of the records (T)

  @property
  def _where(self) -> tuple[str, str]:
    folder, name = os.path.split(self.place)
    return name, folder or tfds.core.constants.DATA_DIR

  @property
  def spec(self) -> DataSpec:
    """What the set says of itself."""
    return read_spec(*self._where, self.frames)

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that TFDS lists; slices of them exist besides."""
    return tuple(_builder(*self._where).info.splits)

  def open(self, split: str, key: str) -> "ImageSource":
    """The pictures of a split."""
    name, folder = self._where
    return ImageSource(name, folder, split, self.frames, key)


class ImageSource:
  """The pictures of one split, by index; stands in for a `RecordSource`.

  Args:
    name: name of the TFDS set.
    folder: where TFDS keeps its sets.
    split: a split, or a slice of one such as `train[:80%]`.
    frames: length of the records (T).
    key: config key of `split`, for the error.

  Raises:
    ValueError: no such set, or no such split.
  """

  def __init__(
    self,
    name: str,
    folder: str | os.PathLike,
    split: str,
    frames: int,
    key: str = "data.train_split",
  ):
    self.spec = read_spec(name, folder, frames)
    self.split = split
    builder = _builder(name, os.fspath(folder))
    self.identity = _identity(builder, split)
    skip = {"image": tfds.decode.SkipDecoding()}
    try:
      self._pictures = builder.as_data_source(split, decoders=skip)
      count = len(self._pictures)
    except (ValueError, KeyError) as error:
      has = ", ".join(
        f"{k} ({v.num_examples})" for k, v in builder.info.splits.items()
      )
      raise ValueError(
        f"config.{key} = {split!r}: {name} has {has}; slices such as "
        f"'train[:80%]' are splits too"
      ) from error
    if not count:
      raise ValueError(f"config.{key} = {split!r}: no pictures")

  def __len__(self) -> int:
    return len(self._pictures)

  def record(self, index: int) -> records.SequenceRecord:
    """Reads a picture; it stays compressed.

    Args:
      index: from 0, in the order of the set.
    """
    example = self._pictures[index]
    frames = self.spec.frames
    height, width = self.spec.frame_px
    box = np.tile(np.array([0, 0, width, height], np.float32), (frames, 1))
    name = f"{self.split}/{index}"
    return records.SequenceRecord(
      sequence_id=name,
      slide_id=name,
      patient_id=name,
      panels=(bytes(example["image"]),),
      frame_panel=np.zeros(frames, np.int32),
      frame_box=box,
      frame_level0_xy=np.full((frames, 2), np.nan, np.float32),
      time=np.zeros(frames, np.float32),
      frame_mask=(np.arange(frames) == 0).astype(np.float32),
      mpp=float("nan"),
      heading_deg=float("nan"),
      targets=np.array(
        [example[name] for name in self.spec.target_names], np.float32
      ),
    )


def _identity(builder: Any, split: str) -> str:
  """Tells the files of a set from any other's."""
  info = pathlib.Path(builder.data_path, "dataset_info.json").read_bytes()
  return hashlib.sha256(info + split.encode()).hexdigest()
