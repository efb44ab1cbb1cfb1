"""Where what lies on a synthetic slide of a lymph node.

One or two sections of node on glass, at a coarse resolution: a capsule, the
sinus below it, cortex with follicles (a dark mantle round a pale germinal
centre), sinuses between cords near the hilum, trabeculae, vessels, fat around;
and metastases.

Cells have their true size. A node of 6 mm does not fit on a slide of 2 mm, so
what is larger than cells and follicles is drawn at about 0.3 of its length: a
macrometastasis (over 2 mm in reality) is 550 to 1000 um here. The limit between
isolated tumour cells and metastases that FROC uses, 275 um, is *not* scaled,
and no drawn lesion lies near it: micrometastases are 290 um and more, isolated
tumour cells less than 180 um, so that also after dilation by 37.5 um, as the
official evaluation does, each falls on its side.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from data_prep.synthetic import texture
from data_prep.synthetic.lymph import lesions
from data_prep.synthetic.lymph.texture import (
  ADIPOSE,
  CRUSH,
  GERMINAL,
  LYMPH_TYPES,
  LYMPHOID,
  MANTLE,
  NECROSIS,
  SINUS,
  STROMA,
  TUMOUR,
  VESSEL,
)

Number = int | float | np.integer | np.floating
METASTASES = ("none", "macro", "micro", "itc")
# Lesions further apart than 75 um stay apart in the FROC.
_APART_UM = 160.0


@dataclasses.dataclass(frozen=True, eq=False)
class NodeLayout:
  """Where what lies; maps are at the layout's resolution."""

  types: Int[np.ndarray, "h w"]  # index into `LYMPH_TYPES`; -1 = glass
  # Number of the region, whose colour is its own; -1 = glass.
  regions: Int[np.ndarray, "h w"]
  lesions: Int[np.ndarray, "h w"]  # 0 = none, else the number of the lesion
  lesion_kinds: tuple[str, ...]  # kind of lesion 1, 2, ..
  vessels: Float[np.ndarray, "v 3"]  # x, y, outer radius, in layout pixels
  # Distance from the node's edge, negative outside of it.
  depth_um: Float[np.ndarray, "h w"]
  around_um: Float[np.ndarray, "h w"]  # position along the edge


def layout(
  rng: np.random.Generator, shape: tuple[int, int], um: Number, kind: str
) -> NodeLayout:
  """Draws the plan of one slide."""
  return Plan(rng, shape, um).draw(kind)


