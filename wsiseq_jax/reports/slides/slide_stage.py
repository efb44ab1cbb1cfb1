"""A slide or its map with outlines, marks, scale bar and colours over it.

Only the pixels are a picture. Outlines are lines and marks are text, which stay
thin and legible however small the screen; colours and scale bar have words of
the page's own size.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from wsiseq_jax.maps import heatmaps
from wsiseq_jax.maps.heatmaps import ANNOTATION_INK
from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.slides.slide_files import Drawn

STYLE = """
.stage { position: relative; background: #fff; border-radius: 4px; }
.stage img { width: 100%; border-radius: 4px; }
.stage svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.pin { position: absolute; transform: translate(-50%, -50%); color: #fff;
  background: rgba(20, 20, 26, .82); border-radius: 9px; padding: 0 6px;
  font-size: .75rem; line-height: 18px; font-weight: 600; }
.pin.tile { background: #fff; color: #14141a; border-radius: 3px;
  outline: 2px solid #14141a; line-height: 15px; padding: 0 4px; }
.bar { display: flex; align-items: center; gap: 8px; font-size: .8rem;
  margin: 6px 0; }
.bar i { display: block; height: 4px; background: currentColor; }
.bar span { white-space: nowrap; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: .85rem;
  margin: 0 0 6px; }
.keys span { white-space: nowrap; } .keys svg { display: inline-block;
  width: 30px; height: 10px; vertical-align: middle; margin-right: 4px; }
.ramp { max-width: 420px; font-size: .8rem; margin: 4px 0; }
.ramp i { display: block; height: 14px; border-radius: 3px;
  border: 1px solid var(--line); }
.ramp div { display: flex; justify-content: space-between;
  font-variant-numeric: tabular-nums; }
"""
# Regions that are marked on the pictures; all are in the table.
_PINS = 12
# Rim and ink of lines; light and dark are told apart by everybody.
_OF_MODEL = ("#fff", "#14141a")
_OF_PEOPLE = ("#14141a", "rgb({}, {}, {})".format(*ANNOTATION_INK))
_DASHES = 'stroke-dasharray="7 5" '
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def stage(
  drawn: Drawn, kind: str | None, name: str, tiles: bool = False
) -> str:
  """A picture of the slide or a map with outlines and marks over it.

  Args:
    drawn: what was made of the slide.
    kind: which map; None is the slide itself.
    name: of the slide.
    tiles: mark the highest tiles, too.

  Returns:
    HTML; outlines and marks stay thin and legible at any size.
  """
  picture = drawn.slide if kind is None else drawn.overlays[kind]
  # Numbers and outlines lie over it in shares of its size.
  small = figures.fit(picture, 1200)
  height, width = picture.shape[:2]
  factor = next(iter(drawn.canvases.values())).downsample
  paths, pins = [], []
  for number, region in enumerate(drawn.regions, 1):
    paths.append(_path(region.rings, factor))
    if number <= _PINS:
      x, y = _inside(region.rings[0]) / factor
      pins.append(_pin(x / width, y / height, number))
  if tiles:
    half = drawn.tile_map.in_level0().tile_size / 2
    for letter, tile in zip(LETTERS, drawn.highest, strict=False):
      x, y = (np.asarray(tile.xy) + half) / factor
      pins.append(_pin(x / width, y / height, letter, "tile"))
  lines = _lines(" ".join(paths), *_OF_MODEL)
  if drawn.annotated is not None:
    for rings, dashes in (
      (drawn.annotated.rings, ""),
      (drawn.annotated.cut_out, _DASHES),
    ):
      lines += _lines(_path(rings, factor), *_OF_PEOPLE, dashes)
  what = "slide" if kind is None else f"{kind} map of"
  return (
    f'<div class="stage">{page.image(small, f"{what} {name}", 76)}'
    f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
    f'aria-hidden="true">{lines}</svg>{"".join(pins)}</div>'
  )


def _path(rings: Sequence[np.ndarray], factor: float) -> str:
  """Rings of level-0 pixels as a path over the picture."""
  thin = [_thinned(np.asarray(ring) / factor) for ring in rings]
  return " ".join(f"M{' '.join(_text(p) for p in ring)}Z" for ring in thin)


def _lines(path: str, rim: str, ink: str, dashes: str = "") -> str:
  """A path as thin lines with a rim."""
  if not path:
    return ""
  return "".join(
    f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{wide}" '
    f'{dashes}vector-effect="non-scaling-stroke"/>'
    for colour, wide in ((rim, 3.5), (ink, 1.6))
  )


def keys(drawn: Drawn) -> str:
  """Which lines are whose, where people drew some; '' otherwise."""
  if drawn.annotated is None:
    return ""
  shown = [
    ("regions of the model", _OF_MODEL, ""),
    ("annotation", _OF_PEOPLE, ""),
  ]
  if drawn.annotated.cut_out:
    shown.append(("cut out of the annotation", _OF_PEOPLE, _DASHES))
  items = "".join(
    f'<span><svg viewBox="0 0 30 10" aria-hidden="true">'
    f"{_lines('M1,5 29,5', *inks, dashes)}</svg>{text}</span>"
    for text, inks, dashes in shown
  )
  return f'<div class="keys">{items}</div>'


def _pin(x: float, y: float, text: object, css: str = "") -> str:
  # Marks at the edge would make the page wider than the screen.
  x, y = (min(max(float(v), 0.02), 0.98) for v in (x, y))
  return (
    f'<span class="pin {css}" style="left:{100 * x:.2f}%;top:{100 * y:.2f}%">'
    f"{text}</span>"
  )


def _text(point: np.ndarray) -> str:
  return f"{point[0]:.1f},{point[1]:.1f}"


def _thinned(ring: np.ndarray) -> np.ndarray:
  """A ring with fewer points, nowhere a pixel off."""
  points = np.asarray(ring, np.float32)[:, None]
  thin = cv2.approxPolyDP(points, 0.5, True)[:, 0]
  return thin if len(thin) > 2 else np.asarray(ring)


def _inside(ring: np.ndarray) -> np.ndarray:
  """The topmost point of an outline, where its number hides least."""
  return np.asarray(ring)[np.asarray(ring)[:, 1].argmin()]


def scale_bar(drawn: Drawn) -> str:
  """A bar of a round length that keeps its share of the picture."""
  canvas = drawn.canvases["probability"]
  um = canvas.values.shape[1] * canvas.um_per_px
  ten = 10.0 ** math.floor(math.log10(um / 5))
  length = max(m * ten for m in (1, 2, 5) if m * ten <= um / 5)
  text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
  return (
    f'<div class="bar"><i style="width:{100 * length / um:.2f}%"></i>'
    f"<span>{text}</span></div>"
  )


def ramp(drawn: Drawn, kind: str) -> str:
  """The colours of a map with numbers, as dark as on this slide's tissue."""
  canvas = drawn.canvases[kind]
  covered = heatmaps.covered(canvas, drawn.tissue)
  grey = heatmaps.grey_of(drawn.slide)[covered]
  middle = float(np.median(grey)) if len(grey) else 255.0
  return colour_bar(kind, canvas.limits, middle)


def colour_bar(
  kind: str, limits: tuple[float, float], grey: float | int
) -> str:
  """The colours of a kind of map with numbers.

  Args:
    kind: one of `heatmaps.KINDS`.
    limits: values at the two ends.
    grey: of the tissue below them.

  Returns:
    HTML.
  """
  low, high = limits
  values = np.linspace(low, high, 17)
  colours = heatmaps.over_grey(
    heatmaps.colours(values, kind, limits),
    np.full((len(values), 1), float(grey)),
  )
  stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in colours.tolist())
  if kind == "percentile":
    texts = ["0 %", "50 %", "100 %"]
  elif kind == "probability":
    texts = ["0", "0.25", "0.5", "0.75", "1"]
  else:
    texts = [f"≤ −{high:.3g}", "0", f"≥ +{high:.3g}"]
  ticks = "".join(f"<span>{text}</span>" for text in texts)
  return (
    f'<div class="ramp"><i style="background:linear-gradient(90deg,{stops})">'
    f"</i><div>{ticks}</div></div>"
  )
