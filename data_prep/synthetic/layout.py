"""Where which tissue lies on a synthetic slide.

The layout is made at a coarse resolution: an irregular piece of tissue on
glass, cut into regions like a warped Voronoi diagram, one tissue type a region,
and lesions dropped well inside.
"""

import numpy as np
from scipy import ndimage, spatial

from data_prep.synthetic import texture


def _blob(rng, shape, centre, radius, d, s) -> np.ndarray:
  """An irregular disc; centre and radius in layout pixels."""
  y, x = np.mgrid[: shape[0], : shape[1]]
  r = np.hypot(x - centre[0], y - centre[1]) / radius
  rough = max(radius / 3, 2.0)
  return r + 0.16 * texture.noise(rng, shape, (rough, rough)) < 1


def _outline(rng, shape, s, d) -> np.ndarray:
  """Tissue on glass: one irregular piece, holes filled, crumbs removed."""
  y, x = np.mgrid[: shape[0], : shape[1]]
  ny = 2 * (y + 0.5) / shape[0] - 1
  nx = 2 * (x + 0.5) / shape[1] - 1
  # A rounded rectangle uses the slide better than an ellipse.
  r = (nx**4 + ny**4) ** 0.25
  sigma = 110 * s / d
  field = r + 0.075 * texture.noise(rng, shape, (sigma, sigma))
  field += 0.008 * texture.noise(rng, shape, (20 * s / d, 20 * s / d))
  mask = ndimage.binary_fill_holes(field < 0.83)
  parts, count = ndimage.label(mask)
  size = np.bincount(parts.ravel(), minlength=count + 1)[1:]
  return np.isin(parts, 1 + np.flatnonzero(size > 0.05 * mask.sum()))


def layout(rng, shape, d, s, region_um, label):
  """Where which tissue lies."""
  tissue = _outline(rng, shape, s, d)
  spacing = region_um * s / d
  seeds = texture.scatter(rng, np.ones(shape, bool), 1, spacing, 0.16)
  if len(seeds) < 6:
    seeds = rng.uniform(0, 1, (6, 2)).astype(np.float32) * shape[::-1]
  y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
  for size, reach in ((110, 55), (24, 10)):
    sigma = size * s / d
    x += reach * s / d * texture.noise(rng, shape, (sigma, sigma))
    y += reach * s / d * texture.noise(rng, shape, (sigma, sigma))
  _, regions = spatial.cKDTree(seeds).query(np.stack([x, y], -1))
  regions = np.where(tissue, regions, -1).astype(np.int32)
  # The largest regions first, so that every type gets a large one.
  area = np.bincount(regions[tissue], minlength=len(seeds))
  normal = [k for k in range(6) if k != texture.TUMOUR]
  rounds = -(-len(seeds) // len(normal))
  order = np.concatenate([rng.permutation(normal) for _ in range(rounds)])
  type_of = np.empty(len(seeds), np.int8)
  type_of[np.argsort(-area, kind="stable")] = order[: len(seeds)]
  types = np.where(tissue, type_of[regions], -1).astype(np.int8)

  lesions = np.zeros(shape, np.int16)
  radii = {
    "macro": [rng.uniform(0.22, 0.27) * min(shape)],
    "micro": list(rng.uniform(48, 80, 3) * s / d),
    "negative": [],
  }[label]
  # Lesions lie well inside the tissue and apart from each other.
  room = ndimage.distance_transform_edt(np.pad(tissue, 1))[1:-1, 1:-1]
  for radius in radii:
    free = (room > min(1.2 * radius, 0.9 * room.max())) & (lesions == 0)
    candidates = np.argwhere(free)
    centre = candidates[rng.integers(len(candidates))][::-1]
    blob = _blob(rng, shape, centre, radius, d, s) & tissue & (lesions == 0)
    # One lesion is one piece: the noise may have cut off islands.
    parts, _ = ndimage.label(blob)
    sizes = np.bincount(parts[blob])
    blob = parts == sizes.argmax()
    number = lesions.max() + 1
    lesions[blob] = number
    types[blob] = texture.TUMOUR
    regions[blob] = len(seeds) + number - 1
    around = ndimage.binary_dilation(blob, iterations=int(60 * s / d) + 1)
    room[around] = 0
  return types, regions, lesions, (label,) * int(lesions.max())
