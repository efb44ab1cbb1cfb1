"""What a run over pictures leaves for people: tables, a sheet, a text."""

import pathlib
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from data_prep import runs, shards, splits
from data_prep.files import atomic, tables
from data_prep.files import errors as error_rows
from data_prep.files.errors import NOTE, SlideError
from data_prep.pictures import records
from data_prep.pictures.classes import Classes
from data_prep.wsi import qc

COLUMNS = (
  *("picture_id", "patient_id", "slide_id", "split", "labels", "mask"),
  *("points", "tissue", "height_px", "width_px"),
)
SHEET_PICTURES = 24
_SHEET_PX, _ACROSS, _LINE = 192, 6, 30
# Outlines of classes 1, 2, ..., again from the start after the last.
COLOURS = ((0, 150, 60), (220, 120, 0), (0, 110, 220), (190, 0, 160))

Pictures = Mapping[str, Sequence[Mapping[str, Any]]]  # facts, by split
Rows = Mapping[str, tuple[float, ...]]  # labels by picture


def in_words(labels: Sequence[float], classes: Classes) -> str:
  """Labels for people: `tumour; stroma?`, where `?` is not known.

  Example:
    >>> some = Classes(("a", "b"), {}, frozenset())
    >>> in_words((1.0, float("nan")), some), in_words((0.0, 0.0), some)
    ('a; b?', 'none')
  """
  words = [
    name if label == 1 else f"{name}?"
    for name, label in zip(classes.names, labels, strict=True)
    if label != 0
  ]
  return "; ".join(words) or "none"


