"""The rows of slides.csv, and the text at the end of a run."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.files.errors import SlideError
from data_prep.sequences.slide_job import (
  DONE,
  FAILED,
  NO_REGION,
  NO_TISSUE,
  SlideOutcome,
)
from data_prep.splits import NAMES
from data_prep.wsi.find import SlideEntry


def slide_rows(
  entries: Sequence[SlideEntry],
  outcomes: Mapping[str, SlideOutcome],
  splits: Mapping[str, str],
  earlier: Mapping[str, Mapping[str, str]],
) -> list[dict[str, Any]]:
  """Makes the rows of slides.csv."""
  rows = []
  for entry in sorted(entries, key=lambda e: e.slide_id):
    outcome = outcomes.get(entry.slide_id)
    if outcome is None:
      continue
    info = outcome.info
    seconds = earlier.get(entry.slide_id, {}).get("seconds", "")
    if outcome.status == FAILED:
      seconds = ""
    elif outcome.seconds is not None:
      seconds = f"{outcome.seconds:.2f}"
    width, height = info.get("level0_px", ("", ""))
    sequences = info.get("sequences", 0)
    rows.append(
      {
        "slide_id": entry.slide_id,
        "patient_id": entry.patient_id,
        "split": splits.get(entry.patient_id, "") if sequences else "",
        "status": outcome.status,
        "sequences": sequences,
        "label": entry.label or "",
        "mpp": f"{info['mpp']:g}" if info else "",
        "mpp_origin": info.get("mpp_origin", ""),
        "width_px": width,
        "height_px": height,
        "tissue_mm2": f"{info['tissue_mm2']:.3f}" if info else "",
        "seconds": seconds,
        "reason": outcome.error.error
        if outcome.error
        else info.get("reason", ""),
        "filename": pathlib.Path(entry.path).name,
      }
    )
  return rows


def closing_text(
  entries: Sequence[SlideEntry],
  outcomes: Mapping[str, SlideOutcome],
  errors: Sequence[SlideError],
  splits: Mapping[str, str],
  lines: Sequence[str],
) -> str:
  """Puts the result of a run into words."""
  done = [o for o in outcomes.values() if o.status == DONE]
  before = sum(o.seconds is None for o in done)
  noted = sum(bool(o.info.get("notes")) for o in outcomes.values())
  unusable = len(errors) - sum(
    len(o.info.get("notes", ())) for o in outcomes.values()
  )
  text = [
    "",
    f"{len(done)} slides done"
    + (f" ({before} of them before this run)" if before else "")
    + "".join(
      f", {count} {words}"
      for status, words in (
        (NO_TISSUE, "without tissue"),
        (NO_REGION, "without a valid region"),
      )
      if (count := sum(o.status == status for o in outcomes.values()))
    )
    + (f", {noted} with a remark" if noted else "")
    + (f", {unusable} not usable" if unusable else ""),
  ]
  patients = {entry.slide_id: entry.patient_id for entry in entries}
  table = [("split", "slides", "patients", "sequences")]
  for split in NAMES:
    inside = [o for o in done if splits.get(patients[o.slide_id]) == split]
    if inside:
      table.append(
        (
          split,
          f"{len(inside):,}",
          f"{len({patients[o.slide_id] for o in inside}):,}",
          f"{sum(o.info['sequences'] for o in inside):,}",
        )
      )
  if len(table) > 1:
    text += ["", *(f"  {a:<8}{b:>8}{c:>10}{d:>11}" for a, b, c, d in table)]
  empty = [o for o in outcomes.values() if o.status in (NO_TISSUE, NO_REGION)]
  if empty or errors:
    text += ["", "  not in the data set, or not as it should be"]
  for outcome in sorted(empty, key=lambda o: o.slide_id):
    text.append(f"  - {outcome.slide_id}: {outcome.info['reason']}")
  for error in errors:
    text.append(f"  - {error.slide} [{error.stage}/{error.error}]")
    text.append(textwrap.indent(textwrap.fill(error.message, 72), "    "))
  return "\n".join([*text, "", *lines])
