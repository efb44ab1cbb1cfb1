"""How a synthetic slide looks through the scanner: stain, light, artefacts.

Beer-Lambert rendering of stain densities, the gains that keep mean colour from
naming the tissue, the stain of a patient, and what real slides have beside
tissue: folds, dust, textile fibres, pen marks.
"""

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from data_prep.synthetic.texture import draw_ellipses

# Optical density per unit of stain in R, G, B, read off the nuclei and the
# collagen of scanned H&E slides. The model is that of Ruifrok & Johnston,
# "Quantification of histochemical staining by color deconvolution" (2001);
# their published eosin vector stops less blue than these scanners show.
STAIN_MATRIX = np.array(
  [[0.80, 1.00, 0.52], [0.13, 0.72, 0.40]], dtype=np.float32
)
# Of `match_mean_colour`.
GAIN_LIMITS = (0.5, 2.0)


def match_mean_colour(
  h: Float[np.ndarray, "h w"],
  e: Float[np.ndarray, "h w"],
  regions: Int[np.ndarray, "h w"],
  targets: Float[np.ndarray, "r 2"],
) -> Float[np.ndarray, "r 2"]:
  """Finds gains that give every region a stated mean transmitted light.

  Mean colour would otherwise name the tissue: lymphoid tissue is blue, muscle
  red. The means are matched in transmitted light (red and green, under the
  reference stain) and not in density, because transmitted light is what the
  average of a picture's pixels shows.
  """
  inside = regions.ravel() >= 0
  which = regions.ravel()[inside]
  h, e = h.ravel()[inside], e.ravel()[inside]
  count = np.maximum(np.bincount(which, minlength=len(targets)), 1)
  gains = np.ones((len(targets), 2))
  mean_amount = np.stack(
    [np.bincount(which, v, minlength=len(targets)) / count for v in (h, e)], 1
  )
  # Density in red and green -> amounts of the two stains.
  unmix = np.linalg.inv(STAIN_MATRIX[:, :2].astype(np.float64))
  for _ in range(15):
    seen_h, seen_e = h * gains[which, 0], e * gains[which, 1]
    mean = [
      np.bincount(
        which,
        np.exp(-seen_h * STAIN_MATRIX[0, c] - seen_e * STAIN_MATRIX[1, c]),
        minlength=len(targets),
      )
      / count
      for c in (0, 1)
    ]
    missing = np.log(np.maximum(np.stack(mean, 1), 1e-6)) - np.log(targets)
    amount = np.maximum(mean_amount * gains, 1e-3)
    # Eosin makes up what is missing in green once haematoxylin, which may be
    # at its limit, has moved.
    step_h = (missing @ unmix)[:, 0] / amount[:, 0]
    gain_h = np.clip(gains[:, 0] * np.clip(1 + step_h, 0.7, 1.4), *GAIN_LIMITS)
    moved = (gain_h - gains[:, 0]) * mean_amount[:, 0] * STAIN_MATRIX[0, 1]
    step_e = (missing[:, 1] - moved) / STAIN_MATRIX[1, 1] / amount[:, 1]
    gain_e = np.clip(gains[:, 1] * np.clip(1 + step_e, 0.7, 1.4), *GAIN_LIMITS)
    gains = np.stack([gain_h, gain_e], 1)
  return gains


def render(
  h: Float[np.ndarray, "h w"],
  e: Float[np.ndarray, "h w"],
  stain: Float[np.ndarray, "2 3"],
  light: Float[np.ndarray, "3"],
  illumination: Float[np.ndarray, "h w"],
  rng: np.random.Generator,
  sensor_noise: float = 1.6,
) -> UInt8[np.ndarray, "h w 3"]:
  """Stain densities to an RGB picture by the Beer-Lambert law.

  I_c = light_c · illumination · exp(−h·S_hc − e·S_ec) + noise
  """
  # One noise for all channels, shifted: three would look the same and cost
  # most of the time of this function.
  grain = rng.standard_normal(h.shape, dtype=np.float32) * sensor_noise
  picture = np.empty((*h.shape, 3), np.uint8)
  for c in range(3):
    density = h * -stain[0, c]
    density -= e * stain[1, c]
    value = cv2.exp(density)
    value *= illumination
    value *= light[c]
    value = cv2.GaussianBlur(value, (0, 0), 0.6)
    value += np.roll(grain, 7919 * c)
    picture[..., c] = np.clip(value, 0, 255)
  return picture


