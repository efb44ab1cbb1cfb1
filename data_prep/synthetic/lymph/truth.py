"""What is known about a synthetic slide of a lymph node, and its files.

How much of a tile is tumour, and the lesions as Camelyon's annotations are:
polygons in ASAP's XML.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from data_prep.synthetic import slides


def tumour_share(
  truth: slides.Truth,
  level0_xy: Float[np.ndarray, "m 2"] | Int[np.ndarray, "m 2"],
  side: int | float | np.integer | np.floating,
) -> Float[np.ndarray, " m"]:
  """Share of each tile that is tumour: the truth about tiles."""
  table = np.pad(np.cumsum(np.cumsum(truth.lesions > 0, 0), 1), ((1, 0),) * 2)
  height, width = truth.lesions.shape
  xy = np.asarray(level0_xy, np.float64).reshape(-1, 2)
  low = np.round(xy / truth.downsample).astype(int)
  high = np.round((xy + side) / truth.downsample).astype(int)
  area = np.maximum((high - low).prod(1), 1)
  low = np.clip(low, 0, (width, height))
  high = np.clip(high, 0, (width, height))
  found = table[high[:, 1], high[:, 0]] - table[low[:, 1], high[:, 0]]
  found += table[low[:, 1], low[:, 0]] - table[high[:, 1], low[:, 0]]
  return found / area


def outline(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "v 2"]:
  """The outline of one piece along the edges of its pixels.

  Drawn and filled it gives the same mask again; a line through the centres of
  the outermost pixels would lose half of them.

  Example:
    >>> outline(np.ones((1, 2), bool)).tolist()
    [[0.0, 0.0], [0.0, 1.0], [2.0, 1.0], [2.0, 0.0]]
  """
  # At twice the size every pixel edge lies between two pixels.
  twice = np.kron(mask, np.ones((2, 2), np.uint8)).astype(np.uint8)
  rings, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
  ring = (max(rings, key=len)[:, 0] + 1) // 2
  ring = ring[(ring != np.roll(ring, 1, axis=0)).any(1)]
  before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
  return ring[(before != after).any(1)].astype(np.float64)


def annotation_xml(truth: slides.Truth) -> str:
  """The lesions of a slide as an ASAP file of Camelyon."""
  lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "  <Annotations>"]
  for number, kind in enumerate(truth.lesion_kinds, 1):
    lines.append(
      f'    <Annotation Name="{number} {kind}" Type="Polygon" '
      'PartOfGroup="Tumor" Color="#F4FA58">'
    )
    lines.append("      <Coordinates>")
    ring = outline(truth.lesions == number) * truth.downsample
    for order, (x, y) in enumerate(ring.tolist()):
      lines.append(
        f'        <Coordinate Order="{order}" X="{x:g}" Y="{y:g}" />'
      )
    lines += ["      </Coordinates>", "    </Annotation>"]
  lines += [
    "  </Annotations>",
    "  <AnnotationGroups>",
    '    <Group Name="Tumor" PartOfGroup="None" Color="#F4FA58">',
    "      <Attributes />",
    "    </Group>",
    "  </AnnotationGroups>",
    "</ASAP_Annotations>",
  ]
  return "\n".join(lines) + "\n"
