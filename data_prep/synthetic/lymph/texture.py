"""Paints lymph nodes: what `synthetic_texture.Painter` does not know yet.

The base class paints six types and puts stains together. Here its vessels take
the place of glands, tumour grows in nests of any size, and everything
lymphoid, which is one type to the base class, is told apart: small dark
lymphocytes, their denser mantle, germinal centres of larger paler nuclei with
macrophages ("starry sky"), sinuses of pale histiocytes, and crushed tissue.
"""

import cv2
import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage, spatial

from data_prep.synthetic import texture

# The order is the class index in every truth file; the first six are those of
# `synthetic_texture`, with vessels in the place of glands.
LYMPH_TYPES = (
  "stroma",
  "vessel",
  "lymphoid",
  "tumour",
  "adipose",
  "necrosis",
  "germinal",
  "mantle",
  "sinus",
  "crush",
)
(
  STROMA,
  VESSEL,
  LYMPHOID,
  TUMOUR,
  ADIPOSE,
  NECROSIS,
  GERMINAL,
  MANTLE,
  SINUS,
  CRUSH,
) = range(10)
_LYMPHOID_KINDS = (LYMPHOID, GERMINAL, MANTLE, SINUS, CRUSH)

# Cytoplasm of the lymphoid kinds: haematoxylin, eosin, eosin's unevenness.
_CYTOPLASM = {
  LYMPHOID: (0.08, 0.30, 0.08),
  MANTLE: (0.10, 0.28, 0.05),
  GERMINAL: (0.15, 0.36, 0.10),
  SINUS: (0.06, 0.42, 0.20),
  CRUSH: (0.24, 0.36, 0.12),
}


