"""Pictures of the report: strips, montages, maps on the slide, line charts.

Pictures are RGB uint8 arrays made with OpenCV; line charts are SVG text, sharp
at any size and coloured by the page, so that they work on light and dark.
"""

import base64
import io
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

# Sixteen colours that stay apart on pink and purple tissue.
PALETTE = (
  (31, 119, 180),
  (255, 127, 14),
  (44, 160, 44),
  (214, 39, 40),
  (0, 220, 220),
  (255, 225, 25),
  (0, 0, 117),
  (128, 90, 40),
  (240, 50, 230),
  (0, 128, 128),
  (170, 255, 100),
  (128, 0, 0),
  (128, 128, 0),
  (120, 200, 255),
  (70, 70, 70),
  (255, 250, 200),
)
# Colours in the SVG that the page replaces; never used for anything else.
_INK = "#010203"


def colour(number: int) -> tuple[int, int, int]:
  """Colour of cluster `number`; beyond the palette it repeats, darker.

  Example:
    >>> colour(0), colour(16)
    ((31, 119, 180), (19, 71, 108))
  """
  r, g, b = PALETTE[number % len(PALETTE)]
  shade = 0.6 ** (number // len(PALETTE))
  return round(r * shade), round(g * shade), round(b * shade)


def data_uri(picture: UInt8[np.ndarray, "h w 3"], quality: int = 80) -> str:
  """An RGB picture as a JPEG data address for an HTML page."""
  ok, data = cv2.imencode(
    ".jpg",
    cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
    [cv2.IMWRITE_JPEG_QUALITY, quality],
  )
  if not ok:
    raise ValueError(f"a picture of shape {picture.shape} cannot be a JPEG")
  return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def fit(
  picture: UInt8[np.ndarray, "h w 3"], longest: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Shrinks a picture to a longest side; never enlarges."""
  scale = longest / max(picture.shape[:2])
  if scale >= 1:
    return picture
  size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def strip(
  frames: UInt8[np.ndarray, "t h w 3"], height: int, gap: int = 2
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Frames side by side in order of time, with white gaps.

  Args:
    frames: the frames.
    height: height of the strip in pixels.
    gap: pixels between frames.

  Returns:
    The strip.
  """
  width = max(1, round(frames.shape[2] * height / frames.shape[1]))
  shrink = height < frames.shape[1]
  how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
  picture = np.full(
    (height, len(frames) * (width + gap) - gap, 3), 255, np.uint8
  )
  for t, frame in enumerate(frames):
    left = t * (width + gap)
    picture[:, left : left + width] = cv2.resize(
      frame, (width, height), interpolation=how
    )
  return picture


def triptych(
  clips: Sequence[UInt8[np.ndarray, "t h w 3"]],
  height: int,
  rows: int = 8,
  gap: int = 2,
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Clips as columns and evenly chosen frames as rows.

  Args:
    clips: clips of one shape, e.g. original, masked, reconstructed.
    height: height of a frame in pixels.
    rows: most frames shown.
    gap: pixels between frames.

  Returns:
    The picture.
  """
  frames = len(clips[0])
  chosen = np.linspace(0, frames - 1, min(rows, frames)).round().astype(int)
  lines = []
  for t in chosen:
    lines.append(strip(np.stack([clip[t] for clip in clips]), height, gap))
    lines.append(np.full((gap, lines[-1].shape[1], 3), 255, np.uint8))
  return np.concatenate(lines[:-1])


def scale_bar(
  picture: UInt8[np.ndarray, "h w 3"], um_per_px: float
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws a bar of a round length with its label, bottom right.

  Args:
    picture: the picture; a copy is drawn on.
    um_per_px: micrometres per pixel.

  Returns:
    The copy.
  """
  picture = picture.copy()
  height, width = picture.shape[:2]
  steps = [m * 10**e for e in range(5) for m in (1, 2, 5)]
  fitting = [v for v in steps if v / um_per_px <= 0.25 * width]
  if not fitting:
    return picture
  length = fitting[-1]
  px = round(length / um_per_px)
  # OpenCV has no µ to draw.
  label = f"{length / 1000:g} mm"
  size = max(0.35, width / 1100)
  (text_width, text_height), _ = cv2.getTextSize(
    label, cv2.FONT_HERSHEY_SIMPLEX, size, 1
  )
  right, bottom = width - 8, height - 8
  box = max(px, text_width) + 8
  top = bottom - text_height - 12
  picture[top - 2 : bottom + 4, right - box : right + 4] = 255
  cv2.rectangle(
    picture, (right - px, bottom - 4), (right, bottom), (0, 0, 0), -1
  )
  cv2.putText(
    picture,
    label,
    (right - text_width, bottom - 8),
    cv2.FONT_HERSHEY_SIMPLEX,
    size,
    (0, 0, 0),
    1,
    cv2.LINE_AA,
  )
  return picture


def outline_picture(
  thumbnail: UInt8[np.ndarray, "h w 3"],
  downsample: float,
  polygons: Sequence,
  centres: Sequence,
) -> UInt8[np.ndarray, "h w 3"]:
  """A thumbnail with the tissue outlined and region centres as dots.

  Args:
    thumbnail: the slide, small.
    downsample: level-0 pixels per thumbnail pixel.
    polygons: rings of x, y in level-0 pixels.
    centres: x, y in level-0 pixels.

  Returns:
    The picture.
  """
  picture = thumbnail.copy()
  width = max(1, round(max(picture.shape) / 400))
  for ring in polygons:
    points = np.asarray(ring, np.float64).reshape(-1, 2) / downsample
    points = np.round(points * 16).astype(np.int32)
    cv2.polylines(picture, [points], True, (0, 150, 60), width, cv2.LINE_AA, 4)
  radius = max(2.0, max(picture.shape) / 260)
  for x, y in centres:
    centre = (round(x / downsample * 16), round(y / downsample * 16))
    for r, paint in ((radius * 1.5, (255, 255, 255)), (radius, (20, 60, 220))):
      cv2.circle(picture, centre, round(r * 16), paint, -1, cv2.LINE_AA, 4)
  return picture


def cluster_picture(
  thumbnail: UInt8[np.ndarray, "h w 3"],
  downsample: float,
  frame_xy: Float[np.ndarray, "n t 2"],
  assignment: Int[np.ndarray, " n"],
) -> UInt8[np.ndarray, "h w 3"]:
  """A thumbnail with the path of every sequence in its cluster's colour.

  The slide is faded so that colours read the same on pale and dark tissue.

  Args:
    thumbnail: the slide, small.
    downsample: level-0 pixels per thumbnail pixel.
    frame_xy: frame centres in level-0 pixels.
    assignment: cluster of each sequence.

  Returns:
    The picture.
  """
  grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY).astype(np.float32)
  faded = 255 - (255 - grey) * 0.55
  picture = np.repeat(faded[..., None], 3, 2).astype(np.uint8)
  thick = max(2, round(max(picture.shape) / 170))
  paths = [
    np.round(path[np.isfinite(path).all(1)] / downsample * 16).astype(np.int32)
    for path in np.asarray(frame_xy, np.float64)
  ]
  # White below all colours: an edge that keeps near colours apart.
  for wide, outline in ((thick + 2, True), (thick, False)):
    for path, number in zip(
      paths, np.asarray(assignment).tolist(), strict=True
    ):
      if not len(path):
        continue
      paint = (255, 255, 255) if outline else colour(number)
      cv2.polylines(picture, [path], False, paint, wide, cv2.LINE_AA, 4)
      centre = tuple(path[0].tolist())
      cv2.circle(picture, centre, wide * 10, paint, -1, cv2.LINE_AA, 4)
  return picture


def smooth(values: Float[np.ndarray, " n"], window: int) -> np.ndarray:
  """Running mean over the last `window` values, fewer at the start.

  Example:
    >>> smooth(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [1.0, 2.0, 4.0]
  """
  total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  stop = np.arange(1, len(values) + 1)
  start = np.maximum(stop - window, 0)
  return (total[stop] - total[start]) / (stop - start)


def line_chart(
  series: Mapping[str, tuple[np.ndarray, np.ndarray]],
  x_label: str,
  y_label: str,
  markers: bool = False,
  faint: Sequence[str] = (),
) -> str:
  """Lines with a legend as SVG text without background.

  The y axis is logarithmic where positive values spread over more than a
  factor of 20, as a loss does that starts from random weights.

  Args:
    series: x and y per name.
    x_label: what runs to the right.
    y_label: what runs upwards.
    markers: draw a dot at each point.
    faint: names drawn thin and left out of the legend.

  Returns:
    An `<svg>` element whose ink is `currentColor`.
  """
  style = {
    "svg.fonttype": "none",
    "svg.hashsalt": f"{x_label}|{y_label}",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
  }
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    number = 0
    for name, (x, y) in series.items():
      thin = name in faint
      axes.plot(
        x,
        y,
        label=None if thin else name,
        color=f"C{0 if thin else number}",
        linewidth=0.7 if thin else 1.8,
        alpha=0.35 if thin else 1,
        marker="o" if markers else None,
        markersize=4,
      )
      number += not thin
    values = np.concatenate([np.asarray(y) for _, y in series.values()])
    if values.min() > 0 and values.max() > 20 * values.min():
      axes.set_yscale("log")
      y_label = f"{y_label} (logarithmic)"
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, color="#808080")
    axes.spines[["top", "right"]].set_visible(False)
    if number:
      axes.legend(frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
  svg = text.getvalue()
  svg = svg[svg.index("<svg") :]
  # The size comes from the page; the metadata block only names websites.
  head, rest = svg.split(">", 1)
  head = " ".join(
    part for part in head.split() if not part.startswith(("width=", "height="))
  )
  start, stop = rest.find("<metadata>"), rest.find("</metadata>")
  if start >= 0:
    rest = rest[:start] + rest[stop + len("</metadata>") :]
  return f"{head} role='img'>{rest}".replace(_INK, "currentColor")
