"""The record of a labelled picture: what preparation writes and training reads.

Pictures of a data set may differ in size. Mask and tissue are always there:
where nothing is known of a picture, its mask is 255 everywhere. Labels are not
stored: they are joined from `targets.json`, as those of sequences are; each of
its columns is a class, 0 or 1.

Points are x, y and class. The pixel in column c and row r has its centre at
x = c, y = r, so that whole numbers name pixels.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8

from data_prep.targets import Target

# A sequence reader refuses these shards, and the reader of pictures any other.
SCHEMA_VERSION = "pictures-1"
NOT_KNOWN = 255  # in masks
MOST_CLASSES = 254  # a mask has 0 for background and 255 for unknown


@dataclasses.dataclass(frozen=True, eq=False)
class PictureRecord:
  """One picture, and what is known of it."""

  picture_id: str  # unique within the data set
  slide_id: str  # the slide it was cut from; its own id where there is none
  patient_id: str  # the patient; splits never divide a patient
  image: bytes  # JPEG or PNG, 8 bit RGB
  # PNG of the same size: 0 background, 1..y classes, 255 not known.
  mask: bytes
  tissue: bytes  # PNG of the same size: 1 tissue, 0 glass
  points: Float[np.ndarray, "n 3"]  # x, y in px, class 0..y
  size: tuple[int, int]  # (h, w)
  mpp: float = math.nan  # micrometres per pixel, NaN where unknown
  # Top left corner in level-0 pixels of the slide, NaN where there is none.
  level0_xy: tuple[float, float] = (math.nan, math.nan)


class PictureSchema:
  """How pictures are stored; see `data_prep.shards.Schema`."""

  description: ClassVar[str] = "Histology pictures with labels, masks, points."

  def features(self) -> tfds.features.FeaturesDict:
    """Describes a record to TFDS."""
    image, tensor = tfds.features.Image, tfds.features.Tensor
    text, scalar = tfds.features.Text(), tfds.features.Scalar
    return tfds.features.FeaturesDict(
      {
        "picture_id": text,
        "slide_id": text,
        "patient_id": text,
        "image": image(shape=(None, None, 3)),
        "mask": image(shape=(None, None, 1), encoding_format="png"),
        "tissue": image(shape=(None, None, 1), encoding_format="png"),
        "points": tensor(shape=(None, 3), dtype=np.float32),
        "size": tensor(shape=(2,), dtype=np.int32),
        "mpp": scalar(dtype=np.float32),
        "level0_xy": tensor(shape=(2,), dtype=np.float32),
      }
    )

  def example(self, record: PictureRecord) -> dict[str, Any]:
    """Checks a picture and turns it into what TFDS encodes.

    Raises:
      ValueError: a name is empty, or a point has no place in the picture.
    """
    for field in ("picture_id", "slide_id", "patient_id"):
      if not getattr(record, field):
        raise ValueError(f"picture {record.picture_id!r}: no {field}")
    points = np.asarray(record.points, np.float32).reshape(-1, 3)
    if (outside := ~inside(points, record.size)).any():
      raise ValueError(
        f"picture {record.picture_id!r}: point {points[outside][0].tolist()} "
        f"outside of {record.size} (h, w)"
      )
    return {
      "picture_id": record.picture_id,
      "slide_id": record.slide_id,
      "patient_id": record.patient_id,
      "image": io.BytesIO(record.image),
      "mask": io.BytesIO(record.mask),
      "tissue": io.BytesIO(record.tissue),
      "points": points,
      "size": np.array(record.size, np.int32),
      "mpp": np.float32(record.mpp),
      "level0_xy": np.array(record.level0_xy, np.float32),
    }


def from_example(example: Mapping[str, Any]) -> PictureRecord:
  """Rebuilds a record from what TFDS's NumPy example parser returns."""

  def text(name: str) -> str:
    value = example[name]
    value = value.item() if isinstance(value, np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else str(value)

  return PictureRecord(
    picture_id=text("picture_id"),
    slide_id=text("slide_id"),
    patient_id=text("patient_id"),
    image=bytes(example["image"]),
    mask=bytes(example["mask"]),
    tissue=bytes(example["tissue"]),
    points=np.asarray(example["points"], np.float32).reshape(-1, 3),
    size=tuple(int(n) for n in example["size"]),
    mpp=float(np.asarray(example["mpp"]).item()),
    level0_xy=tuple(float(n) for n in example["level0_xy"]),
  )


def inside(
  points: Float[np.ndarray, "n 3"], size: tuple[int, int]
) -> np.ndarray:
  """Which points lie in a picture of (h, w), bool [n].

  Example:
    >>> inside(np.array([[0, 0, 1], [4.4, 0, 1], [4.5, 0, 1]]), (3, 5)).tolist()
    [True, True, False]
  """
  x, y = points[:, 0], points[:, 1]
  height, width = size
  return (x >= -0.5) & (y >= -0.5) & (x < width - 0.5) & (y < height - 0.5)


def settled(
  mask: UInt8[np.ndarray, "h w"], labels: Float[np.ndarray, " y"]
) -> UInt8[np.ndarray, "h w"]:
  """The truth about a picture: one without any class is background all over.

  Example:
    >>> settled(np.full((1, 2), 255, np.uint8), np.zeros(1)).tolist()
    [[0, 0]]
  """
  is_negative = (labels == 0).all() and (mask == NOT_KNOWN).all()
  return np.zeros_like(mask) if is_negative else mask


def png(pixels: UInt8[np.ndarray, "..."]) -> bytes:
  """A mask or tissue map as PNG."""
  done, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
  if not done:
    raise ValueError(f"no PNG of an array of shape {pixels.shape}")
  return data.tobytes()


def class_targets(names: tuple[str, ...]) -> tuple[Target, ...]:
  """The columns of `targets.json`: one a class, there or not."""
  return tuple(Target(name, ("0", "1")) for name in names)


def index_of(pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What `metadata.json` keeps of the pictures of a split, in their order.

  With it a reader knows size, patient and slide of every picture, and whether
  it has a mask, without reading one.

  Args:
    pictures: names, `size` (h, w) and `share` of each class, None = no mask.
  """
  names = ("picture_id", "slide_id", "patient_id", "size")
  index = {name: [one[name] for one in pictures] for name in names}
  return {**index, "has_mask": [one["share"] is not None for one in pictures]}
