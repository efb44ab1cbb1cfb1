"""What models say of the tiles of one slide, kept in one small file.

A map is made from the very tiles of the prediction, and knows what the slide as
a whole was given, so that pictures, regions and detections need neither model
nor features.
"""

import dataclasses
import os

import numpy as np
from jaxtyping import Float

from data_prep.files import atomic

LEVEL0, MICROMETRE = "level0_px", "um"


@dataclasses.dataclass(frozen=True, eq=False)
class TileMap:
  """Scores of the tiles of one slide, means over models."""

  slide_id: str  # the slide
  patient_id: str  # its patient
  xy: Float[np.ndarray, "m 2"]  # top-left corners of the tiles, in `unit`
  tile_size: float  # side of a tile's footprint, in `unit`
  unit: str  # 'level0_px' or 'um'
  level0_mpp: float | None  # um per level-0 pixel; None = unknown
  # (width, height) of the slide in level-0 pixels; None = unknown.
  level0_size: tuple[int, int] | None
  # Weight of each tile; the tiles of a slide add up to 1, so it is not
  # comparable between slides.
  attention: Float[np.ndarray, " m"]
  # What each tile says by itself, in [0, 1]; comparable between slides.
  probability: Float[np.ndarray, " m"]
  # Signed share of each tile in the slide's output.
  contribution: Float[np.ndarray, " m"]
  class_name: str  # which class the scores are of
  # Of that class, for the slide; for regression and survival the predicted
  # value.
  slide_probability: float
  # Above which a slide is positive, from validation; NaN = none.
  threshold: float
  # The slide's true label as the table writes it; None = unknown.
  label: str | None

  @property
  def has_places(self) -> bool:
    """Whether its tiles have a place in level-0 pixels."""
    return self.unit == LEVEL0 or bool(self.level0_mpp)

  @property
  def can_be_drawn(self) -> bool:
    """Whether it has tiles, and the slide's size and scale are known."""
    is_known = self.level0_mpp and self.level0_size
    return bool(is_known) and len(self.xy) > 0

  def in_level0(self) -> "TileMap":
    """The same map in level-0 pixels."""
    if self.unit == LEVEL0:
      return self
    if not self.level0_mpp:
      raise ValueError(
        f"slide {self.slide_id!r}: its tiles are in um and level0_mpp is "
        "unknown; give the slide's um per pixel"
      )
    return dataclasses.replace(
      self,
      xy=self.xy / self.level0_mpp,
      tile_size=self.tile_size / self.level0_mpp,
      unit=LEVEL0,
    )

  def save(self, path: str | os.PathLike) -> None:
    """Writes an npz file; the old one stays until the new one is whole.

    Unknown values are NaN, (0, 0) and ''.
    """
    with atomic.replacing(path) as draft, draft.open("wb") as file:
      np.savez_compressed(
        file,
        slide_id=np.array(self.slide_id),
        patient_id=np.array(self.patient_id),
        xy=np.asarray(self.xy, np.float64),
        tile_size=np.float64(self.tile_size),
        unit=np.array(self.unit),
        level0_mpp=np.float64(self.level0_mpp or np.nan),
        level0_size=np.array(self.level0_size or (0, 0), np.int64),
        attention=np.asarray(self.attention, np.float32),
        probability=np.asarray(self.probability, np.float32),
        contribution=np.asarray(self.contribution, np.float32),
        class_name=np.array(self.class_name),
        slide_probability=np.float64(self.slide_probability),
        threshold=np.float64(self.threshold),
        label=np.array(self.label or ""),
      )

  @classmethod
  def load(cls, path: str | os.PathLike) -> "TileMap":
    """Reads what `TileMap.save` wrote.

    Raises:
      ValueError: the file is no map, or its arrays do not belong together.
    """
    try:
      with np.load(path) as file:
        values = {name: file[name] for name in file.files}
      mpp = float(values["level0_mpp"])
      size = tuple(int(v) for v in values["level0_size"])
      found = cls(
        slide_id=str(values["slide_id"]),
        patient_id=str(values["patient_id"]),
        xy=values["xy"],
        tile_size=float(values["tile_size"]),
        unit=str(values["unit"]),
        level0_mpp=mpp if np.isfinite(mpp) else None,
        level0_size=size if size != (0, 0) else None,
        attention=values["attention"],
        probability=values["probability"],
        contribution=values["contribution"],
        class_name=str(values["class_name"]),
        slide_probability=float(values["slide_probability"]),
        threshold=float(values["threshold"]),
        label=str(values["label"]) or None,
      )
    except Exception as error:  # NumPy and zipfile raise whatever they like
      raise ValueError(f"{path} is no map of tiles: {error!r}") from error
    scores = (found.attention, found.probability, found.contribution)
    lengths = {len(found.xy), *map(len, scores)}
    if len(lengths) > 1 or found.unit not in (LEVEL0, MICROMETRE):
      raise ValueError(
        f"{path} is no map of tiles: arrays of {sorted(lengths)} tiles, unit "
        f"{found.unit!r}"
      )
    return found
