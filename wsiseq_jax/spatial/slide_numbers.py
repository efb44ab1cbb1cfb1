"""The two tables of a slide: scores, one number a row, and curves."""

import dataclasses
from typing import Any

import numpy as np

from data_prep.files.errors import SlideError
from wsiseq_jax.spatial import envelopes

SCORES = (
  *("slide_id", "patient_id", "statistic", "from", "to", "at_um", "value"),
  *("expected", "p", "null", "n_from", "n_to", "note"),
)
CURVES = (
  *("slide_id", "patient_id", "statistic", "from", "to", "at_um", "to_um"),
  *("numerator", "denominator", "theory", "value"),
  # Of the test: the curve that was tested, of the cells that it could use, what
  # chance gives on average, and the band.
  *("tested", "expected", "low", "high"),
)
Row = dict[str, Any]


@dataclasses.dataclass
class SlideNumbers:
  """What was computed of a slide; rows of the two tables."""

  slide_id: str
  patient_id: str
  scores: list[Row] = dataclasses.field(default_factory=list)
  curves: list[Row] = dataclasses.field(default_factory=list)
  notes: list[SlideError] = dataclasses.field(default_factory=list)

  def score(self, statistic: str, pair: tuple[str, str], **values: Any) -> None:
    """Adds a row of scores."""
    row = dict.fromkeys(SCORES, "")
    ids = {"slide_id": self.slide_id, "patient_id": self.patient_id}
    named = {"statistic": statistic, "from": pair[0], "to": pair[1]}
    self.scores.append(row | ids | named | values)

  def curve(
    self,
    statistic: str,
    pair: tuple[str, str],
    at: np.ndarray,
    numerator: np.ndarray,
    denominator: np.ndarray,
    theory: np.ndarray,
    band: envelopes.Envelope | None = None,
    to_um: np.ndarray | None = None,
  ) -> None:
    """Adds a row for each distance."""
    nothing = np.full(len(at), np.nan)
    value = np.divide(
      numerator, denominator, where=denominator > 0, out=nothing.copy()
    )
    columns = {
      "at_um": at,
      "to_um": nothing if to_um is None else to_um,
      "numerator": numerator,
      "denominator": denominator,
      "theory": theory,
      "value": value,
      "tested": band.observed if band else nothing,
      "expected": band.central if band else nothing,
      "low": band.low if band else nothing,
      "high": band.high if band else nothing,
    }
    ids = {"slide_id": self.slide_id, "patient_id": self.patient_id}
    named = {"statistic": statistic, "from": pair[0], "to": pair[1]}
    for values in zip(*(v.tolist() for v in columns.values()), strict=True):
      self.curves.append(ids | named | dict(zip(columns, values, strict=True)))