def contact_sheet(
  out: pathlib.Path,
  parts: Sequence[shards.Part],
  pictures: Pictures,
  rows: Rows,
  classes: Classes,
) -> bool:
  """Writes some pictures as they were stored, with masks and points.

  Half of them show a class, spread evenly over the data set. It is made from
  the finished shards, so it shows what training will see.
  """
  order = [one["picture_id"] for found in pictures.values() for one in found]
  positive = np.array([1.0 in rows[name] for name in order])
  wanted = np.concatenate(
    [
      group[np.linspace(0, len(group) - 1, SHEET_PICTURES // 2).astype(int)]
      for group in (np.flatnonzero(positive), np.flatnonzero(~positive))
      if len(group)
    ]
  )
  wanted = np.unique(wanted)
  cells = []
  # In the order of the shards, as `pictures` are.
  parts = sorted(
    parts, key=lambda part: (splits.NAMES.index(part.split), part.slide_id)
  )
  for part, example in shards.read_some(out / "shards", parts, wanted):
    record = records.from_example(example)
    labels = rows[record.picture_id]
    words = in_words(labels, classes)
    cells.append(_cell(record, part.split, words, labels))
  cells += [np.full_like(cells[0], 255)] * (-len(cells) % _ACROSS)
  lines = [
    np.concatenate(cells[i : i + _ACROSS], 1)
    for i in range(0, len(cells), _ACROSS)
  ]
  jpeg = simplejpeg.encode_jpeg(
    np.ascontiguousarray(np.concatenate(lines)), 90, colorsubsampling="444"
  )
  return atomic.write_atomic(out / "qc" / "contact_sheet.jpg", jpeg)


def _cell(
  record: records.PictureRecord, split: str, words: str, labels
) -> UInt8[np.ndarray, "h w 3"]:
  """One picture: outlines of its mask, its points, glass in grey."""
  pixels = cv2.imdecode(np.frombuffer(record.image, np.uint8), 1)[..., ::-1]
  mask, tissue = (
    cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    for png in (record.mask, record.tissue)
  )
  has_mask = (mask != records.NOT_KNOWN).any()
  scale = _SHEET_PX / max(record.size)
  size = tuple(max(1, round(n * scale)) for n in record.size[::-1])
  how = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
  shown = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=how)
  mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
  tissue = cv2.resize(tissue, size, interpolation=cv2.INTER_NEAREST)
  shown[tissue == 0] = shown[tissue == 0] // 2 + 64
  for number in range(1, len(labels) + 1):
    colour = COLOURS[(number - 1) % len(COLOURS)]
    outlines, _ = cv2.findContours(
      (mask == number).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(shown, outlines, -1, colour, 2)
  for x, y, number in record.points.tolist():
    colour = COLOURS[(int(number) - 1) % len(COLOURS)] if number else (90,) * 3
    place = round((x + 0.5) * scale), round((y + 0.5) * scale)
    cv2.circle(shown, place, 1, colour, -1)
  cell = Image.new("RGB", (_SHEET_PX + 8, _SHEET_PX + _LINE + 6), "white")
  cell.paste(Image.fromarray(shown), (4, _LINE))
  draw, font = ImageDraw.Draw(cell), qc.caption_font(11)
  known = "" if has_mask else "  ·  no mask"
  for line, text in enumerate(
    (record.picture_id, f"{split}  ·  {words}{known}")
  ):
    draw.text((4, 1 + 14 * line), _short(text), fill="black", font=font)
  return np.asarray(cell)


def _short(text: str) -> str:
  return text if len(text) <= 34 else f"…{text[-33:]}"


def finish(
  out: pathlib.Path,
  pictures: Pictures,
  rows: Rows,
  classes: Classes,
  errors: Sequence[SlideError],
  *,
  changed: bool,
  seconds: float,
  has_patients: bool,
) -> runs.RunSummary:
  """Writes pictures.csv and errors.csv, and puts the result into words."""
  unique = {(e.slide, e.stage, e.error, e.message): e for e in errors}
  errors = [unique[key] for key in sorted(unique)]
  table = [
    {
      "picture_id": one["picture_id"],
      "patient_id": one["patient_id"],
      "slide_id": one["slide_id"],
      "split": split,
      "labels": in_words(rows[one["picture_id"]], classes),
      "mask": _shares(one["share"], classes),
      "points": one["points"],
      "tissue": one["tissue"],
      "height_px": one["size"][0],
      "width_px": one["size"][1],
    }
    for split, found in pictures.items()
    for one in found
  ]
  changed |= tables.write(out / "pictures.csv", COLUMNS, table)
  changed |= error_rows.write(out / "errors.csv", errors)
  bad = [error for error in errors if error.stage != NOTE]
  code = runs.EXIT_SOME_FAILED if bad else runs.EXIT_GOOD
  text = _text(out, pictures, rows, classes, errors, changed, seconds)
  if not has_patients:
    text += "\nNo column names patients: each picture counts as one of its own."
  return runs.RunSummary(
    errors, changed, text, code if table else runs.EXIT_NOTHING
  )


def _shares(share: Sequence[float] | None, classes: Classes) -> str:
  """How much of a picture each class covers; '' without a mask."""
  if share is None:
    return ""
  return "; ".join(
    f"{name} {part:.3f}"
    for name, part in zip(classes.names, share[1:], strict=True)
  )


def _text(out, pictures, rows, classes, errors, changed, seconds) -> str:
  heading = ("split", "pictures", "patients", "masks", "points")
  table = [(*heading, *classes.names, "none")]
  for split, found in pictures.items():
    if found:
      labels = np.array([rows[one["picture_id"]] for one in found])
      counts = [
        len(found),
        len({one["patient_id"] for one in found}),
        sum(one["share"] is not None for one in found),
        sum(one["points"] for one in found),
        *(labels == 1).sum(0).tolist(),
        int((labels == 0).all(1).sum()),
      ]
      table.append((split, *(f"{n:,}" for n in counts)))
  text = [""]
  if len(table) > 1:
    widths = [max(map(len, column)) + 2 for column in zip(*table, strict=True)]
    text += [
      "".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True))
      for line in table
    ]
    text.append("")
  bad = [error for error in errors if error.stage != NOTE]
  notes = [error for error in errors if error.stage == NOTE]
  for title, found in (("not used, or not as it is", bad), ("notes", notes)):
    if found:
      text.append(f"  {title}")
      for kind, count in Counter(error.error for error in found).most_common():
        first = next(error for error in found if error.error == kind)
        text.append(f"  - {count} x {kind}, such as {first.slide}:")
        text.append(textwrap.indent(textwrap.fill(first.message, 72), "    "))
      text.append("")
  total = sum(map(len, pictures.values()))
  if not total:
    text.append("No picture could be used: no data set was written.")
  elif not changed:
    text.append(
      f"Everything was finished already: {total:,} pictures in "
      f"{out / 'shards'}; nothing was written."
    )
  else:
    text.append(f"{total:,} pictures in {out / 'shards'}; {seconds:.1f} s")
  if errors:
    count = "1 row" if len(errors) == 1 else f"{len(errors)} rows"
    text.append(f"{count} in {out / 'errors.csv'}")
  return "\n".join(text)
