"""Makes the records of some pictures: of a table, or cut from one slide.

`part.json` of a group says of each picture what the data set needs to know
without reading it: names, size, the classes of its mask and how much of the
picture each covers.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from data_prep import groups
from data_prep.files.errors import NOTE, SlideError, as_slide_error
from data_prep.pictures import files, records
from data_prep.pictures.classes import Classes
from data_prep.pictures.table import Labelled


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PictureJob(groups.GroupJob):
  """One group of pictures of a table, `<split>-<number>`."""

  classes: Classes

  SHARD: ClassVar[str] = "pictures.array_record"
  ID: ClassVar[str] = "picture_id"
  UNIT: ClassVar[str] = "pictures"


class PictureMaker:
  """Collects what `part.json` says beside the records."""

  def __init__(self, classes: Classes):
    self.classes = classes
    self.done: list[dict[str, Any]] = []
    self.errors: list[SlideError] = []

  def facts(self) -> Mapping[str, Any]:
    """What `part.json` says."""
    return {"pictures": self.done, "errors": [e.state() for e in self.errors]}

  def record(
    self,
    names: tuple[str, str, str],
    image: bytes,
    mask: UInt8[np.ndarray, "h w"] | None,
    tissue: Bool[np.ndarray, "h w"],
    **more: Any,
  ) -> records.PictureRecord:
    """Makes a record and notes its facts.

    Args:
      names: of picture, slide and patient.
      image: what is stored.
      mask: classes; None = not known.
      tissue: where there is some.
      **more: other fields of the record.
    """
    size = tissue.shape
    count = len(self.classes.names)
    if mask is None:
      mask = np.full(size, records.NOT_KNOWN, np.uint8)
    record = records.PictureRecord(
      *names,
      image,
      records.png(mask),
      records.png(tissue.astype(np.uint8)),
      size=size,
      **{"points": np.zeros((0, 3), np.float32), **more},
    )
    share = np.bincount(mask.ravel(), minlength=256) / mask.size
    self.done.append(
      {
        "picture_id": record.picture_id,
        "slide_id": record.slide_id,
        "patient_id": record.patient_id,
        "size": list(size),
        # Of background and each class; None where nothing is known.
        "share": np.round(share[: count + 1], 6).tolist()
        if share[: count + 1].any()
        else None,
        "tissue": round(float(tissue.mean()), 4),
        "points": len(record.points),
      }
    )
    return record


def process(job: PictureJob) -> groups.GroupOutcome:
  """Makes one group; whatever goes wrong with a picture is in the result."""
  cv2.setNumThreads(1)  # parallel over groups; more threads are in the way
  maker = PictureMaker(job.classes)
  made = _records(job, maker)
  return groups.write(job, made, records.PictureSchema(), maker.facts)


def _records(
  job: PictureJob, maker: PictureMaker
) -> Iterator[records.PictureRecord]:
  for one in job.members:
    try:
      job.refuse_deadly(one.picture_id)
      record = _record(one, job, maker)
    except Exception as error:  # the one place where a picture may fail
      maker.errors.append(
        as_slide_error(error, one.picture_id, "read", "config.out")
      )
    else:
      yield record


def _record(
  one: Labelled, job: PictureJob, maker: PictureMaker
) -> records.PictureRecord:
  config, classes = job.config, job.classes
  jpeg = config["jpeg"]
  image, pixels, remark = files.read_image(
    one.image, jpeg["quality"], jpeg["subsampling"]
  )
  errors = []
  if remark:
    errors.append(SlideError(remark, NOTE, "grey_image"))
  size = pixels.shape[:2]
  mask, points = None, np.zeros((0, 3), np.float32)
  if one.mask:
    try:
      mask = files.read_mask(
        one.mask, size, len(classes.names), config["mask_values"]
      )
    except SlideError as error:
      error.message += "; the picture is used without its mask"
      errors.append(error)
  if mask is not None:
    mask = _agreed(one, mask, classes, errors)
  if one.points:
    try:
      points, wrong = files.read_points(one.points, size, classes)
      errors += wrong
    except SlideError as error:
      error.message += "; the picture is used without its points"
      errors.append(error)
  tissue = files.tissue_of(pixels, config["mpp"], config["tissue"])
  for error in errors:
    error.slide = one.picture_id
  maker.errors += errors
  return maker.record(
    (one.picture_id, one.slide_id, one.patient_id),
    image,
    mask,
    tissue,
    points=points,
    mpp=config["mpp"] or np.nan,
  )


def _agreed(
  one: Labelled,
  mask: UInt8[np.ndarray, "h w"],
  classes: Classes,
  errors: list[SlideError],
) -> UInt8[np.ndarray, "h w"] | None:
  """The mask, unless it says that nothing is there and the labels do not."""
  found = np.bincount(mask.ravel(), minlength=256)[1 : len(classes.names) + 1]
  if 1.0 in one.labels and not found.any():
    errors.append(
      SlideError(
        f"{one.mask}: an empty mask, but the labels name "
        f"{classes.names[one.labels.index(1.0)]!r}; the picture is used "
        "without its mask",
        "mask",
        "empty_mask",
      )
    )
    return None
  for name, label, count in zip(
    classes.names, one.labels, found.tolist(), strict=True
  ):
    if (label == 0 and count) or (label == 1 and not count):
      errors.append(
        SlideError(
          f"{one.mask}: {count} px of {name!r}, whose label is {label:g}; both "
          "are kept: the label trains, the mask tests",
          NOTE,
          "label_and_mask_differ",
        )
      )
  return mask
