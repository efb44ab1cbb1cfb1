"""What became of the slides of `embed_tiles`: its tables and its last words."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import h5py

from data_prep.files import tables
from data_prep.files.errors import SlideError
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.tile_stream import NO_TISSUE, OK

EXIT_GOOD, EXIT_NOTHING, EXIT_SOME_FAILED = 0, 1, 3
FAILED = "error"
SLIDE_COLUMNS = (
  "slide_id", "case_id", "label", "split", "filename", "status", "tiles",
  "bad_tiles", "mpp", "level0_mpp", "mpp_origin", "width_px", "height_px",
  "tissue_mm2", "seconds", "waiting", "reason",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one slide.

  Attributes:
    entry: the slide.
    status: 'ok', 'no_tissue' or 'error'.
    info: what is known of it, as stored with the features; empty if it failed.
    before: it was finished before this run.
    error: what is wrong with it; None unless it failed.
  """

  entry: SlideEntry
  status: str
  info: Mapping[str, Any]
  before: bool = False
  error: SlideError | None = None

  def row(self) -> dict[str, Any]:
    """Returns the slide's row of slides.csv."""
    info = self.info
    width, height = info.get("level0_px", ("", ""))
    row = {
      "slide_id": self.entry.slide_id,
      "case_id": self.entry.patient_id,
      "label": self.entry.label or "",
      "split": self.entry.split or "",
      "filename": pathlib.Path(self.entry.path).name,
      "status": self.status,
      "width_px": width,
      "height_px": height,
      "reason": self.error.error if self.error else info["reason"],
    }
    for name in ("tiles", "bad_tiles", "mpp_origin"):
      row[name] = info.get(name, "")
    for name, form in (
      ("mpp", "g"), ("level0_mpp", "g"), ("tissue_mm2", ".3f"),
      ("seconds", ".3f"), ("waiting", ".3f"),
    ):  # fmt: skip
      row[name] = format(info[name], form) if info else ""
    return row


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run did.

  Attributes:
    outcomes: what became of each slide, by slide id.
    errors: the rows of errors.csv.
    tiles: embedded in this run.
    seconds: that took, compilation left out.
    waiting: share of them in which the device waited for slides.
    text: the result in words.
    exit_code: see `configs/embed_tiles.py`.
  """

  outcomes: Mapping[str, Outcome]
  errors: Sequence[Mapping[str, str]]
  tiles: int
  seconds: float
  waiting: float
  text: str
  exit_code: int


def error_rows(
  outcomes: Mapping[str, Outcome], found: Sequence[SlideError]
) -> list[dict[str, str]]:
  """Returns the rows of errors.csv, by slide.

  Args:
    outcomes: what became of the slides; damaged places of good slides count.
    found: what could not even be found.
  """
  rows = [error.row() for error in found]
  for outcome in outcomes.values():
    rows += [outcome.error.row()] if outcome.error else []
    rows += outcome.info.get("bad", [])
  return sorted(rows, key=lambda row: row["slide"])


def path(workdir: pathlib.Path, name: str, part: str) -> pathlib.Path:
  """Returns where a table is.

  Example:
    >>> path(pathlib.Path("w"), "slides", "1/8").name
    'slides.1-of-8.csv'
    >>> path(pathlib.Path("w"), "slides", "1/1").name
    'slides.csv'
  """
  end = "" if part == "1/1" else f".{part.replace('/', '-of-')}"
  return workdir / f"{name}{end}.csv"


def write(
  workdir: pathlib.Path,
  part: str,
  outcomes: Mapping[str, Outcome],
  found: Sequence[SlideError],
) -> None:
  """Writes slides.csv and errors.csv, or those of a part.

  Args:
    workdir: where.
    part: `config.data.part`.
    outcomes: what became of the slides.
    found: what could not even be found.
  """
  slides = [outcome.row() for _, outcome in sorted(outcomes.items())]
  errors = error_rows(outcomes, found)
  for name, columns, rows in (
    ("slides", SLIDE_COLUMNS, slides),
    ("errors", tables.ERROR_COLUMNS, errors),
  ):
    tables.write_csv(path(workdir, name, part), columns, rows)


def summary(
  errors_csv: pathlib.Path,
  outcomes: Mapping[str, Outcome],
  errors: Sequence[Mapping[str, str]],
  tiles: int,
  seconds: float,
  waiting: float,
) -> Summary:
  """Puts a run into words, and says how the program ends.

  Args:
    errors_csv: where the errors are written.
    outcomes: what became of the slides.
    errors: the rows of errors.csv.
    tiles: embedded in this run.
    seconds: that took.
    waiting: share of them in which the device waited for slides.

  Returns:
    See `Summary`.
  """
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
  if errors:
    lines.append(f"{errors_csv}:")
  for row in errors:
    lines.append(f"  - {row['slide']} [{row['stage']}/{row['error']}]")
  code = EXIT_SOME_FAILED if errors else EXIT_GOOD
  return Summary(
    outcomes,
    errors,
    tiles,
    seconds,
    waiting,
    "\n".join(lines),
    code if good else EXIT_NOTHING,
  )


def finished(feature_file: pathlib.Path, digest: str) -> dict[str, Any] | None:
  """Returns what is known of a slide that is finished with these settings.

  Args:
    feature_file: of the slide; need not exist.
    digest: names the settings, the encoder and the slide file.

  Returns:
    What was stored with the features; None if the slide has to be done.
  """
  try:
    with h5py.File(feature_file, "r") as file:
      if file.attrs.get("config_hash") != digest:
        return None
      return json.loads(file.attrs["info"])
  except (OSError, KeyError, ValueError):
    return None  # not there, or not ours, or damaged: to be made
