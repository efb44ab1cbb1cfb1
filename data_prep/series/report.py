"""What a run over series leaves for people: tables, a picture, a text."""

import pathlib
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from data_prep import records, runs, shards, splits
from data_prep.files import atomic, tables
from data_prep.files import errors as error_rows
from data_prep.files.errors import NOTE, SlideError
from data_prep.series.job import Shape
from data_prep.series.spans import Series
from data_prep.targets import Target
from data_prep.wsi import qc

COLUMNS = (
  "series_id",
  "patient_id",
  "split",
  "status",
  "sequences",
  "frames",
  "time_span",
  "height_px",
  "width_px",
  "channels",
  "reason",
)
SHEET_SERIES, SHEET_FRAMES = 16, 8
_SHEET_PX = 112


def write_tables(
  out: pathlib.Path,
  series: Sequence[Series],
  done: Mapping[str, Mapping[str, Any]],
  assignment: Mapping[str, str],
  errors: Sequence[SlideError],
) -> bool:
  """Writes series.csv and errors.csv."""
  reasons = {e.slide: e.error for e in errors if e.stage != NOTE}
  patients = {one.series_id: one.patient_id for one in series}
  rows = []
  for series_id, patient in sorted(patients.items()):
    info = done.get(series_id)
    height, width = info["source_px"] if info else ("", "")
    rows.append(
      {
        "series_id": series_id,
        "patient_id": patient,
        "split": assignment.get(patient, "") if info else "",
        "status": "done" if info else "failed",
        "sequences": info["sequences"] if info else 0,
        "frames": info["frames"] if info else 0,
        "time_span": f"{info['time_span']:.6g}" if info else "",
        "height_px": height,
        "width_px": width,
        "channels": info["channels"] if info else "",
        "reason": reasons.get(series_id, ""),
      }
    )
  changed = tables.write(out / "series.csv", COLUMNS, rows)
  return changed | error_rows.write(out / "errors.csv", errors)


def contact_sheet(
  out: pathlib.Path, parts: Sequence[shards.Part], time_unit: str
) -> bool:
  """Writes a picture of some sequences as they were stored.

  One row a sequence, its frames from left to right with their times; frames
  that are padding stay empty. It is made from the finished shards, so it shows
  what training will see.
  """
  total = sum(part.sequences for part in parts)
  # Evenly spread over the data set: the same rows in every run.
  wanted = np.unique(np.linspace(0, total - 1, SHEET_SERIES).astype(int))
  rows = [
    _sheet_row(records.from_example(example), part.split, time_unit)
    for part, example in shards.read_some(out / "shards", parts, wanted)
  ]
  # Quality and subsampling of the sheet, not of the data.
  jpeg = simplejpeg.encode_jpeg(
    np.ascontiguousarray(np.concatenate(rows)), 88, colorsubsampling="444"
  )
  return atomic.write_atomic(out / "qc" / "contact_sheet.jpg", jpeg)


def _sheet_row(
  record: records.SequenceRecord, split: str, time_unit: str
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws the frames of one sequence side by side."""
  real = int(record.frame_mask.sum())
  chosen = np.unique(np.linspace(0, real - 1, SHEET_FRAMES).round().astype(int))
  height, width = records.panel_size(record.panels[0])
  scale = _SHEET_PX / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  line, gap = 15, 4
  image = Image.new(
    "RGB",
    ((size[0] + gap) * SHEET_FRAMES + gap, size[1] + 2 * line + gap),
    "white",
  )
  draw = ImageDraw.Draw(image)
  font = qc.caption_font(11)
  count = f"{real} frames" if real > 1 else "1 frame"
  title = f"{record.sequence_id}  ·  {split}  ·  {count}"
  draw.text((gap, 1), title, fill="black", font=font)
  for place, index in enumerate(chosen):
    pixels = simplejpeg.decode_jpeg(record.panels[record.frame_panel[index]])
    # Small pictures keep their pixels visible.
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    left = gap + place * (size[0] + gap)
    image.paste(Image.fromarray(pixels).resize(size, how), (left, line))
    text = f"{record.time[index]:.3g} {time_unit}"
    draw.text((left, line + size[1]), text, fill=(90, 90, 90), font=font)
  return np.asarray(image)


def closing(
  out: pathlib.Path,
  *,
  shape: Shape,
  targets: Sequence[Target],
  done: Mapping[str, Mapping[str, Any]],
  assignment: Mapping[str, str],
  errors: Sequence[SlideError],
  changed: bool,
  seconds: float,
  has_patients: bool,
) -> tuple[str, int]:
  """Puts the result of a run into words."""
  bad = [error for error in errors if error.stage != NOTE]
  notes = [error for error in errors if error.stage == NOTE]
  text = [""]
  if done:
    table = [("split", "series", "patients", "sequences")]
    for split in splits.NAMES:
      inside = [
        info
        for info in done.values()
        if assignment[info["patient_id"]] == split
      ]
      if inside:
        table.append(
          (
            split,
            f"{len(inside):,}",
            f"{len({info['patient_id'] for info in inside}):,}",
            f"{sum(info['sequences'] for info in inside):,}",
          )
        )
    text += [f"  {a:<8}{b:>8}{c:>10}{d:>11}" for a, b, c, d in table]
    text.append("")
    text += [f"  {_described(target)}" for target in targets]
    text.append("")
  for title, rows in (("not used, or not as it is", bad), ("notes", notes)):
    if rows:
      text.append(f"  {title}")
      for code, count in Counter(error.error for error in rows).most_common():
        first = next(error for error in rows if error.error == code)
        text.append(f"  - {count} x {code}, such as {first.slide}:")
        text.append(textwrap.indent(textwrap.fill(first.message, 72), "    "))
      text.append("")
  if not has_patients:
    text.append(
      "No column names patients: every series counts as a patient of its own."
    )
  height, width = shape.frame_px
  sequences = sum(info["sequences"] for info in done.values())
  if not done:
    text.append("No series gave a sequence: no data set was written.")
  elif not changed:
    text.append(
      f"Everything was finished already: {sequences:,} sequences in "
      f"{out / 'shards'}; nothing was written."
    )
  else:
    text.append(
      f"{sequences:,} sequences of {shape.frames} frames, {height} x {width} "
      f"px, in {out / 'shards'}; {seconds:.1f} s"
    )
  if errors:
    rows = "1 row" if len(errors) == 1 else f"{len(errors)} rows"
    text.append(f"{rows} in {out / 'errors.csv'}")
  code = runs.EXIT_SOME_FAILED if bad else runs.EXIT_GOOD
  return "\n".join(text), code if done else runs.EXIT_NOTHING


def _described(target: Target) -> str:
  if not target.classes:
    return f"{target.name}: a number"
  return f"{target.name}: class, {' | '.join(target.classes)}"
