"""Pictures of maps: scores, boundaries, displacements, instances, masks."""

import colorsys

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from wsiseq_jax.maps import heatmaps
from wsiseq_jax.reports import figures
from wsiseq_jax.segment import decide
from wsiseq_jax.segment.slide_masks import colour

_FADE = 0.4  # strength of colours on a picture
NOT_KNOWN = 255
Rgb = UInt8[np.ndarray, "h w 3"]


def scores(values: Float[np.ndarray, "y a b"], size: tuple[int, int]) -> Rgb:
  """The highest score of each pixel in colours, from 0 to 1."""
  best = decide.enlarge(values, size).max(axis=0)
  return heatmaps.colours(best, "probability")


def boundary(values: Float[np.ndarray, "a b"], size: tuple[int, int]) -> Rgb:
  """Dark where a boundary is."""
  found = decide.enlarge(values[None], size)[0].clip(0, 1)
  return np.repeat(np.rint(255 * (1 - found))[..., None], 3, 2).astype(np.uint8)


def displacement(
  values: Float[np.ndarray, "2 a b"], size: tuple[int, int]
) -> Rgb:
  """The direction as a hue, the length as how strong it is.

  Args:
    values: y and x of each place.
    size: (h, w) of the picture.
  """
  y, x = decide.enlarge(values, size)
  length = np.hypot(y, x)
  strength = length / max(float(np.quantile(length, 0.99)), 1e-6)
  hue = np.rint((np.arctan2(y, x) + np.pi) / (2 * np.pi) * 179)
  full = np.full(size, 255.0)
  hsv = np.stack([hue, 255 * strength.clip(0, 1), full], axis=-1)
  return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def classes(
  pixels: Rgb, found: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """A picture with its classes in colours; what is not known is grey."""
  picture = pixels.astype(np.float32)
  for number in np.unique(found):
    if number:
      paint = (110, 110, 110) if number == NOT_KNOWN else colour(int(number))
      part = found == number
      picture[part] = picture[part] * (1 - _FADE) + np.array(paint) * _FADE
  picture = np.rint(picture).astype(np.uint8)
  for number in np.unique(found):
    if number and number != NOT_KNOWN:
      rings, _ = cv2.findContours(
        (found == number).astype(np.uint8),
        cv2.RETR_CCOMP,
        cv2.CHAIN_APPROX_NONE,
      )
      thick = max(1, round(max(found.shape) / 200))
      cv2.drawContours(picture, rings, -1, colour(int(number)), thick)
  return picture


def instances(pixels: Rgb, found: Int[np.ndarray, "h w"]) -> Rgb:
  """A picture with each instance in a colour of its own."""
  count = int(found.max(initial=0))
  # Steps of the golden ratio: neighbours in number differ in hue.
  paint = np.array(
    [(0, 0, 0)]
    + [
      [255 * v for v in colorsys.hsv_to_rgb((i * 0.618034) % 1, 0.9, 0.9)]
      for i in range(count)
    ]
  )
  share = np.where(found > 0, 0.5, 0.0)[..., None]
  mixed = pixels * (1 - share) + paint[found] * share
  return np.rint(mixed).astype(np.uint8)


def dots(pixels: Rgb, points: Float[np.ndarray, "n d"]) -> Rgb:
  """A picture with points on it."""
  picture = pixels.copy()
  radius = max(2, round(max(pixels.shape) / 160))
  for x, y in np.rint(points[:, :2]).astype(int).tolist():
    cv2.circle(picture, (x, y), radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), radius, (214, 39, 40), -1, cv2.LINE_AA)
  return picture


def maps(
  pixels: Rgb, of_stage: dict[str, np.ndarray]
) -> list[tuple[str, UInt8[np.ndarray, "h2 w2 3"]]]:
  """What a stage found out about a picture, as (name, picture)."""
  size, found = pixels.shape[:2], []
  for name in ("image_scores", "scores"):
    if name in of_stage:
      found.append((name.replace("_", " "), scores(of_stage[name], size)))
  if "boundary" in of_stage:
    found.append(("boundary", boundary(of_stage["boundary"], size)))
  if "displacement" in of_stage:
    moved = displacement(of_stage["displacement"], size)
    found.append(("displacement", moved))
  if "instances" in of_stage:
    found.append(("instances", instances(pixels, of_stage["instances"])))
  if "points" in of_stage:
    found.append(("points", dots(pixels, of_stage["points"])))
  return [(name, figures.fit(picture, 320)) for name, picture in found]