class Plan:
  """A slide while it is being drawn; lengths in um unless they end in px."""

  def __init__(self, rng, shape, um):
    self.rng, self.shape, self.um = rng, shape, um
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    self.x, self.y = x * um, y * um
    self.types = np.full(shape, -1, np.int8)
    self.regions = np.full(shape, -1, np.int32)
    self.lesions = np.zeros(shape, np.int16)
    # Regions 0 to 9 are the types'; what has a colour of its own comes after.
    self.count = len(LYMPH_TYPES)
    self.vessels = []

  def draw(self, kind: str) -> NodeLayout:
    """Draws everything, what lies on top last."""
    self._nodes()
    self._frame()
    self._medulla()
    self._follicles()
    self._crushed()
    self._vessels()
    kinds = self._metastases(kind)
    return NodeLayout(
      types=self.types,
      regions=self.regions,
      lesions=self.lesions,
      lesion_kinds=kinds,
      vessels=np.array(self.vessels, np.float32).reshape(-1, 3),
      depth_um=self.depth,
      around_um=self.around,
    )

  def noise(self, sigma: Number) -> np.ndarray:
    """Noise of a grain in um, over the whole plan."""
    return texture.noise(self.rng, self.shape, (sigma / self.um,) * 2)

  def put(self, mask: np.ndarray, kind: int, is_own: bool = False) -> None:
    """Makes a place a type; `is_own`: as a region with its own colour."""
    self.types[mask] = kind
    self.regions[mask] = self.count if is_own else kind
    self.count += is_own

  def disc(
    self, x: Number, y: Number, radius: Number, rough: Number
  ) -> np.ndarray:
    """An irregular disc; radius in um, middle in px."""
    r = np.hypot(self.x - x * self.um, self.y - y * self.um) / radius
    near = r < 1 + 4 * rough
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    sigma = max(radius / 2.2 / self.um, 1.0)
    wobble = texture.noise(self.rng, r[box].shape, (sigma, sigma))
    disc = np.zeros(self.shape, bool)
    disc[box] = r[box] + rough * wobble < 1
    return disc

  def pick(self, free: np.ndarray) -> tuple[int, int] | None:
    """A random pixel (x, y) of a mask; None of an empty one."""
    found = np.flatnonzero(free)
    if not len(found):
      return None
    y, x = divmod(int(found[self.rng.integers(len(found))]), self.shape[1])
    return x, y

  def _nodes(self) -> None:
    """One or two sections: rounded, dented, with a ragged edge."""
    rng = self.rng
    height, width = self.shape[0] * self.um, self.shape[1] * self.um
    sections = 1 + int(rng.random() < 0.3)
    if sections == 1:
      plans = [(0.5, 0.5, rng.uniform(0.42, 0.46), rng.uniform(0.38, 0.44))]
    else:
      plans = [
        (0.265, 0.5, rng.uniform(0.2, 0.22), rng.uniform(0.36, 0.44)),
        (0.735, 0.5, rng.uniform(0.2, 0.22), rng.uniform(0.36, 0.44)),
      ]
    if rng.random() < 0.5:
      plans = [(y, x, b, a) for x, y, a, b in plans]
    wobble = 0.05 * self.noise(150) + 0.012 * self.noise(30)
    radii, arounds = [], []
    for x, y, a, b in plans:
      u = (self.x - x * width) / (a * width)
      v = (self.y - y * height) / (b * height)
      radii.append((np.abs(u) ** 2.8 + np.abs(v) ** 2.8) ** (1 / 2.8) + wobble)
      # Mirrored at one axis: a full turn would tear the fibres at its end.
      side = (a * width + b * height) / 2
      arounds.append(np.abs(np.arctan2(v, u)) * side)
    near = np.argmin(radii, axis=0)
    r = np.min(radii, axis=0)
    self.around = np.choose(near, arounds).astype(np.float32)
    self.node = r < 1
    if sections == 2:
      # A gap, should the wobble make them touch.
      self.node &= np.abs(radii[0] - radii[1]) > 0.12
    parts, _ = ndimage.label(self.node)
    large = np.bincount(parts.ravel())[1:] > 0.1 * self.node.sum()
    self.node = np.isin(parts, 1 + np.flatnonzero(large))
    self.node = ndimage.binary_fill_holes(self.node)
    inside, outside = lesions.distance(self.node), lesions.distance(~self.node)
    self.depth = np.where(self.node, inside, -outside) * np.float32(self.um)

  def _frame(self) -> None:
    """Fat, capsule, subcapsular sinus, lymphoid tissue, trabeculae, hilum."""
    rng, depth = self.rng, self.depth
    reach = 190 * np.clip(self.noise(190) - 0.3, 0, 1) + 12 * self.noise(25)
    self.put(~self.node & (-depth < reach), ADIPOSE)
    margin = int(24 / self.um) + 1
    edge = np.ones(self.shape, bool)
    edge[margin:-margin, margin:-margin] = False
    self.types[edge & ~self.node] = self.regions[edge & ~self.node] = -1
    self.put(self.node, LYMPHOID)
    capsule = np.clip(24 + 9 * self.noise(80), 10, None)
    self.put((depth > 0) & (depth < capsule), STROMA)
    width = np.clip(12 + 16 * self.noise(120), 0, 55)
    self.put((depth >= capsule) & (depth < capsule + width), SINUS)
    # Trabeculae: from the capsule inwards.
    beams = np.zeros(self.shape, np.uint8)
    gy, gx = np.gradient(cv2.GaussianBlur(depth, (0, 0), 60 / self.um))
    for _ in range(rng.integers(3, 7)):
      start = self.pick((depth > 5) & (depth < 15))
      line, point = [], np.array(start, float)
      turn = rng.normal(0, 0.5)
      for _ in range(rng.integers(6, 16)):
        x, y = np.clip(point, 0, np.array(self.shape[::-1]) - 1).astype(int)
        line.append((x, y))
        turn += rng.normal(0, 0.2)
        angle = np.arctan2(gy[y, x], gx[y, x]) + turn
        point += np.array([np.cos(angle), np.sin(angle)]) * 20 / self.um
      thick = max(1, round(rng.uniform(10, 20) / self.um))
      cv2.polylines(beams, [np.array(line, np.int32)], False, 1, thick)
    self.put((beams > 0) & self.node, STROMA)
    self.hilum = self.pick((depth > 0) & (depth < 2 * self.um))
    radius = 0.3 * float(depth.max())
    hilum = self.disc(*self.hilum, radius, 0.16) & (depth > -25)
    fat = self.noise(40) > 0
    self.put(hilum & fat, ADIPOSE)
    self.put(hilum & ~fat, STROMA)

  def _medulla(self) -> None:
    """Winding sinuses, full of histiocytes, between cords near the hilum."""
    rng = self.rng
    x, y = self.hilum
    reach = float(self.depth.max()) * rng.uniform(0.9, 1.6)
    apart = np.hypot(self.x - x * self.um, self.y - y * self.um)
    inside = apart + 60 * self.noise(80) < reach
    self.medulla = inside & (self.types == LYMPHOID)
    width = rng.uniform(0.3, 0.85)
    sinus = np.abs(self.noise(rng.uniform(24, 42))) < width
    self.put(self.medulla & sinus, SINUS)

  def _follicles(self) -> None:
    """Germinal centres with their mantle; at least one on each slide."""
    rng = self.rng
    free = (self.depth > 75) & (self.types == LYMPHOID) & ~self.medulla
    wanted = 3 + rng.poisson(6)
    for _ in range(wanted):
      radius = rng.uniform(50, 125)
      mantle = rng.uniform(22, 40)
      room = lesions.distance(free) * self.um > radius + mantle
      place = self.pick(room)
      if place is None and self.count == len(LYMPH_TYPES):
        # No room for a first one: as large as the place allows.
        radius = max(0.7 * float(lesions.distance(free).max()) * self.um, 35.0)
        mantle = 0.35 * radius
        where = np.argmax(lesions.distance(self.types == LYMPHOID))
        place = divmod(int(where), self.shape[1])[::-1]
      if place is None:
        continue
      disc = self.disc(*place, radius, 0.08) & self.node
      r = lesions.distance(~disc) * self.um
      wide = mantle * (1 + 0.25 * self.noise(40))
      self.put(~disc & (r < wide) & (self.types == LYMPHOID), MANTLE)
      self.put(disc, GERMINAL, is_own=True)
      free &= r > mantle + 15

  def _crushed(self) -> None:
    """Squeezed tissue at the edges of the section: smeared nuclei."""
    for _ in range(self.rng.integers(1, 3)):
      radius = self.rng.uniform(80, 170)
      room = (self.types == LYMPHOID) & (self.depth < 220)
      place = self.pick(room)
      if place is None:
        continue
      blob = self.disc(*place, radius, 0.2) & np.isin(
        self.types, (LYMPHOID, SINUS, MANTLE)
      )
      if blob.any():
        self.put(blob, CRUSH, is_own=True)

  def _vessels(self) -> None:
    """Single venules, knots of vessels that look like glands, the hilum's."""
    rng = self.rng
    places = np.isin(self.types, (LYMPHOID, SINUS)) & (self.depth > 40)
    for _ in range(rng.integers(6, 14)):
      self._vessel(self.pick(places), rng.uniform(10, 19))
    for _ in range(rng.integers(1, 3)):
      middle = self.pick(places)
      for _ in range(rng.integers(5, 11)):
        if middle is not None:
          shift = rng.normal(0, 55 / self.um, 2)
          self._vessel(np.add(middle, shift), rng.uniform(14, 34))
    for _ in range(rng.integers(2, 5)):
      shift = rng.normal(0, 70 / self.um, 2)
      self._vessel(np.add(self.hilum, shift), rng.uniform(22, 50))

  def _vessel(self, place, radius) -> None:
    if place is None:
      return
    x, y = place
    apart = [
      np.hypot(x - v[0], y - v[1]) - v[2] - radius / self.um
      for v in self.vessels
    ]
    inner = 0 <= x < self.shape[1] and 0 <= y < self.shape[0]
    if not inner or min(apart, default=9.0) * self.um < 4:
      return
    row, column = int(y), int(x)
    if self.depth[row, column] < radius or self.types[row, column] == GERMINAL:
      return
    r = np.hypot(self.x - x * self.um, self.y - y * self.um)
    self.put(r < radius, VESSEL)
    self.vessels.append((x, y, radius / self.um))

  def _metastases(self, kind) -> tuple[str, ...]:
    """The lesions of a slide: the one that names it, and lesser ones."""
    rng = self.rng
    plan = {
      "none": [],
      "macro": ["macro"] + ["micro"] * int(rng.random() < 0.35),
      "micro": ["micro"] * (1 + int(rng.random() < 0.3)),
      "itc": ["itc"] * int(rng.integers(1, 4)),
    }[kind]
    if kind in ("macro", "micro") and rng.random() < 0.4:
      plan += ["itc"] * int(rng.integers(1, 3))
    self.room = self.node & (self.depth > 30)
    kinds = []
    for wanted in plan:
      mask = lesions.find(self, wanted)
      if mask is None:
        # The one that names the slide must be there; others may lack room.
        if not kinds:
          raise ValueError(
            f"no room for a {wanted} metastasis on a slide of "
            f"{self.shape[1] * self.um:.0f} x {self.shape[0] * self.um:.0f} um"
          )
        continue
      kinds.append(wanted)
      self.lesions[mask] = len(kinds)
      self.put(mask, TUMOUR, is_own=True)
      if wanted == "macro" and rng.random() < 0.6:
        dead = mask & (lesions.distance(mask) * self.um > 90)
        dead &= self.noise(70) > 0.7
        self.put(dead, NECROSIS)
      self.room &= lesions.distance(self.lesions == 0) * self.um > 0
      self.room &= lesions.distance(~mask) * self.um > _APART_UM
    x, y = np.array(self.vessels, np.float32).reshape(-1, 3)[:, :2].T
    # What a metastasis has grown over is gone.
    alive = self.types[y.astype(int), x.astype(int)] == VESSEL
    self.vessels = [v for v, ok in zip(self.vessels, alive, strict=True) if ok]
    return tuple(kinds)
