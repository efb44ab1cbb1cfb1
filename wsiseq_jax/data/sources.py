"""Opens data by address: a folder of shards, or a scheme and a place.

    DATA                   shards, or the folder that preparation wrote
    synthetic              shards drawn for the presets `smoke`
    synthetic:labelled     the same with labels
    tfds:[FOLDER/]NAME     a picture set of TFDS

A new kind of data is a file with a class like `Shards` and a line in `SCHEMES`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from data_prep.synthetic import smoke
from wsiseq_jax.data import source, tfds_images
from wsiseq_jax.data.source import DataSpec, Records


@dataclasses.dataclass(frozen=True)
class Shards:
  """What `data_prep` wrote; see `source`."""

  path: str

  @functools.cached_property
  def spec(self) -> DataSpec:
    """What the data set says of itself."""
    return source.read_spec(self.path)

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that have records."""
    return source.split_names(self.path)

  def open(self, split: str, key: str) -> Records:
    """The records of a split."""
    return source.RecordSource(self.path, split, key)


DataSet = Shards | tfds_images.PictureSet
# Scheme → (place, fewest frames of a record) → data set.
SCHEMES: Mapping[str, Callable[[str, int], DataSet]] = {
  "synthetic": lambda place, frames: Shards(str(smoke.cached(place))),
  "tfds": tfds_images.PictureSet,
}


def find(uri: str, frames: int = 1) -> DataSet:
  """The data set at an address.

  Args:
    uri: `config.data.path`, see the module.
    frames: fewest frames of a record (`base.Clip.stored`); pictures are padded
      to it, shards have the frames they have.

  Raises:
    ValueError: there is no data set.
  """
  scheme, _, place = str(uri).partition(":")
  if scheme in SCHEMES:
    return SCHEMES[scheme](place, frames)
  return Shards(str(uri))


def open(  # noqa: A001
  uri: str, split: str, key: str = "data.train_split", frames: int = 1
) -> Records:
  """The records of a split.

  Args:
    uri: `config.data.path`.
    split: name of the split.
    key: config key of `split`, for the error.
    frames: see `find`.

  Raises:
    ValueError: no such data, or no such split.
  """
  return find(uri, frames).open(split, key)
