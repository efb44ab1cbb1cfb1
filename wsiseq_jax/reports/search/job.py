"""The job `search`: asks an index, and shows what it found.

See `configs/search.py`. A picture that cannot be read is a row of errors.csv;
the others are asked with. A hit whose slide cannot be opened has no picture.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from ml_collections import ConfigDict

from data_prep.files import errors, tables
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi import pictures
from data_prep.wsi.slides import Slide
from wsiseq_jax import launch
from wsiseq_jax.reports import figures, page
from wsiseq_jax.search import index, query, settings
from wsiseq_jax.search.query import Query, Searcher
from wsiseq_jax.search.settings import QueryBlock, SearchSettings

Picture = UInt8[np.ndarray, "h w 3"]
# Of 16 bits; microscopes write 10, 12 or 14 into as many.
_LEAST_BRIGHTEST = 1 << 14
# A hit is shown with so much around it, in sides.
_CONTEXT = 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
  """A query with what it looks like."""

  query: Query
  names: tuple[str, ...]  # of its pictures, regions or rows
  shown: tuple[Picture | None, ...]  # a picture each; None = there is none


def run(config: ConfigDict) -> None:
  """The job; ends the program with exit code 3 if a picture was left out.

  Args:
    config: see `configs/search.py`.

  Raises:
    ValueError: a bad config, no index, or nothing to ask with.
    SystemExit: some pictures could not be read.
  """
  wanted = settings.read(config)
  if not launch.is_main():
    return
  bad = search(wanted)
  if bad:
    launch.log(f"search: {len(bad)} pictures were left out, see errors.csv")
    sys.exit(3)


def search(wanted: SearchSettings) -> list[SlideError]:
  """Asks, and writes hits.csv, index.html and errors.csv."""
  out = pathlib.Path(wanted.workdir)
  folder = wanted.query.index or wanted.workdir
  searcher = Searcher(folder, wanted.batch_size)
  asked, bad = _ask(searcher, wanted.query)
  hits = searcher.search(
    asked.query,
    wanted.query.k,
    wanted.query.where.given(),
    wanted.query.exclude,
    wanted.query.apart,
    wanted.query.exact,
  )
  out.mkdir(parents=True, exist_ok=True)
  tables.write(
    out / "hits.csv", list(hits.columns), hits.to_dict(orient="records")
  )
  errors.write(out / "errors.csv", bad)
  path = out / "index.html"
  _write_page(path, searcher, asked, hits, wanted.query, bad)
  launch.log(f"search: {len(hits)} hits; wrote {path}")
  return bad


# What is asked with.


def _ask(
  searcher: Searcher, block: QueryBlock
) -> tuple[Asked, list[SlideError]]:
  if block.rows:
    found = searcher.rows_query(block.rows, block.pool)
    about = searcher.index.rows(block.rows)
    names = tuple(f"row {row}, {s}" for row, s in _pairs(about))
    shown = _of_rows(about, block.thumbnail_px)
    return Asked(found, names, shown), []
  if block.slide:
    found, picture = searcher.region_query(block.slide, block.region)
    x, y, w, h = block.region
    name = (
      f"{pathlib.Path(block.slide).name}, {w:g} x {h:g} px at ({x:g}, {y:g})"
    )
    return Asked(found, (name,), (_weighed(picture, found, 0),)), []
  names, read, bad = [], [], []
  for path in block.images:
    try:
      read.append(_read(path))
      names.append(pathlib.Path(path).name)
    except Exception as error:  # whatever a stranger's file makes a library do
      bad.append(as_slide_error(error, path, "query"))
  if not read:
    name = bad[0].slide
    text = bad[0].message.removeprefix(f"{name}: ")
    raise ValueError(f"config.query.images: {name}: {text}")
  found = searcher.images_query(read, block.mpp or None, block.pool)
  shown = [_weighed(picture, found, i) for i, picture in enumerate(read)]
  return Asked(found, tuple(names), tuple(shown)), bad


def _pairs(about: pd.DataFrame) -> list[tuple[int, str]]:
  return list(zip(about["row"], about["slide_id"], strict=True))


def _read(path: str) -> Picture:
  """A picture file as uint8 RGB; transparent parts are white."""
  place = pathlib.Path(path).expanduser()
  if not place.is_file():
    raise SlideError("no such file", "query", "missing_file", path)
  height, width = pictures.size(place)
  low, high = query.SIDES
  if min(height, width) < low or max(height, width) > high:
    raise SlideError(
      f"{width} x {height} pixels: sides must have {low} to {high}",
      "query",
      "picture_size",
      path,
    )
  pixels = pictures.read(place)
  if pixels.dtype == np.uint16:
    brightest = int(pixels.max())
    if brightest < _LEAST_BRIGHTEST:
      raise SlideError(
        f"its brightest value is {brightest} of 65535, as if of fewer than 16 "
        "bits: save it with 8",
        "query",
        "bit_depth",
        path,
      )
    pixels = (pixels >> 8).astype(np.uint8)
  if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
    raise SlideError(
      f"pixels of {pixels.dtype} with {pixels.shape[2]} channels, want grey or "
      "RGB of 8 or 16 bits",
      "query",
      "no_picture",
      path,
    )
  return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _weighed(picture: Picture, found: Query, number: int) -> Picture:
  """The picture, paler where tiles count less, or not at all."""
  mine = np.flatnonzero(np.asarray(found.picture) == number)
  weight = np.asarray(found.weights)[mine]
  paint = np.full(picture.shape[:2], 0.25, np.float32)
  for box, share in zip(
    np.rint(np.asarray(found.boxes)[mine]).astype(int),
    weight / weight.max(),
    strict=True,
  ):
    x, y, w, h = box
    paint[max(y, 0) : y + h, max(x, 0) : x + w] = 0.25 + 0.75 * share
  shown = picture * paint[..., None] + 255 * (1 - paint[..., None])
  return shown.astype(np.uint8)


# Hits.


def _of_rows(about: pd.DataFrame, side: int) -> tuple[Picture | None, ...]:
  """A picture of each row with what is around it; a slide is opened once."""
  found: list[Picture | None] = [None] * len(about)
  about = about.reset_index(drop=True)
  for path, rows in about.groupby("path"):
    if not path:
      continue
    try:
      mpp = rows["mpp"].iloc[0]
      with Slide.open(path, None if np.isnan(mpp) else float(mpp)) as slide:
        for i, row in rows.iterrows():
          found[i] = _cut(slide, row, side)
    except SlideError as error:
      launch.log(f"{path}: {error.message}")
  return tuple(found)


def _cut(slide: Slide, row: pd.Series, side: int) -> Picture | None:
  size = np.array([row["w0"], row["h0"]], np.float64)
  if not (np.isfinite(size).all() and size.min() > 0):
    return None
  centre = np.array([row["x0"], row["y0"]]) + size / 2
  longest = size.max() * _CONTEXT
  # No finer than the slide itself.
  side = min(side, max(16, int(longest)))
  try:
    picture = slide.read_region(
      centre, (side, side), slide.mpp * longest / side
    )
  except SlideError as error:
    launch.log(f"{row['path']}: {error.message}")
    return None
  half = size / longest * side / 2
  low, high = side / 2 - half, side / 2 + half
  corners = [tuple(int(round(v)) for v in corner) for corner in (low, high)]
  picture = np.ascontiguousarray(picture)
  for width, colour in ((3, (255, 255, 255)), (1, (20, 20, 26))):
    cv2.rectangle(picture, *corners, colour, width, cv2.LINE_AA)
  return picture


# The page.


def _write_page(
  path: pathlib.Path,
  searcher: Searcher,
  asked: Asked,
  hits: pd.DataFrame,
  block: QueryBlock,
  bad: Sequence[SlideError],
) -> None:
  about = searcher.index.rows(hits["row"].to_numpy(np.int64))
  shown = _of_rows(about, block.thumbnail_px)
  groups = []
  for number in range(len(asked.query.vectors)):
    mine = np.flatnonzero(hits["query"] == number)
    groups.append(
      {
        "name": asked.names[number] if len(asked.query.vectors) > 1 else "",
        "hits": [_hit(hits.iloc[i], shown[i]) for i in mine],
        "slides": index.by_slide(hits.iloc[mine]).to_dict(orient="records"),
      }
    )
  inside = searcher.index
  page.write(
    path,
    "search.html.j2",
    pictures=[
      {"name": name, "image": _image(picture, name)}
      for name, picture in zip(asked.names, asked.shown, strict=True)
    ],
    groups=groups,
    facts=[
      ("rows of the index", f"{len(inside):,}"),
      ("slides", f"{len(inside.slides):,}"),
      ("patients", f"{inside.slides['patient_id'].nunique():,}"),
      ("tiles asked with", len(asked.query.weights) or "–"),
      ("left out", {"none": "nothing"}.get(
        block.exclude, f"the query's {block.exclude}")),
      ("filters", ", ".join(
        f"{k}: {' or '.join(map(str, v))}"
        for k, v in block.where.given().items()
      ) or "none"),
    ],
    is_weighed=bool(inside.settings["mil_model"]),
    errors=[(error.slide, error.message) for error in bad],
  )  # fmt: skip


def _hit(row: pd.Series, picture: Picture | None) -> dict[str, Any]:
  name = f"hit {row['rank'] + 1}: {row['slide_id']}"
  return {**row.to_dict(), "image": _image(picture, name)}


def _image(picture: Picture | None, name: str) -> page.Image | None:
  if picture is None:
    return None
  return page.embedded(figures.fit(picture, 640), name)
