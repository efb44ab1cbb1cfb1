"""Maps of what a model says of each place, as pictures over the slide.

A map is drawn from the very tiles that made the prediction, so that it cannot
disagree with it. Three kinds, which differ in what may be compared:

- `probability`: what each tile says by itself, on a fixed scale from 0 to 1.
  The same colour means the same on every slide of one model.
- `contribution`: the signed share of each tile in the slide's output: red for
  the class, blue against it. One symmetric range for a whole cohort
  (`cohort_range`) makes slides comparable.
- `percentile`: the rank of each tile's attention among the tiles of its own
  slide. Half of every slide is above 0.5, tumour or not: for display only.

Colours lie on tissue alone, and are darkened by a pale grey copy of the slide:
nuclei and glands stay visible, and the stain does not mix into the colours.
Tissue that no tile covers keeps its stain: there the model has not looked.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw
from scipy import stats

from data_prep.wsi import qc
from wsiseq_jax.maps import detections
from wsiseq_jax.maps.tile_map import TileMap

KINDS = ("probability", "contribution", "percentile")
Number = int | float | np.integer | np.floating
Picture = UInt8[np.ndarray, "h w 3"]
Ring = Float[np.ndarray, "_ 2"]
# Colour map, and the part of it that is used: the dark ends hide the tissue.
# Probability has no blue, so that it is not taken for a contribution.
_COLOURS = {
  "probability": ("YlOrRd", 0.02, 0.92),
  "contribution": ("RdBu_r", 0.08, 0.92),
  "percentile": ("viridis", 0.0, 1.0),
}
# Contrast of the grey tissue below the colours, and their strength.
_CONTRAST, ALPHA = 0.5, 0.85
_INK, _SOFT = (20, 20, 20), (95, 95, 95)
# Light lines with a dark rim: regions of a model are dark with a light one.
ANNOTATION_INK = (0, 224, 240)


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
  """A map drawn on the slide's pixels."""

  # f32 [h w]; NaN where no tile is. Pixel (0, 0) starts at level-0 (0, 0).
  values: Float[np.ndarray, "h w"]
  downsample: float  # level-0 pixels per pixel
  um_per_px: float  # um per pixel
  kind: str  # one of `KINDS`
  limits: tuple[float, float]  # values at the two ends of the colours
  label: str  # what the values are, for the colour bar


def draw(
  tile_map: TileMap,
  kind: str = "probability",
  *,
  um_per_px: Number,
  smooth_um: Number = 0.0,
  limit: Number | None = None,
) -> Canvas:
  """Draws the map of a slide."""
  if kind not in KINDS:
    raise ValueError(f"kind={kind!r}: choose {KINDS}")
  mpp = detections.level0_mpp(tile_map)
  if not um_per_px > 0:
    raise ValueError(f"um_per_px={um_per_px}: must be positive")
  if (kind == "contribution") != (limit is not None):
    raise ValueError(
      f"limit={limit} with kind={kind!r}: contribution maps need the range of "
      "their cohort (`cohort_range`), others have none"
    )
  limits, label = (0.0, 1.0), f"probability of {tile_map.class_name} by tile"
  if kind == "percentile":
    scores = percentiles(np.asarray(tile_map.attention, np.float64))
    label = "rank of attention in this slide · DISPLAY ONLY: all have 0–100 %"
  else:
    scores = np.asarray(getattr(tile_map, kind), np.float64)
  if kind == "contribution":
    if not limit > 0:
      raise ValueError(f"limit={limit}: must be positive")
    limits = (-float(limit), float(limit))
    label = f"contribution to {tile_map.class_name}: red for, blue against"
  downsample = float(um_per_px / mpp)
  values = spread(tile_map, scores, downsample)
  if smooth_um:
    values = _smooth(values, smooth_um / um_per_px)
    label += f" · smoothed over {smooth_um:g} µm"
  return Canvas(values, downsample, float(um_per_px), kind, limits, label)


