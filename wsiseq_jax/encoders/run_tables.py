"""What became of the slides of a run: its tables and its last words."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep import runs
from data_prep.files import errors, tables
from data_prep.files.errors import SlideError
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.tile_stream import NO_TISSUE, OK

EXIT_GOOD, EXIT_NOTHING, EXIT_SOME_FAILED = 0, 1, 3
FAILED = "error"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one slide."""

  entry: SlideEntry  # the slide
  status: str  # 'ok', 'no_tissue' or 'error'
  # what is known of it, as in its mark; empty if it failed
  info: Mapping[str, Any]
  before: bool = False  # it was finished before this run
  # what is wrong with it; None unless it failed
  error: SlideError | None = None

  def row(self) -> dict[str, Any]:
    """Returns the slide's row of slides.csv."""
    width, height = self.info.get("level0_px", ("", ""))
    known = ("tiles", "bad_tiles", "mpp", "mpp_origin", "target_mpp")
    known += ("tissue_mm2", "seconds", "waiting", "reason")
    row = {name: self.info.get(name, "") for name in known}
    for name in ("tissue_mm2", "seconds", "waiting"):
      row[name] = format(row[name], ".3f") if self.info else ""
    return row | {
      "slide_id": self.entry.slide_id,
      "patient_id": self.entry.patient_id,
      "label": self.entry.label or "",
      "split": self.entry.split or "",
      "filename": pathlib.Path(self.entry.path).name,
      "status": self.status,
      "width_px": width,
      "height_px": height,
      "reason": self.error.error if self.error else row["reason"],
    }

  def errors(self) -> list[SlideError]:
    """What is wrong with it, damaged places of a good slide included."""
    bad = [SlideError(*state) for state in self.info.get("bad", ())]
    return [self.error] if self.error else bad


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run did."""

  outcomes: Mapping[str, Outcome]  # what became of each slide, by slide id
  errors: Sequence[SlideError]  # what is in errors.csv
  tiles: int  # of this run
  seconds: float  # that took, compilation left out
  waiting: float  # share of them in which the device waited for slides
  text: str  # the result in words
  exit_code: int  # 0, 3 where some failed, 1 where all did


def write(
  workdir: pathlib.Path,
  part: str,
  outcomes: Mapping[str, Outcome],
  found: Sequence[SlideError],
) -> list[SlideError]:
  """Writes slides.csv and errors.csv (of a part); returns the errors."""
  rows = [outcome.row() for _, outcome in sorted(outcomes.items())]
  wrong = [*found, *(e for o in outcomes.values() for e in o.errors())]
  tables.write(
    workdir / runs.table_name("slides", part), tables.SLIDE_COLUMNS, rows
  )
  errors.write(workdir / runs.table_name("errors", part), wrong)
  return sorted(wrong, key=lambda error: error.slide)


def summary(
  errors_csv: pathlib.Path,
  outcomes: Mapping[str, Outcome],
  wrong: Sequence[SlideError],
  tiles: int,
  seconds: float,
  waiting: float,
) -> Summary:
  """Puts a run into words, and says how the program ends; see `Summary`."""
  count = collections.Counter(o.status for o in outcomes.values())
  good = count[OK] + count[NO_TISSUE]
  before = sum(o.before for o in outcomes.values())
  lines = [
    f"{good} slides done"
    + (f" ({before} of them before this run)" if before else "")
    + f", {count[NO_TISSUE]} of them without tissue"
  ]
  if seconds:
    lines.append(
      f"{tiles:,} tiles in {seconds:.1f} s ({tiles / seconds:.1f} a second); "
      f"the device waited for slides {waiting:.0%} of the time"
    )
  if wrong:
    lines.append(f"{errors_csv}:")
  lines += [f"  - {one.slide} [{one.stage}/{one.error}]" for one in wrong]
  code = EXIT_SOME_FAILED if wrong else EXIT_GOOD
  code = code if good else EXIT_NOTHING
  text = "\n".join(lines)
  return Summary(outcomes, wrong, tiles, seconds, waiting, text, code)
