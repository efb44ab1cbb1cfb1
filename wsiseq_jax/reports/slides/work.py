"""Slide by slide: what a page depends on, and drawing it.

A slide is drawn by one thread; whatever is wrong with its file or its map is on
its page and in the table of problems, and stops no other slide.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from data_prep.files import atomic
from data_prep.wsi.find import SlideEntry
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.reports import figures
from wsiseq_jax.reports.slides import cohort_page, slide_files, slide_page
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides.data import Row

# Changes when pages of an older version must be written again.
VERSION = 2
_CARDS = ("card_slide.jpg", "card_map.jpg")
_GROUPS = ("annotation_include", "annotation_exclude", "annotation_ignore")
# Keys of `config.report` that no slide's page depends on.
_OF_COHORT = ("out", "sequence_report", "resamples", "bins")


def digest_of(value: Any) -> str:
  """sha256 of what JSON can say, hexadecimal."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: pathlib.Path) -> str:
  """sha256 of a file's bytes; '' where there is none."""
  if not path.is_file():
    return ""
  return hashlib.sha256(path.read_bytes()).hexdigest()


class Work:
  """Draws slides; what all of them share."""

  def __init__(
    self,
    out: pathlib.Path,
    context: slide_page.Context,
    data: Mapping[str, Any],
    entries: Mapping[str, SlideEntry],
    missing: Mapping[str, str],
    annotations: Mapping[str, pathlib.Path],
    maps: Mapping[str, pathlib.Path],
    limit: float,
  ):
    self.out, self.context, self.data = out, context, data
    self.entries, self.missing = entries, missing
    self.annotations = annotations
    self.maps, self.limit = maps, limit

  def folder(self, slide_id: str) -> pathlib.Path:
    """Where a slide's page is."""
    if slide_id in ("", ".", "..") or "/" in slide_id:
      raise ValueError(
        f"predictions_slide.csv: the slide id {slide_id!r} cannot name a folder"
      )
    return self.out / "slides" / slide_id

  def is_there(self, slide_id: str) -> bool:
    """Whether a slide's page was written."""
    return (self.folder(slide_id) / "index.html").is_file()

  def digest(self, row: Row) -> str:
    """A hash of all that a slide's page depends on."""
    name = row.slide_id
    entry, path = self.entries.get(name), self.maps.get(name)
    file = None
    if entry is not None:
      status = os.stat(entry.path)
      file = [
        dataclasses.asdict(entry), status.st_size, status.st_mtime_ns,
        file_digest(pathlib.Path(entry.mask_path)) if entry.mask_path else "",
      ]  # fmt: skip
    found = self.context.predictions
    settings = {
      k: v for k, v in self.context.settings.items() if k not in _OF_COHORT
    }
    data = {key: self.data[key] for key in ("default_mpp", "reader")}
    data["has_annotations"] = bool(self.annotations)
    drawn = self.annotations.get(name)
    if drawn is not None:
      groups = [list(self.data[key]) for key in _GROUPS]
      data["annotations"] = [drawn.name, file_digest(drawn), groups]
    return digest_of(
      [
        VERSION, _row(row), found.head, found.classes, found.is_crossed,
        file_digest(path) if path else "", self.limit if path else 0.0, file,
        self.missing.get(name, ""), settings, data,
      ]
    )  # fmt: skip

  def draw(self, rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Draws slides, some at once; yields each with what is wrong with it."""
    # Parallel over slides; OpenCV's own threads would only get in the way.
    cv2.setNumThreads(1)
    with concurrent.futures.ThreadPoolExecutor(self.data["threads"]) as pool:
      yield from zip(rows, pool.map(self._draw, rows), strict=True)

  def _draw(self, row: Row) -> str:
    name = row.slide_id
    folder = self.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    tile_map, problem = None, ""
    if name in self.maps:
      try:
        tile_map = TileMap.load(self.maps[name])
      except ValueError as error:
        problem = str(error)
    drawn = slide_files.make(
      folder,
      tile_map,
      self.entries.get(name),
      self.missing.get(name, ""),
      self.annotations.get(name),
      self._title(row),
      self.limit,
      self.data,
      self.context.settings,
    )
    if problem:
      drawn = dataclasses.replace(drawn, notes=(*drawn.notes, problem))
    for picture, file in zip(self._small(drawn), _CARDS, strict=True):
      if picture is not None:
        slide_files.write_jpeg(folder / file, picture, 80)
    text = slide_page.build(row, drawn, self.context)
    atomic.write_atomic(folder / "index.html", text)
    wrong = []
    # Without slides nobody expects pictures of them.
    if drawn.slide_error and self.data["slides"]:
      wrong.append(drawn.slide_error)
    return " ".join([*wrong, *drawn.notes])

  def _title(self, row: Row) -> str:
    name, value = report_data.headline(self.context.predictions, row)
    label = f", label {row.label}" if row.label else ""
    return f"{row.slide_id}: {name} {value:.3f}{label}"

  def _small(self, drawn: slide_files.Drawn):
    """Slide and map for the cohort's page; None where there is none."""
    side = self.context.settings["card_px"]
    slide = drawn.slide if drawn.has_picture else None
    overlay = drawn.overlays.get("probability")
    return (
      None if slide is None else figures.fit(slide, side),
      None if overlay is None else figures.fit(overlay, side),
    )

  def card(self, row: Row, problems: Mapping[str, str]) -> cohort_page.Card:
    """What the cohort's page shows of a slide."""
    folder = self.folder(row.slide_id)
    pictures = [_read(folder / file) for file in _CARDS]
    note = problems.get(row.slide_id, "")
    return cohort_page.Card(row, *pictures, note)


def _row(row: Row) -> dict[str, Any]:
  # NaN has no JSON, and differs from itself.
  spread = {k: repr(v) for k, v in row.spread.items()}
  return {**dataclasses.asdict(row), "spread": spread}


def _read(path: pathlib.Path) -> np.ndarray | None:
  if not path.is_file():
    return None
  return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def clean(folder: pathlib.Path) -> None:
  """Removes what an earlier run wrote, and nothing that others put there.

  The page goes first: without it the slide is drawn again.
  """
  names = (*slide_files.TABLES, *slide_files.MAP_FILES.values(), *_CARDS)
  for path in (folder / name for name in ("index.html", *names)):
    path.unlink(missing_ok=True)
  for kind in slide_files.ENDS:
    for path in (folder / "tiles").glob(f"{kind}_*_tile_*.jpg"):
      path.unlink()
