"""Cells as points of one slide, and the one table that keeps them.

A table is a Parquet file of a slide (`COLUMNS`); x runs to the right and y
down, in µm from the corner of level-0 pixel (0, 0).
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int, Shaped

from data_prep.files import atomic

# Columns of every table; others may follow, such as `distance_um`.
COLUMNS = ("slide_id", "patient_id", "x_um", "y_um", "type", "score")
UNKNOWN = "cell"  # the type of cells that nobody has typed


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """The cells of one slide."""

  slide_id: str  # the slide
  patient_id: str  # its patient
  xy_um: Float[np.ndarray, "n 2"]  # x, y, float64
  type: Int[np.ndarray, " n"]  # number of each cell's type in `names`
  names: tuple[str, ...]  # of the types, sorted
  score: Float32[np.ndarray, " n"]  # what the detector says; NaN = unknown

  def __len__(self) -> int:
    return len(self.xy_um)

  @classmethod
  def of(
    cls,
    slide_id: str,
    patient_id: str,
    xy_um: Float[np.ndarray, "n 2"],
    types: Shaped[np.ndarray, " n"] | Sequence[str],
    score: Shaped[np.ndarray, " n"] | None = None,
  ) -> "Points":
    """Cells whose types are names; '' is `UNKNOWN`.

    Example:
      >>> cells = Points.of("s", "p", np.zeros((3, 2)), ["b", "", "a"])
      >>> cells.names, cells.type.tolist()
      (('a', 'b', 'cell'), [1, 2, 0])
    """
    types = np.asarray(types, dtype=str)
    names, number = np.unique(
      np.where(types == "", UNKNOWN, types), return_inverse=True
    )
    if score is None:
      score = np.full(len(types), np.nan)
    return cls(
      slide_id,
      patient_id,
      np.asarray(xy_um, np.float64).reshape(-1, 2),
      number.astype(np.int64),
      tuple(names.tolist()),
      np.asarray(score, np.float32),
    )

  def kept(self, keep: Bool[np.ndarray, " n"]) -> "Points":
    """Those of a mask; types of which none is left keep their number."""
    return dataclasses.replace(
      self,
      xy_um=self.xy_um[keep],
      type=self.type[keep],
      score=self.score[keep],
    )

  def counts(self) -> dict[str, int]:
    """How many cells there are of each type."""
    number = np.bincount(self.type, minlength=len(self.names))
    return dict(zip(self.names, number.tolist(), strict=True))

  def xy_of(self, name: str) -> Float[np.ndarray, "m 2"]:
    """The places of one type; none where there is no such type."""
    if name not in self.names:
      return np.zeros((0, 2))
    return self.xy_um[self.type == self.names.index(name)]


def write(
  path: str | os.PathLike,
  points: Points,
  more: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Writes the table of a slide, whole or not at all.

  Args:
    path: the file.
    points: its cells.
    more: further columns by name, each [n].

  Raises:
    OSError: it cannot be written; the old file is still there.
  """
  count = len(points)

  def same(text: str) -> pa.Array:
    zeros = pa.array(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(zeros, pa.array([text]))

  kinds = pa.DictionaryArray.from_arrays(
    pa.array(points.type.astype(np.int32)), pa.array(points.names, pa.string())
  )
  columns = {
    "slide_id": same(points.slide_id),
    "patient_id": same(points.patient_id),
    "x_um": pa.array(points.xy_um[:, 0]),
    "y_um": pa.array(points.xy_um[:, 1]),
    "type": kinds,
    "score": pa.array(points.score),
    **{name: pa.array(values) for name, values in (more or {}).items()},
  }
  with atomic.replacing(path) as draft:
    pq.write_table(pa.table(columns), draft, compression="zstd")


def files(workdir: str | os.PathLike) -> dict[str, pathlib.Path]:
  """The tables that the job `spatial` left in its workdir, by slide.

  Empty for any other folder.
  """
  found = pathlib.Path(workdir).expanduser().glob("slides/*/cells.parquet")
  return {path.parent.name: path for path in sorted(found)}


def read(path: str | os.PathLike) -> Points:
  """Reads the table of a slide.

  Raises:
    ValueError: the file is no such table, or holds several slides.
  """
  try:
    table = pq.read_table(path, columns=list(COLUMNS))
  except (OSError, pa.ArrowException) as error:
    raise ValueError(f"{path} is no table of cells: {error}") from error
  slides = table["slide_id"].unique().to_pylist()
  if len(slides) > 1:
    raise ValueError(f"{path} holds the slides {slides[:5]}: want one")
  patients = table["patient_id"].unique().to_pylist()
  return Points.of(
    slides[0] if slides else "",
    patients[0] if patients else "",
    np.stack([table["x_um"].to_numpy(), table["y_um"].to_numpy()], axis=1),
    table["type"].to_numpy(),
    table["score"].to_numpy(),
  )