def spread(
  tile_map: TileMap, scores: Float[np.ndarray, " m"], downsample: Number
) -> Float[np.ndarray, "h w"]:
  """Means of the scores of the tiles that cover each pixel's centre.

  NaN where no tile is; the last row and column may reach over the edge.
  """
  if tile_map.level0_size is None:
    raise ValueError(
      f"slide {tile_map.slide_id!r}: its size is unknown, a map cannot be drawn"
    )
  tiles = tile_map.in_level0()
  if tiles.tile_size < downsample:
    raise ValueError(
      f"slide {tile_map.slide_id!r}: a pixel of {downsample:g} level-0 px is "
      f"larger than a tile ({tiles.tile_size:g}): choose a smaller um_per_px"
    )
  width, height = (int(np.ceil(n / downsample)) for n in tiles.level0_size)
  ends = np.array([width, height])
  start = np.ceil(np.asarray(tiles.xy) / downsample - 0.5)
  stop = np.ceil((np.asarray(tiles.xy) + tiles.tile_size) / downsample - 0.5)
  left, top = np.clip(start, 0, ends).astype(int).T
  right, bottom = np.clip(stop, 0, ends).astype(int).T
  # Corners of the tiles, summed up along both axes, fill their insides.
  grid = np.zeros((2, height + 1, width + 1))
  corners = [(top, left, 1), (top, right, -1)]
  corners += [(bottom, left, -1), (bottom, right, 1)]
  for y, x, sign in corners:
    np.add.at(grid[0], (y, x), sign * np.asarray(scores, np.float64))
    np.add.at(grid[1], (y, x), sign)
  total, count = grid.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]
  count = np.rint(count)
  values = np.full((height, width), np.nan, np.float32)
  np.divide(total, count, out=values, where=count > 0, casting="same_kind")
  return values


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
  """Gaussian mean over the covered pixels; NaN stays NaN."""
  covered = np.isfinite(values)
  blur = [
    cv2.GaussianBlur(v, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    for v in (np.where(covered, values, 0), covered.astype(np.float32))
  ]
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.where(covered, blur[0] / blur[1], np.nan).astype(np.float32)


def percentiles(scores: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
  """Rank of each score among all: share below it plus half of its equals.

  Example:
    >>> percentiles(np.array([3.0, 1.0, 1.0, 9.0])).tolist()
    [0.625, 0.25, 0.25, 0.875]
  """
  return (stats.rankdata(scores) - 0.5) / max(len(scores), 1)


def cohort_range(
  contributions: Sequence[Float[np.ndarray, " _"]],
) -> float:
  """The value of the strongest colour in the contribution maps of a cohort.

  The quantile 0.9 over slides of their strongest tile: the contributions of a
  slide add up to its output, and a slide of ten tiles must not set the scale
  for slides of ten thousand. What is stronger has the colour of the end.

  Example:
    >>> cohort_range([np.array([0.5, -2.0]), np.array([1.0])])
    1.9
  """
  strongest = [np.abs(c).max() for c in contributions if len(c)]
  if not strongest:
    raise ValueError("no slide has a tile: there is no range of contributions")
  return float(np.quantile(strongest, 0.9)) or 1.0


def colours(
  values: Float[np.ndarray, "*shape"],
  kind: str,
  limits: tuple[Number, Number] = (0.0, 1.0),
) -> UInt8[np.ndarray, "*shape 3"]:
  """Colours of values; beyond the limits those of the ends, NaN is white.

  Example:
    >>> colours(np.array([-1.0, 0.0]), "contribution", (-1, 1)).tolist()
    [[26, 90, 155], [247, 246, 246]]
  """
  low, high = limits
  scaled = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
  name, first, last = _COLOURS[kind]
  at = first + (last - first) * scaled
  found = np.asarray(matplotlib.colormaps[name](at, bytes=True), np.uint8)
  return np.where(np.isnan(scaled)[..., None], np.uint8(255), found[..., :3])


def overlay(
  thumbnail: Picture,
  canvas: Canvas,
  tissue: Bool[np.ndarray, "h2 w2"] | None = None,
) -> UInt8[np.ndarray, "h3 w3 3"]:
  """Paints a map over the slide, as large as the map."""
  base = resized(thumbnail, canvas.values.shape, "thumbnail")
  colour = colours(canvas.values, canvas.kind, canvas.limits)
  mixed = over_grey(colour, grey_of(base)[..., None])
  return np.where(covered(canvas, tissue)[..., None], mixed, base)


def over_grey(
  colour: UInt8[np.ndarray, "*shape 3"], grey: Shaped[np.ndarray, "*#shape 1"]
) -> UInt8[np.ndarray, "*shape 3"]:
  """Colours darkened by tissue of half its contrast.

  `(255 - alpha (255 - colour)) (1 - (1 - grey / 255) / 2)`

  Example:
    >>> over_grey(np.uint8([[155, 55, 55]]), np.array([[155]])).tolist()
    [[137, 68, 68]]
  """
  pale = 1 - _CONTRAST * (1 - grey / 255)
  return np.rint((255 - ALPHA * (255.0 - colour)) * pale).astype(np.uint8)


def grey_of(picture: Picture) -> UInt8[np.ndarray, "h w"]:
  """Grey levels of an RGB picture."""
  return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def tissue_grey(
  base: Picture, canvas: Canvas, tissue: Bool[np.ndarray, "h2 w2"] | None
) -> float:
  """Median grey level below the colours of a map as large as `base`."""
  grey = grey_of(base)[covered(canvas, tissue)]
  return float(np.median(grey)) if len(grey) else 255.0


def ramp(
  kind: str, limits: tuple[Number, Number], grey: Number, steps: int
) -> UInt8[np.ndarray, "n 3"]:
  """The colours of a kind of map from end to end, on tissue of a grey level."""
  shades = colours(np.linspace(*limits, steps), kind, limits)
  return over_grey(shades, np.full((steps, 1), float(grey)))


def ticks(kind: str, limits: tuple[Number, Number]) -> list[str]:
  """Numbers at five places of the colour bar, from end to end."""
  values = np.linspace(*limits, 5).tolist()
  if kind == "percentile":
    return [f"{100 * value:.0f} %" for value in values]
  if kind == "probability":
    return [f"{value:g}" for value in values]
  # What is stronger than the cohort's range has the colour of the end.
  texts = [f"{v:+.3g}".replace("-", "\u2212") if v else "0" for v in values]
  return [f"≤ {texts[0]}", *texts[1:-1], f"≥ {texts[-1]}"]


def covered(
  canvas: Canvas, tissue: Bool[np.ndarray, "h2 w2"] | None
) -> Bool[np.ndarray, "h w"]:
  """Where a map has colour: on tiles, and in tissue if that is given."""
  found = np.isfinite(canvas.values)
  if tissue is not None:
    shape = canvas.values.shape
    found &= resized(tissue.astype(np.uint8) * 255, shape, "tissue") >= 128
  return found


def resized(
  picture: UInt8[np.ndarray, "h w *c"], shape: tuple[int, int], name: str
) -> UInt8[np.ndarray, "h2 w2 *c"]:
  """A picture of the whole slide in another size, averaged where it shrinks."""
  height, width = shape
  slack = 1 + 0.01 * max(shape) + max(shape) / min(picture.shape[:2])
  if abs(picture.shape[1] * height / picture.shape[0] - width) > slack:
    raise ValueError(
      f"{name} of {picture.shape[1]}x{picture.shape[0]} px does not have the "
      f"shape of the slide ({width}x{height} px as a map)"
    )
  shrink = picture.shape[1] >= width
  how = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
  return cv2.resize(picture, (width, height), interpolation=how)


def figure(
  thumbnail: Picture,
  canvas: Canvas,
  title: str,
  *,
  tissue: Bool[np.ndarray, "h2 w2"] | None = None,
  outlines: Sequence[Ring] = (),
  annotations: Sequence[Ring] = (),
) -> UInt8[np.ndarray, "h3 w3 3"]:
  """The slide beside (or above) its map, title, scale bar and colour bar."""
  picture = overlay(thumbnail, canvas, tissue)
  base = resized(thumbnail, canvas.values.shape, "thumbnail")
  shades = ramp(
    canvas.kind, canvas.limits, tissue_grey(base, canvas, tissue), 256
  )
  _outline(picture, outlines, canvas, (255, 255, 255), _INK)
  for one in (base, picture):
    _outline(one, annotations, canvas, _INK, ANNOTATION_INK)
  gap = max(4, max(base.shape) // 100)
  tall = base.shape[0] >= base.shape[1]
  shape = (base.shape[0], gap, 3) if tall else (gap, base.shape[1], 3)
  both = np.concatenate(
    [base, np.full(shape, 255, np.uint8), picture], axis=1 if tall else 0
  )
  key = ""
  if annotations:
    key = "Light outlines: annotations. Dark outlines: regions of the model."
  return _framed(both, canvas, title, shades, base.shape[1], key)


def _outline(picture, rings, canvas, rim, ink) -> None:
  """Draws rings of level-0 pixels into a picture as large as the map."""
  thick = max(1, round(max(canvas.values.shape) / 500))
  for ring in rings:
    points = np.asarray(ring, np.float64) / canvas.downsample
    points = np.rint(points * 16).astype(np.int32)
    for width, colour in ((thick + 2, rim), (thick, ink)):
      cv2.polylines(picture, [points], True, colour, width, cv2.LINE_AA, 4)


def _framed(picture, canvas, title, shades, slide_px, key) -> np.ndarray:
  """A picture with a title above it, colour bar and scale bar below."""
  width = max(picture.shape[1], 420)
  size = int(np.clip(width / 48, 12, 24))
  head, foot = round(2.4 * size), round((9 if key else 7) * size)
  page = Image.new("RGB", (width, head + picture.shape[0] + foot), "white")
  page.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, head))
  pen = ImageDraw.Draw(page)
  room, middle = width - 2 * size, width / 2
  qc.text_line(pen, (size, head / 2), title, size, room, "lm")
  top = head + picture.shape[0] + size
  length = min(width - 4 * size, 26 * size)
  left = (width - length) // 2
  bar = cv2.resize(shades[None], (length, size), interpolation=cv2.INTER_LINEAR)
  page.paste(Image.fromarray(bar), (left, top))
  pen.rectangle((left, top, left + length - 1, top + size), outline=_SOFT)
  texts = ticks(canvas.kind, canvas.limits)
  for share, text in zip(np.linspace(0, 1, 5).tolist(), texts, strict=True):
    x = left + share * (length - 1)
    pen.line((x, top + size, x, top + 1.25 * size), fill=_SOFT)
    qc.text_line(pen, (x, top + 1.4 * size), text, size, room, "ma")
  at = (middle, top + 3.4 * size)
  qc.text_line(pen, at, canvas.label, size, room, "mm")
  right = middle + slide_px / 8
  y = top + 5.1 * size
  qc.scale_bar(pen, right, y, slide_px, canvas.um_per_px, size)
  if key:
    qc.text_line(pen, (middle, top + 7 * size), key, size, room, "mm")
  return np.asarray(page)
