"""Draws six tissue types as stain densities and renders them as H&E.

`data_prep/synthetic/slides.py` decides where which tissue lies; this module
paints it. A picture is two maps, the amount of haematoxylin `h` and of eosin
`e` in each pixel. They become colour by the Beer-Lambert law, so that a
patient's stain is nothing but another 2×3 matrix.

The types differ by *structure* and not by mean colour: every region gets gains
that bring its mean transmitted light to a value drawn from one distribution of
all types (`optics.match_mean_colour`). Gains are limited, so that the picture
stays believable, and a little colour leaks: with patients left out, mean RGB of
an 84 × 172 µm window names the tissue with a balanced accuracy of 0.31 (chance
0.17; six slides), mean and standard deviation together with 0.73.

Lengths in this module are micrometres times `s`, the pixels per micrometre.
"""

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import spatial

# The order is the class index in every truth file.
TISSUE_TYPES = ("stroma", "glands", "lymphoid", "tumour", "adipose", "necrosis")
STROMA, GLANDS, LYMPHOID, TUMOUR, ADIPOSE, NECROSIS = range(6)

# Fractional bits of OpenCV's sub-pixel drawing.
_SHIFT = 4


def noise(
  rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]
) -> Float[np.ndarray, "h w"]:
  """Gaussian-filtered white noise with mean 0 and standard deviation 1.

  Noise coarser than eight pixels is made on a coarser grid and enlarged: it
  looks the same and costs a fraction.
  """
  step = max(1, int(min(sigma) / 4))
  small = tuple(-(-n // step) + 2 for n in shape)
  white = rng.standard_normal(small, dtype=np.float32)
  sigma_y, sigma_x = (max(v / step, 1e-3) for v in sigma)
  field = cv2.GaussianBlur(
    white, (0, 0), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REFLECT
  )
  field = (field - field.mean()) / max(float(field.std()), 1e-6)
  if step > 1:
    size = (small[1] * step, small[0] * step)
    field = cv2.resize(field, size, interpolation=cv2.INTER_CUBIC)
  return np.ascontiguousarray(field[: shape[0], : shape[1]])


def scatter(
  rng: np.random.Generator,
  inside: np.ndarray,
  downsample: int,
  spacing: float,
  jitter: float = 0.35,
) -> Float[np.ndarray, "m 2"]:
  """Points on a jittered hexagonal grid that fall inside a mask.

  Cells neither overlap nor line up; a jittered grid gives both without the
  cost of dart throwing.
  """
  height, width = (n * downsample for n in inside.shape)
  row = spacing * np.sqrt(3) / 2
  ys, xs = np.mgrid[0 : height / row, 0 : width / spacing]
  xs = (xs + 0.5 * (np.arange(xs.shape[0])[:, None] % 2)) * spacing
  points = np.stack([xs, ys * row], -1).reshape(-1, 2)
  points = points + rng.normal(scale=jitter * spacing, size=points.shape)
  cell = np.floor(points / downsample).astype(int)
  ok = (cell >= 0).all(1) & (cell < np.array(inside.shape[::-1])).all(1)
  points, cell = points[ok], cell[ok]
  return points[inside[cell[:, 1], cell[:, 0]]].astype(np.float32)


def _fixed(values: np.ndarray) -> np.ndarray:
  return np.round(np.asarray(values) * (1 << _SHIFT)).astype(np.int32)


def draw_ellipses(
  canvas: UInt8[np.ndarray, "h w"],
  centres: np.ndarray,
  axes: np.ndarray,
  angles: np.ndarray,
  values: np.ndarray,
) -> None:
  """Fills anti-aliased ellipses with sub-pixel position, in place."""
  centres, axes = _fixed(centres).tolist(), _fixed(axes).tolist()
  for centre, axis, angle, value in zip(
    centres, axes, angles.tolist(), values.tolist(), strict=True
  ):
    cv2.ellipse(
      canvas, centre, axis, angle, 0, 360, value, -1, cv2.LINE_AA, _SHIFT
    )


def draw_polygons(
  canvas: UInt8[np.ndarray, "h w"], polygons: list[np.ndarray], value: int
) -> None:
  """Fills anti-aliased polygons (x, y in pixels), in place."""
  for polygon in polygons:
    cv2.fillPoly(canvas, [_fixed(polygon)], value, cv2.LINE_AA, _SHIFT)


def _voronoi_cells(points: np.ndarray, wall: float) -> list[np.ndarray]:
  """Voronoi cells shrunk towards their points by half a wall."""
  if len(points) < 4:
    return []
  diagram = spatial.Voronoi(points)
  cells = []
  for point, index in zip(points, diagram.point_region, strict=True):
    region = diagram.regions[index]
    if not region or -1 in region:
      continue
    ring = diagram.vertices[region] - point
    reach = np.linalg.norm(ring, axis=1)
    ring *= np.maximum(1 - wall / np.maximum(reach, 1e-6), 0.2)[:, None]
    cells.append(ring + point)
  return cells


def _round_corners(canvas: np.ndarray, sigma: float) -> np.ndarray:
  """Rounds what was drawn: blur, then steepen the edge again; 0 to 1."""
  blurred = cv2.GaussianBlur(canvas, (0, 0), sigma).astype(np.float32)
  return np.clip((blurred - 127.5) / (255 / (1.2 * sigma)) + 0.5, 0, 1)


class Painter:
  """Paints the stain densities of one slide.

  Args:
    rng: source of randomness; the same state gives the same picture.
    types: tissue type at 1/`downsample` of the resolution, −1 = glass.
    regions: index of the region each of these pixels belongs to, −1 = glass.
    downsample: pixels per layout pixel.
    s: pixels per micrometre.
  """

  fibre_px = 1024  # side of the pattern of fibres, which repeats

  def __init__(
    self,
    rng: np.random.Generator,
    types: Int[np.ndarray, "h w"],
    regions: Int[np.ndarray, "h w"],
    downsample: int,
    s: float,
  ):
    self.rng, self.types, self.regions = rng, types, regions
    self.downsample, self.s = downsample, s
    self.shape = tuple(n * downsample for n in types.shape)
    self.nuclei = np.zeros(self.shape, np.uint8)
    self.void = np.zeros(self.shape, np.uint8)
    self.fine = noise(rng, self.shape, (0.9 * s, 0.9 * s))
    self.medium = noise(rng, self.shape, (3.5 * s, 3.5 * s))
    self.fibre, self.fibre_angle = self._fibres()

  def paint(self) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Returns the densities of haematoxylin and eosin, before any gain."""
    e = np.zeros(self.shape, np.float32)
    h = np.zeros(self.shape, np.float32)
    for kind, paint in (
      (STROMA, self._stroma),
      (GLANDS, self._glands),
      (LYMPHOID, self._lymphoid),
      (TUMOUR, self._tumour),
      (ADIPOSE, self._adipose),
      (NECROSIS, self._necrosis),
    ):
      if not (self.types == kind).any():
        continue
      cytoplasm_h, cytoplasm_e = paint()
      alpha = self._enlarge((self.types == kind).astype(np.float32))
      h += alpha * cytoplasm_h
      e += alpha * cytoplasm_e
    nuclei = self.nuclei.astype(np.float32) / 255
    # Chromatin is clumped; nuclei push the cytoplasm away.
    h = h * (1 - nuclei) + nuclei * (1 + 0.22 * self.fine)
    e *= 1 - 0.6 * nuclei
    solid = 1 - self.void.astype(np.float32) / 255
    tissue = self._enlarge((self.types >= 0).astype(np.float32))
    solid *= np.clip(tissue * 2 - 0.5 + 0.15 * self.medium, 0, 1) * (
      tissue > 0.02
    )
    np.maximum(h, 0, out=h)
    np.maximum(e, 0, out=e)
    return h * solid, e * solid

  # The parts every type is made of.

  def _enlarge(self, field: np.ndarray) -> np.ndarray:
    size = (self.shape[1], self.shape[0])
    return cv2.resize(
      cv2.GaussianBlur(field, (0, 0), 0.8), size, interpolation=cv2.INTER_LINEAR
    )

  def _fibres(self) -> tuple[np.ndarray, np.ndarray]:
    """Wavy fibres, and their direction in degrees at the layout resolution.

    A stretched noise is read at warped coordinates: lines of equal v are the
    fibres, so their slope is known in closed form and nuclei can follow it.
    """
    rng, s, d = self.rng, self.s, self.downsample
    side = self.fibre_px
    stretched = noise(rng, (side, side), (1.1 * s, 26 * s))
    stretched += 0.6 * noise(rng, (side, side), (2.6 * s, 40 * s))
    shape = self.types.shape
    theta = rng.uniform(0, np.pi, self.regions.max() + 2).astype(np.float32)
    theta = theta[self.regions]
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) * d
    wave = 16 * s * noise(rng, shape, (45 * s / d, 45 * s / d))
    wave += 3.5 * s * noise(rng, shape, (14 * s / d, 14 * s / d))
    along = x * np.cos(theta) + y * np.sin(theta)
    across = y * np.cos(theta) - x * np.sin(theta) + wave
    gy, gx = np.gradient(wave / d)
    angle = np.arctan2(
      np.sin(theta) - gx, np.cos(theta) + gy
    )  # perpendicular to the gradient of `across`
    size = (self.shape[1], self.shape[0])
    big = [
      cv2.resize(v, size, interpolation=cv2.INTER_LINEAR)
      for v in (along, across)
    ]
    fibre = cv2.remap(
      stretched, *big, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    return np.clip(fibre / 1.15, -2.5, 2.5), np.degrees(angle)

  def _points(self, kind: int, spacing: float, jitter=0.35) -> np.ndarray:
    return scatter(
      self.rng, self.types == kind, self.downsample, spacing * self.s, jitter
    )

  def _angle_at(self, points: np.ndarray) -> np.ndarray:
    cell = (points / self.downsample).astype(int)
    return self.fibre_angle[cell[:, 1], cell[:, 0]]

  def _draw_nuclei(self, points, long_um, short_um, level, angles=None):
    """Draws one nucleus per point; ranges are (least, most)."""
    count, rng = len(points), self.rng
    axes = np.stack(
      [rng.uniform(*long_um, count), rng.uniform(*short_um, count)], 1
    )
    if angles is None:
      angles = rng.uniform(0, 180, count)
    values = rng.uniform(*level, count) * 255
    draw_ellipses(self.nuclei, points, axes * self.s, angles, values)
    return axes, angles

  def _spindles(self, points: np.ndarray) -> None:
    angles = self._angle_at(points) + self.rng.normal(0, 9, len(points))
    self._draw_nuclei(points, (4.5, 8), (1.2, 2.1), (0.55, 0.9), angles)

  def _keep(self, points: np.ndarray, canvas: np.ndarray, inside: bool):
    x, y = np.clip(points.astype(int), 0, np.array(self.shape[::-1]) - 1).T
    return points[(canvas[y, x] > 127) == inside]

  # The types. Each returns the cytoplasm (h, e) and draws nuclei and voids.

  def _stroma(self):
    """Oriented wavy collagen with spindle nuclei along the fibres."""
    self._spindles(self._points(STROMA, 15.5, 0.45))
    cleft = np.clip((self.fibre - 1.35) * 1.6, 0, 0.85)
    e = (0.66 + 0.24 * self.fibre) * (1 - cleft)
    return 0.11 + 0.04 * self.medium - 0.08 * cleft, e

  def _glands(self):
    """Rings of columnar cells round a lumen, in loose lamina propria."""
    rng, s = self.rng, self.s
    epithelium = np.zeros(self.shape, np.uint8)
    lumens = np.zeros(self.shape, np.uint8)
    nuclei = []
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    for centre in self._points(GLANDS, 78.0, 0.1):
      radius, stretch = rng.uniform(25, 33) * s, rng.uniform(1.0, 1.45)
      tilt = rng.uniform(0, np.pi)
      lobes = rng.uniform(-0.07, 0.07, 4)
      lumen = rng.uniform(0.22, 0.5)

      look = radius, lobes, stretch, tilt, centre

      def ring(t, share, look=look):
        radius, lobes, stretch, tilt, centre = look
        r = radius * share
        wave = lobes[0] * np.sin(2 * t) + lobes[1] * np.cos(2 * t)
        wave += lobes[2] * np.sin(3 * t) + lobes[3] * np.cos(3 * t)
        px = r * (1 + wave) * np.cos(t) * stretch**0.5
        py = r * (1 + wave) * np.sin(t) / stretch**0.5
        c, n = np.cos(tilt), np.sin(tilt)
        return np.stack([px * c - py * n, px * n + py * c], -1) + centre

      draw_polygons(epithelium, [ring(turn, 1.0)], 255)
      draw_polygons(lumens, [ring(turn, lumen)], 235)
      count = int(2 * np.pi * radius / (5.0 * s))
      t = np.linspace(0, 2 * np.pi, count, endpoint=False)
      t = t + rng.normal(0, 0.04, count)
      share = rng.uniform(0.74, 0.88, count)
      at, out = ring(t, share), ring(t, share + 0.1)
      nuclei.append(np.concatenate([at, out - at], 1))
    outside = self._keep(self._points(GLANDS, 11.5, 0.4), epithelium, False)
    half = len(outside) // 3
    rng.shuffle(outside)
    self._spindles(outside[:half])
    self._draw_nuclei(outside[half:], (2.4, 3.4), (2.2, 2.8), (0.65, 1.0))
    if nuclei:
      at, direction = np.split(np.concatenate(nuclei), 2, axis=1)
      angles = np.degrees(np.arctan2(direction[:, 1], direction[:, 0]))
      self._draw_nuclei(at, (4.2, 5.8), (1.9, 2.6), (0.6, 0.9), angles)
      # Goblet cells: pale drops between nuclei and lumen.
      drops = self._keep(self._points(GLANDS, 14.0, 0.3), epithelium, True)
      drops = drops[rng.random(len(drops)) < 0.4]
      size = rng.uniform(2.5, 4.5, (len(drops), 2)) * s
      draw_ellipses(
        lumens, drops, size, np.zeros(len(drops)), np.full(len(drops), 130.0)
      )
      drops_on_nuclei = lumens > 60
      self.nuclei[drops_on_nuclei] //= 2
    np.maximum(self.void, lumens, out=self.void)
    skin = epithelium.astype(np.float32) / 255
    e_out, h_out = 0.38 + 0.16 * self.fibre, 0.05
    e_in, h_in = 0.46 + 0.05 * self.medium, 0.16 + 0.03 * self.medium
    return h_out + skin * (h_in - h_out), e_out + skin * (e_in - e_out)

  def _lymphoid(self):
    """Sheets of small, dark, round nuclei with hardly any cytoplasm."""
    points = self._points(LYMPHOID, 7.6, 0.22)
    self._draw_nuclei(points, (2.5, 3.3), (2.3, 2.9), (0.5, 0.95))
    e = 0.30 + 0.08 * self.medium
    return 0.08 + 0.05 * self.medium, e

  def _tumour(self):
    """Solid nests of large pleomorphic nuclei between thin septa."""
    rng, s = self.rng, self.s
    nests = self._nests()
    inner = self._keep(self._points(TUMOUR, 13.2, 0.22), nests, True)
    axes, angles = self._draw_nuclei(inner, (3.8, 7.0), (3.0, 4.6), (0.62, 0.9))
    vesicular = rng.random(len(inner)) < 0.7
    shrink = np.full(vesicular.sum(), 0.4 * 255)
    draw_ellipses(
      self.nuclei,
      inner[vesicular],
      (axes[vesicular] - 1.1) * s,
      angles[vesicular],
      shrink,
    )
    nucleolus = np.full((len(inner), 2), 0.9 * s)
    offset = inner + rng.normal(0, 0.9 * s, inner.shape)
    draw_ellipses(
      self.nuclei, offset, nucleolus, angles, np.full(len(inner), 250.0)
    )
    self._spindles(self._keep(self._points(TUMOUR, 13.0, 0.4), nests, False))
    nest = _round_corners(nests, 4.0 * s)
    e_nest, h_nest = 0.40 + 0.08 * self.medium, 0.19 + 0.04 * self.medium
    e_septum, h_septum = 0.62 + 0.3 * self.fibre, 0.02
    return (
      h_septum + nest * (h_nest - h_septum),
      e_septum + nest * (e_nest - e_septum),
    )

  def _nests(self):
    """Where tumour cells lie, 255, between septa, 0."""
    nests = np.zeros(self.shape, np.uint8)
    seeds = self._points(TUMOUR, 88.0, 0.2)
    draw_polygons(nests, _voronoi_cells(seeds, 12 * self.s), 255)
    if len(seeds) <= 6:
      # A small lesion is one nest: its Voronoi cells would all be open.
      nests[:] = 255
    return nests

  def _adipose(self):
    """Large empty cells in a net of eosinophilic walls."""
    s = self.s
    empty = np.zeros(self.shape, np.uint8)
    seeds = self._points(ADIPOSE, 37.0, 0.17)
    draw_polygons(empty, _voronoi_cells(seeds, 8.5 * s), 255)
    empty = _round_corners(empty, 3.2 * s)
    # A wall also where the region ends, or its outer cells would lie open.
    inside = (self.types == ADIPOSE).astype(np.uint8)
    rim = max(1, round(4 * s / self.downsample))
    inside = cv2.erode(inside, np.ones((3, 3), np.uint8), iterations=rim)
    inside = self._enlarge(inside.astype(np.float32)) > 0.5
    np.maximum(
      self.void, (empty * inside * 232).astype(np.uint8), out=self.void
    )
    full = (empty * 255).astype(np.uint8)
    walls = self._keep(self._points(ADIPOSE, 9.5, 0.4), full, False)
    self._spindles(walls)
    return 0.17 + 0.05 * self.medium, 0.75 + 0.15 * self.fibre

  def _necrosis(self):
    """Granular debris with nuclear dust and cracks."""
    dust = self._points(NECROSIS, 7.2, 0.5)
    self._draw_nuclei(dust, (0.6, 2.0), (0.5, 1.4), (0.35, 0.95))
    ghosts = self._points(NECROSIS, 24.0, 0.4)
    self._draw_nuclei(ghosts, (3, 4.5), (2.5, 3.5), (0.2, 0.35))
    granular = 0.22 * self.medium + 0.16 * self.fine
    crack = np.clip((np.abs(self.medium) - 1.9) * 2, 0, 0.9)
    e = (0.62 + granular) * (1 - crack)
    return (0.14 + 0.3 * np.clip(granular, -0.3, 0.6)) * (1 - crack), e