def patient_stain(seed: int, patient: int):
  """A patient's stain matrix and the grey level of blank glass."""
  rng = np.random.default_rng([seed, 1, patient])
  strength = np.exp(rng.normal(0, 0.16, (2, 1)))
  hue = np.exp(rng.normal(0, 0.10, (2, 3)))
  stain = STAIN_MATRIX * strength * hue
  light = np.array([243, 242, 244]) + rng.normal(0, 2.0, 3)
  return stain.astype(np.float32), light.astype(np.float32)


def fold(rng, shape, tissue, scale) -> np.ndarray:
  """A fold: a narrow curved band where the section lies double."""
  band = np.zeros(shape, np.uint8)
  inside = np.argwhere(tissue)
  start = inside[rng.integers(len(inside))][::-1]
  turn = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, 24))
  steps = np.stack([np.cos(turn), np.sin(turn)], -1) * 14 * scale
  line = np.round(start + np.cumsum(steps, 0)).astype(np.int32)
  cv2.polylines(band, [line], False, 255, max(1, round(12 * scale)))
  return cv2.GaussianBlur(band, (0, 0), 1.2).astype(np.float32) / 255


def add_artefacts(rng, picture, s, number) -> None:
  """Draws dust, a textile fibre, and on some slides a pen mark, in place."""
  height, width = picture.shape[:2]
  shade = np.zeros((height, width), np.uint8)
  dust = rng.uniform(0, 1, (25, 2)) * (width, height)
  draw_ellipses(
    shade,
    dust,
    rng.uniform(0.8, 4, (25, 2)) * s,
    rng.uniform(0, 180, 25),
    rng.uniform(60, 200, 25),
  )
  start = rng.uniform(0.05, 0.95, 2) * (width, height)
  turn = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.25, 40))
  steps = np.stack([np.cos(turn), np.sin(turn)], -1) * 6 * s
  line = np.round((start + np.cumsum(steps, 0)) * 16).astype(np.int32)
  thick = max(1, round(2.5 * s))
  cv2.polylines(shade, [line], False, 140, thick, cv2.LINE_AA, 4)
  _stain_with(picture, cv2.blur(shade, (3, 3)), (70, 70, 80))
  if number % 3 != 1:
    return
  # A pen mark on the glass, just touching the tissue's edge.
  ink = np.zeros((height, width), np.uint8)
  corner = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])[rng.integers(4)]
  along = np.linspace(-0.11, 0.11, 24)
  across = 0.05 + 0.008 * np.sin(along * 60 + rng.uniform(0, 6))
  centre = np.abs(corner - 0.02)
  inward = 1 - 2 * corner
  points = centre + inward * np.stack([0.13 + along, 0.0 * along + across], -1)
  points = np.round(points * (width, height) * 16).astype(np.int32)
  cv2.polylines(
    ink, [points], False, 230, max(2, round(30 * s)), cv2.LINE_AA, 4
  )
  colour = [(40, 90, 190), (30, 130, 80), (40, 40, 45)][rng.integers(3)]
  _stain_with(picture, cv2.blur(ink, (5, 5)), colour)


def _stain_with(picture, amount, colour) -> None:
  """Darkens a picture where `amount` (0..255) is set, in place."""
  y, x = np.nonzero(amount)
  if not len(y):
    return
  a = amount[y, x, None].astype(np.float32) / 255
  light = picture[y, x].astype(np.float32)
  filtered = light * (np.array(colour, np.float32) / 255)
  picture[y, x] = np.clip(light + a * (filtered - light), 0, 255)
