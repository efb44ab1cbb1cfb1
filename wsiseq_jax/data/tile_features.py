"""The tiles of one slide, as numbers: features and places.

What `feature_files` reads and writes. Files of ours, CLAM and TRIDENT are in
level-0 pixels, STAMP's in micrometres; `unit` says which.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64

UNITS = ("level0_px", "um")

Number = int | float | np.integer | np.floating


@dataclasses.dataclass(frozen=True, eq=False)
class TileFeatures:
  """The tiles of one slide.

  Attributes:
    slide_id: the slide.
    features: one row a tile.
    xy: x, y of the tiles' top-left corners, in `unit`.
    tile_size: side of a tile's footprint, in `unit`; nan if there is no tile
      and the file does not say.
    unit: 'level0_px' or 'um'.
    mpp: um/px that the tiles were read at; None = unknown.
    level0_mpp: um per level-0 pixel; None = unknown.
    level0_size: width, height of the slide in level-0 px; None = unknown.
    encoder: what made the features; '' = unknown.
  """

  slide_id: str
  features: Float32[np.ndarray, "m d"]
  xy: Float64[np.ndarray, "m 2"]
  tile_size: float
  unit: str = "level0_px"
  mpp: float | None = None
  level0_mpp: float | None = None
  level0_size: tuple[int, int] | None = None
  encoder: str = ""

  def level0_xy(
    self, mpp: Number | None = None
  ) -> tuple[Float64[np.ndarray, "m 2"], float]:
    """Returns the corners and the side of the tiles in level-0 pixels.

    Args:
      mpp: um per level-0 pixel, for files in um that do not say.

    Returns:
      x, y of the top-left corners, and the side.

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
  """Checks what shapes and numbers must be, beyond their types.

  Args:
    tiles: the tiles of a slide.
    name: what to call them in a message: a file.

  Raises:
    ValueError: naming what is wrong, and where.
  """
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
  if tiles.unit not in UNITS:
    raise ValueError(f"{name}: unit {tiles.unit!r}, want one of {UNITS}")
  if count and not 0 < tiles.tile_size < np.inf:
    raise ValueError(f"{name}: tile size {tiles.tile_size}, want more than 0")
