"""Heatmaps as finished pictures: title, colour bar with numbers, scale bar.

The colour bar is darkened by the grey of this slide's tissue, as the map is, so
that the two can be read against each other.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from data_prep.wsi.qc import caption_font
from wsiseq_jax.maps import heatmaps
from wsiseq_jax.maps.heatmaps import Canvas

_INK, _SOFT = (20, 20, 20), (95, 95, 95)
# Light lines with a dark rim: regions of a model are dark with a light one.
ANNOTATION_INK = (0, 224, 240)


def figure(
  thumbnail: UInt8[np.ndarray, "h w 3"],
  canvas: Canvas,
  title: str,
  *,
  tissue: Bool[np.ndarray, "h2 w2"] | None = None,
  alpha: float | int = heatmaps.ALPHA,
  outlines: Sequence[Float[np.ndarray, "_ 2"]] = (),
  annotations: Sequence[Float[np.ndarray, "_ 2"]] = (),
  beside: bool = True,
) -> UInt8[np.ndarray, "h3 w3 3"]:
  """The slide and its map with title, scale bar and colour bar.

  Args:
    thumbnail: as for `overlay`, as are `canvas`, `tissue` and `alpha`.
    canvas: the map.
    title: one line above the picture, e.g. slide, probability, label.
    tissue: True in tissue.
    alpha: strength of the colour.
    outlines: rings of x, y in level-0 pixels drawn on top: regions.
    annotations: rings that people drew, on the slide and on the map; a line
      below says which is which.
    beside: the slide without colours beside (or above) the map.

  Returns:
    RGB picture.
  """
  picture = heatmaps.overlay(thumbnail, canvas, tissue, alpha)
  base = heatmaps.resized(thumbnail, canvas.values.shape, "thumbnail")
  grey = heatmaps.grey_of(base)[heatmaps.covered(canvas, tissue)]
  middle = np.median(grey) if len(grey) else 255.0
  _outline(picture, outlines, canvas, (255, 255, 255), _INK)
  for one in (base, picture):
    _outline(one, annotations, canvas, _INK, ANNOTATION_INK)
  if beside:
    gap = max(4, max(base.shape) // 100)
    tall = base.shape[0] >= base.shape[1]
    shape = (base.shape[0], gap, 3) if tall else (gap, base.shape[1], 3)
    parts = [base, np.full(shape, 255, np.uint8), picture]
    picture = np.concatenate(parts, axis=1 if tall else 0)
  low, high = canvas.limits
  values = np.linspace(low, high, 256)
  ramp = heatmaps.over_grey(
    heatmaps.colours(values, canvas.kind, canvas.limits),
    np.full((256, 1), middle),
    alpha,
  )
  key = ""
  if annotations:
    key = "Light outlines: annotations. Dark outlines: regions of the model."
  return _framed(picture, canvas, title, ramp, base.shape[1], key)


def _outline(picture, rings, canvas, rim, ink) -> None:
  """Draws rings of level-0 pixels into a picture as large as the map."""
  thick = max(1, round(max(canvas.values.shape) / 500))
  for ring in rings:
    points = np.asarray(ring, np.float64) / canvas.downsample
    points = np.rint(points * 16).astype(np.int32)
    for width, colour in ((thick + 2, rim), (thick, ink)):
      cv2.polylines(picture, [points], True, colour, width, cv2.LINE_AA, 4)


def _framed(picture, canvas, title, ramp, slide_px, key) -> np.ndarray:
  """A picture with a title above it, colour bar and scale bar below."""
  width = max(picture.shape[1], 420)
  size = int(np.clip(width / 48, 12, 24))
  head, foot = round(2.4 * size), round((9 if key else 7) * size)
  page = Image.new("RGB", (width, head + picture.shape[0] + foot), "white")
  page.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, head))
  pen = ImageDraw.Draw(page)
  _line(pen, (size, head / 2), title, size, width - 2 * size, "lm")
  top = head + picture.shape[0] + size
  length = min(width - 4 * size, 26 * size)
  left = (width - length) // 2
  bar = cv2.resize(ramp[None], (length, size), interpolation=cv2.INTER_LINEAR)
  page.paste(Image.fromarray(bar), (left, top))
  pen.rectangle((left, top, left + length - 1, top + size), outline=_SOFT)
  font = caption_font(size)
  for share in (0, 0.25, 0.5, 0.75, 1):
    x = left + share * (length - 1)
    pen.line((x, top + size, x, top + 1.25 * size), fill=_SOFT)
    at = (x, top + 1.4 * size)
    pen.text(at, _tick(canvas, share), fill=_INK, font=font, anchor="ma")
  at = (width / 2, top + 3.4 * size)
  _line(pen, at, canvas.label, size, width - 2 * size, "mm")
  _scale_bar(pen, (width / 2, top + 5.1 * size), size, slide_px, canvas)
  if key:
    at = (width / 2, top + 7 * size)
    _line(pen, at, key, size, width - 2 * size, "mm")
  return np.asarray(page)


def _scale_bar(pen, middle, size, slide_px, canvas) -> None:
  """A bar of a round length, about a fifth of the slide."""
  um = slide_px * canvas.um_per_px / 5
  ten = 10.0 ** np.floor(np.log10(um))
  um = max(m * ten for m in (1, 2, 5) if m * ten <= um)
  text = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
  font, px = caption_font(size), um / canvas.um_per_px
  start = middle[0] - (px + size / 2 + pen.textlength(text, font)) / 2
  y, end = middle[1], start + px
  pen.line((start, y, end, y), fill=_INK, width=max(2, size // 5))
  pen.text((end + size / 2, y), text, fill=_INK, font=font, anchor="lm")


def _tick(canvas: Canvas, share: float | int) -> str:
  """The number at a place of the colour bar."""
  low, high = canvas.limits
  value = low + share * (high - low)
  if canvas.kind == "percentile":
    return f"{100 * value:.0f} %"
  if canvas.kind == "probability":
    return f"{value:g}"
  # What is stronger than the cohort's range has the colour of the end.
  sign = {0: "≤ ", 1: "≥ "}.get(share, "")
  return f"{sign}{value:+.3g}".replace("-", "\u2212") if value else "0"


def _line(pen, at, text, size, room, anchor) -> None:
  """Writes one line, smaller if it is too long for its room."""
  font = caption_font(size)
  while pen.textlength(text, font) > room and font.size > 8:
    font = caption_font(font.size - 1)
  pen.text(at, text, fill=_INK, font=font, anchor=anchor)
