"""A network that a job `segment` trained, as slides need it."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from data_prep.files import done, tables
from wsiseq_jax.encoders.encoder import fingerprint_of
from wsiseq_jax.segment import (
  clicks,
  nuclei,
  nucleus_masks,
  scoring,
  slide_settings,
  stage,
  student,
)
from wsiseq_jax.segment import settings as segment_settings

# Stages whose network segments any picture.
_MASKS = (clicks.Clicks.name, nucleus_masks.Nuclei.name, student.Student.name)


@dataclasses.dataclass(frozen=True, eq=False)
class SlideModel:
  """A trained network, or a detector and a network, as slides need it."""

  stage: str  # whose masks they are
  classes: tuple[str, ...]  # of the foreground
  mpp: float | None  # of the pictures it learned from; None = unknown
  crop_px: int  # side of the crops it learned from
  threshold: float  # of its scores
  params: Any
  # (params, uint8 [b, h, w, 3]) → `scores` [b, h/4, w/4, y], and `nuclei`
  # [b, h/4, w/4, 1] where there is a detector.
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
  fingerprint: str  # of parameters
  detection: nuclei.Detection | None = None  # how nuclei are seen


def load(wanted: slide_settings.TrainedModel) -> SlideModel:
  """Reads what a job `segment` left in its workdir.

  Raises:
    ValueError: it is no such folder, not finished, or has no network.
  """
  folder = pathlib.Path(wanted.workdir)
  try:
    config = json.loads((folder / "segment_config.json").read_text())
  except (OSError, ValueError) as error:
    raise ValueError(
      f"config.model.workdir = {wanted.workdir!r}: not the workdir of a "
      f"finished job 'segment' ({error})"
    ) from error
  asked = segment_settings.read(ConfigDict(config))
  chain = {one.name: one for one in asked.chain()}
  able = [name for name in chain if name in _MASKS]
  name = wanted.stage or (able[-1] if able else "")
  if name not in able:
    raise ValueError(
      f"config.model.stage = {wanted.stage!r}: the method {asked.method!r} has "
      f"the networks {able}; a stage that segments slides is one of {_MASKS}"
    )
  facts = done.read_facts(folder / name / "done.json")
  backbone = asked.backbone
  params = {
    "frozen": backbone.start(asked.seed),
    "masks": stage.read_params(folder / name),
  }
  detection = None
  if name == nucleus_masks.Nuclei.name:
    detect = chain[nuclei.Detect.name]
    detection = detect.rule
    params["nuclei"] = stage.read_params(folder / detect.round(detect.rounds))

  def apply(params, pixels):
    found = student.slide_scores(
      backbone, params["masks"], params["frozen"], pixels
    )
    if "nuclei" in params:
      seen = nuclei.slide_scores(
        backbone, params["nuclei"], params["frozen"], pixels
      )
      found["nuclei"] = seen["scores"]
    return found

  threshold = wanted.threshold or _chosen(folder, name)
  return SlideModel(
    name,
    tuple(facts["classes"]),
    facts["mpp"],
    asked.data.crops.crop_px,
    threshold,
    params,
    apply,
    fingerprint_of(params, {"stage": name, "method": asked.method}),
    detection,
  )


def _chosen(folder: pathlib.Path, name: str) -> float:
  """The threshold that validation chose."""
  for row in tables.rows_of(folder / "segmentation.csv"):
    if row["stage"] == name and row["threshold_from"] == scoring.CHOSEN:
      return float(row["threshold"])
  raise ValueError(
    f"config.model.threshold = 0: {folder / 'segmentation.csv'} has no "
    f"threshold of {name!r} that validation chose; give one, such as 0.5"
  )