def _quilt(rng, shape, sigma) -> np.ndarray:
  """Noise whose quarter is drawn and mirrored: fine noise at a quarter price.

  Mirroring has no seams, and nobody sees that grains repeat a millimetre away.
  """
  half = tuple(-(-n // 2) for n in shape)
  part = texture.noise(rng, half, (sigma, sigma))
  whole = np.concatenate([part, part[:, ::-1]], 1)
  whole = np.concatenate([whole, whole[::-1]], 0)
  return np.ascontiguousarray(whole[: shape[0], : shape[1]])


class LymphPainter(texture.Painter):
  """Paints the stain densities of one slide of lymph node.

  Args:
    rng: source of randomness.
    types: index into `LYMPH_TYPES` at 1/`downsample` of the resolution.
    regions: index of the region, as for the base class.
    downsample: pixels per layout pixel.
    s: pixels per micrometre.
    lesions: number of the lesion, 0 = none.
    vessels: x, y, outer radius, in layout pixels.
    depth_um: distance from the node's edge; fibres follow it.
    around_um: position along the edge.
  """

  def __init__(
    self,
    rng: np.random.Generator,
    types: Int[np.ndarray, "h w"],
    regions: Int[np.ndarray, "h w"],
    downsample: int,
    s: float,
    lesions: Int[np.ndarray, "h w"],
    vessels: Float[np.ndarray, "v 3"],
    depth_um: Float[np.ndarray, "h w"],
    around_um: Float[np.ndarray, "h w"],
  ):
    # All that the base class sets; its noise would take half of the time.
    self.rng, self.regions = rng, regions
    self.downsample, self.s = downsample, s
    self.kinds, self.lesions, self.vessels = types, lesions, vessels
    self.depth_um, self.around_um = depth_um, around_um
    self.types = np.where(np.isin(types, _LYMPHOID_KINDS), LYMPHOID, types)
    self.shape = tuple(n * downsample for n in types.shape)
    self.nuclei = np.zeros(self.shape, np.uint8)
    self.void = np.zeros(self.shape, np.uint8)
    self.fine = _quilt(rng, self.shape, 0.9 * s)
    self.medium = _quilt(rng, self.shape, 3.5 * s)
    self.fibre, self.fibre_angle = self._fibres()

  def _fibres(self):
    """Wavy fibres along the capsule, and their direction in degrees."""
    rng, s, d = self.rng, self.s, self.downsample
    stretched = texture.noise(rng, (1024, 1024), (1.1 * s, 26 * s))
    stretched += 0.6 * texture.noise(rng, (1024, 1024), (2.6 * s, 40 * s))
    um = d / s
    smooth = cv2.GaussianBlur(self.depth_um, (0, 0), 20 / um)
    wave = 9 * texture.noise(rng, self.types.shape, (45 / um, 45 / um))
    wave += 3 * texture.noise(rng, self.types.shape, (14 / um, 14 / um))
    across = smooth + wave
    gy, gx = np.gradient(across)
    angle = np.degrees(np.arctan2(gx, -gy))
    size = (self.shape[1], self.shape[0])
    along, across = (
      cv2.resize(v * np.float32(s), size, interpolation=cv2.INTER_LINEAR)
      for v in (self.around_um, across)
    )
    fibre = cv2.remap(
      stretched, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.clip(fibre / 1.15, -2.5, 2.5), angle

  def _points(self, kind, spacing, jitter=0.35):
    if kind == ADIPOSE:
      # Fat cells of a node are 60 um wide, with few nuclei between them.
      spacing *= 1.65
    return texture.scatter(
      self.rng, self.kinds == kind, self.downsample, spacing * self.s, jitter
    )

  # What the base class calls; see there.

  def _lymphoid(self):
    """Everything lymphoid, each kind with its own cells."""
    rng = self.rng
    self._draw_nuclei(
      self._points(LYMPHOID, 7.4, 0.22), (2.5, 3.3), (2.3, 2.9), (0.5, 0.95)
    )
    self._draw_nuclei(
      self._points(MANTLE, 6.7, 0.18), (2.5, 3.2), (2.3, 2.9), (0.6, 1.0)
    )
    # Here and there a larger cell: immunoblasts, endothelium.
    blasts = self._points(LYMPHOID, 34.0, 0.4)
    self._vesicular(blasts, (3.6, 4.8), (3.0, 4.0))
    self._germinal()
    self._sinus()
    crushed = self._points(CRUSH, 8.6, 0.4)
    angles = self._angle_at(crushed) + rng.normal(40, 14, len(crushed))
    self._draw_nuclei(crushed, (5, 15), (1.0, 2.2), (0.4, 0.85), angles)
    table = np.zeros((len(LYMPH_TYPES), 3), np.float32)
    for kind, values in _CYTOPLASM.items():
      table[kind] = values
    # Between the kinds only: the base class cuts out what is lymphoid.
    nearest = ndimage.distance_transform_edt(
      self.types != LYMPHOID, return_distances=False, return_indices=True
    )
    h, e, uneven = (
      self._enlarge(table[self.kinds, column][tuple(nearest)])
      for column in range(3)
    )
    return h + 0.05 * self.medium, e + uneven * self.medium

  def _glands(self):
    """Vessels: a wall of plump endothelium round a lumen with red cells."""
    rng, s, d = self.rng, self.s, self.downsample
    lumens = np.zeros(self.shape, np.uint8)
    red = np.zeros(self.shape, np.uint8)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for x, y, radius in self.vessels * np.float32(d):
      centre = np.array([x, y]) + d / 2
      wobble = 1 + 0.12 * np.sin(2 * turn + rng.uniform(0, 6.3))
      wobble += 0.06 * np.sin(3 * turn + rng.uniform(0, 6.3))
      wall = min(rng.uniform(8.5, 12.5) * s, 0.62 * radius)
      ring = np.stack([np.cos(turn), np.sin(turn)], -1) * wobble[:, None]
      inner = radius - wall
      texture.draw_polygons(lumens, [centre + ring * inner], 240)
      count = max(5, int(2 * np.pi * (radius - wall / 2) / (6.2 * s)))
      t = np.linspace(0, 2 * np.pi, count, endpoint=False)
      t += rng.normal(0, 0.06, count)
      out = np.stack([np.cos(t), np.sin(t)], -1)
      # Plump and across the wall in half of the vessels, like gland cells.
      lies = 90.0 if rng.random() < 0.5 else 0.0
      self._draw_nuclei(
        centre + out * (inner + 0.5 * wall),
        (3.4, 4.8),
        (2.0, 2.8),
        (0.6, 0.9),
        np.degrees(t) + lies,
      )
      for _ in range(rng.poisson(0.012 * (inner / s) ** 2)):
        at = centre + rng.normal(0, 0.35 * inner, 2)
        cv2.circle(
          red, np.round(at).astype(int).tolist(), round(3 * s), 255, -1
        )
    red = cv2.GaussianBlur(red, (0, 0), 0.5 * s)
    red[lumens < 128] = 0
    lumens[red > 60] = 40
    np.maximum(self.void, lumens, out=self.void)
    blood = red.astype(np.float32) / 255
    e = 0.62 + 0.1 * self.medium
    return 0.12 * (1 - blood), e + blood * 0.75

  def _tumour(self):
    """Nests of large, uneven nuclei with nucleoli, each lesion in its way."""
    rng, s, d = self.rng, self.s, self.downsample
    nest = np.ones(self.types.shape, np.float32)
    for number in range(1, int(self.lesions.max()) + 1):
      mask = (self.lesions == number) & (self.kinds == TUMOUR)
      rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
      box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
      spacing = rng.uniform(55, 115) * s / d
      # A small lesion is one nest.
      if mask.sum() > 8 * spacing**2:
        seeds = texture.scatter(rng, np.ones_like(mask[box]), 1, spacing, 0.2)
        y, x = np.mgrid[: mask[box].shape[0], : mask[box].shape[1]]
        warp = 5 * s / d * texture.noise(rng, x.shape, (9 * s / d,) * 2)
        near, _ = spatial.cKDTree(seeds).query(
          np.stack([x + warp, y + warp], -1), k=2
        )
        septum = rng.uniform(4, 11) * s / d
        nest[box] = np.where(
          mask[box], np.clip((near[..., 1] - near[..., 0]) - septum, 0, 1), 1
        )
      self._tumour_cells(mask & (nest > 0.5), rng.uniform(12.2, 14.6))
    septa = (self.kinds == TUMOUR) & (nest <= 0.5)
    self._spindles(texture.scatter(rng, septa, d, 12.5 * s, 0.4))
    nest = self._enlarge(nest)
    e_nest, h_nest = 0.42 + 0.09 * self.medium, 0.20 + 0.04 * self.medium
    e_septum, h_septum = 0.62 + 0.3 * self.fibre, 0.02
    return (
      h_septum + nest * (h_nest - h_septum),
      e_septum + nest * (e_nest - e_septum),
    )

  # Cells.

  def _vesicular(self, points, long_um, short_um) -> None:
    """Open nuclei: a dark rim, pale chromatin, a nucleolus."""
    rng, s = self.rng, self.s
    if not len(points):
      return
    axes, angles = self._draw_nuclei(points, long_um, short_um, (0.62, 0.85))
    pale = rng.uniform(0.32, 0.46, len(points)) * 255
    texture.draw_ellipses(
      self.nuclei, points, np.maximum(axes - 1.0, 0.4) * s, angles, pale
    )
    spots = points + rng.normal(0, 0.8 * s, points.shape)
    size = np.full((len(points), 2), 0.7 * s)
    texture.draw_ellipses(
      self.nuclei, spots, size, angles, np.full(len(points), 225.0)
    )

  def _tumour_cells(self, inside, spacing) -> None:
    """Large nuclei of all sizes; some dark, some open with a nucleolus."""
    rng, s = self.rng, self.s
    points = texture.scatter(rng, inside, self.downsample, spacing * s, 0.22)
    if not len(points):
      return
    dark = rng.random(len(points)) < 0.3
    self._draw_nuclei(points[dark], (3.8, 7.4), (3.0, 4.8), (0.7, 0.95))
    points = points[~dark]
    axes, angles = self._draw_nuclei(points, (4.4, 7.6), (3.6, 5.2), (0.7, 0.9))
    texture.draw_ellipses(
      self.nuclei,
      points,
      (axes - 1.1) * s,
      angles,
      rng.uniform(0.36, 0.56, len(points)) * 255,
    )
    spots = points + rng.normal(0, 1.0 * s, points.shape)
    size = rng.uniform(0.9, 1.5, (len(points), 1)) * s
    texture.draw_ellipses(
      self.nuclei,
      spots,
      np.repeat(size, 2, axis=1),
      angles,
      np.full(len(points), 250.0),
    )

  def _germinal(self) -> None:
    """Centrocytes and centroblasts; macrophages with debris between them."""
    rng, s = self.rng, self.s
    points = self._points(GERMINAL, 8.8, 0.26)
    blast = rng.random(len(points)) < 0.35
    small = points[~blast]
    self._draw_nuclei(small, (2.9, 4.3), (2.0, 2.9), (0.38, 0.72))
    self._vesicular(points[blast], (3.5, 4.9), (3.2, 4.3))
    eaters = self._points(GERMINAL, 58.0, 0.3)
    size = rng.uniform(6, 10, (len(eaters), 2)) * s
    flat = np.zeros(len(eaters))
    texture.draw_ellipses(self.nuclei, eaters, size, flat, flat)
    texture.draw_ellipses(
      self.void, eaters, 0.8 * size, flat, np.full(len(eaters), 70.0)
    )
    debris = np.repeat(eaters, 4, axis=0)
    debris = debris + rng.normal(0, 3.0 * s, debris.shape)
    self._draw_nuclei(debris, (0.8, 1.7), (0.8, 1.5), (0.7, 1.0))

  def _sinus(self) -> None:
    """Loose histiocytes with foamy cytoplasm, some lymphocytes, clear gaps."""
    rng = self.rng
    points = self._points(SINUS, 11.0, 0.36)
    self._draw_nuclei(points, (3.2, 4.8), (1.9, 3.0), (0.3, 0.6))
    small = self._points(SINUS, 17.0, 0.45)
    small = small[rng.random(len(small)) < 0.8]
    self._draw_nuclei(small, (2.5, 3.2), (2.3, 2.8), (0.6, 0.95))
    inside = cv2.resize(
      (self.kinds == SINUS).astype(np.uint8),
      self.shape[::-1],
      interpolation=cv2.INTER_NEAREST,
    )
    # No gap through a nucleus.
    gap = np.clip((self.medium - 0.75) * 170, 0, 190) * inside
    gap *= 1 - self.nuclei.astype(np.float32) / 255
    np.maximum(self.void, gap.astype(np.uint8), out=self.void)
