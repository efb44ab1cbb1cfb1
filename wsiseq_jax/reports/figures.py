"""Pictures of pages: strips, grids, slides with marks; RGB uint8, OpenCV."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from data_prep.wsi import qc

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


def colour(number: int) -> tuple[int, int, int]:
  """Colour of cluster `number`; beyond the palette it repeats, darker.

  Example:
    >>> colour(0), colour(16)
    ((31, 119, 180), (19, 71, 108))
  """
  r, g, b = PALETTE[number % len(PALETTE)]
  shade = 0.6 ** (number // len(PALETTE))
  return round(r * shade), round(g * shade), round(b * shade)


def jpeg(picture: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
  """An RGB picture as the bytes of a JPEG file."""
  bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
  ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
  if not ok:
    raise ValueError(f"a picture of shape {picture.shape} cannot be a JPEG")
  return data.tobytes()


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
  """Frames side by side in order of time, with white gaps."""
  width = max(1, round(frames.shape[2] * height / frames.shape[1]))
  shrink = height < frames.shape[1]
  how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
  size = (height, len(frames) * (width + gap) - gap, 3)
  picture = np.full(size, 255, np.uint8)
  for t, frame in enumerate(frames):
    left = t * (width + gap)
    picture[:, left : left + width] = cv2.resize(
      frame, (width, height), interpolation=how
    )
  return picture


def columns(
  clips: Sequence[UInt8[np.ndarray, "t h w 3"]],
  height: int,
  rows: int = 8,
  gap: int = 2,
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Clips of one shape as columns, at most `rows` frames as rows."""
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
  """A copy with a scale bar on a white ground, bottom right."""
  height, width = picture.shape[:2]
  image, size = Image.fromarray(picture), max(10, width // 32)
  at = width - size, height - size
  # Once to know where the label begins, and once over the ground.
  for fill in (True, False):
    pen = ImageDraw.Draw(image)
    left = qc.scale_bar(pen, *at, width, um_per_px, size)
    if fill:
      box = left - size / 2, at[1] - size, width, height
      pen.rectangle(box, fill="white")
  return np.asarray(image)


def _fixed(points, downsample: float) -> np.ndarray:
  """Level-0 points in sixteenths of a pixel, as OpenCV wants them."""
  points = np.asarray(points, np.float64).reshape(-1, 2)
  points = points[np.isfinite(points).all(axis=1)]
  return np.round(points / downsample * 16).astype(np.int32)


def outline_picture(
  thumbnail: UInt8[np.ndarray, "h w 3"],
  downsample: float,
  polygons: Sequence,
  centres: Sequence,
) -> UInt8[np.ndarray, "h w 3"]:
  """A thumbnail with rings and dots: tissue and centres, in level-0 pixels."""
  picture = thumbnail.copy()
  width = max(1, round(max(picture.shape) / 400))
  for ring in polygons:
    points = _fixed(ring, downsample)
    cv2.polylines(picture, [points], True, (0, 150, 60), width, cv2.LINE_AA, 4)
  radius = max(2.0, max(picture.shape) / 260)
  for centre in _fixed(centres, downsample).tolist():
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
  """
  grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY).astype(np.float32)
  faded = 255 - (255 - grey) * 0.55
  picture = np.repeat(faded[..., None], 3, 2).astype(np.uint8)
  thick = max(2, round(max(picture.shape) / 170))
  paths = [_fixed(path, downsample) for path in frame_xy]
  # White below all colours: an edge that keeps near colours apart.
  for wide, is_edge in ((thick + 2, True), (thick, False)):
    for path, number in zip(paths, assignment.tolist(), strict=True):
      if not len(path):
        continue
      paint = (255, 255, 255) if is_edge else colour(number)
      cv2.polylines(picture, [path], False, paint, wide, cv2.LINE_AA, 4)
      start = tuple(path[0].tolist())
      cv2.circle(picture, start, wide * 10, paint, -1, cv2.LINE_AA, 4)
  return picture
