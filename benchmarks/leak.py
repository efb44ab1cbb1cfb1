"""How much of what a mask hides can be read off elsewhere in the clip.

A pixel of tissue that is hidden in one frame but lies in a visible token of
another frame need not be understood to be rebuilt: it can be copied along the
known motion. The leak is the share of such pixels among all hidden ones.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def leak(
  visible: Bool[np.ndarray, "s h w"],
  shift_px: Float[np.ndarray, "t 2"],
  patch: tuple[int, int, int],
  panel: Int[np.ndarray, " t"] | None = None,
) -> float:
  """Share of hidden pixels that some visible token of the clip shows.

  The tissue is rasterised at one pixel; shifts are rounded to whole pixels.

  Args:
    visible: Visible tokens, by time slot, row and column.
    shift_px: Upper left corner (x, y) of every frame in tissue coordinates,
      in pixels of the clip.
    patch: Pixels of a token along (t, h, w).
    panel: The panel of every frame; frames of different panels share no
      tissue. All the same if not given.

  Returns:
    A number from 0 (nothing can be copied) to 1.

  Raises:
    ValueError: If nothing is hidden, or the frames do not fill the slots.

  Example:
    One row of three tokens of one frame each, moving by one token: what the
    first frame shows at its second place, the second shows at its first.

    >>> visible = np.array([[[0, 1, 0]], [[0, 0, 0]]], bool)
    >>> shift = np.array([[0.0, 0.0], [4.0, 0.0]])
    >>> leak(visible, shift, patch=(1, 4, 4))
    0.2
  """
  visible = np.asarray(visible, bool)
  shift_px = np.asarray(shift_px)
  slots, rows, columns = visible.shape
  frames = len(shift_px)
  if frames != slots * patch[0]:
    raise ValueError(f"{frames} frames do not fill {slots} slots of {patch[0]}")
  panel = np.zeros(frames, int) if panel is None else np.asarray(panel)
  height, width = rows * patch[1], columns * patch[2]
  shift = np.round(shift_px - shift_px.min(axis=0)).astype(int)
  shown = visible.repeat(patch[1], axis=1).repeat(patch[2], axis=2)
  shown = shown.repeat(patch[0], axis=0)
  if shown.all():
    raise ValueError("the mask hides nothing: there is no leak to measure")
  hidden = leaked = 0
  for name in np.unique(panel):
    members = np.flatnonzero(panel == name)
    extent = shift[members].max(axis=0)
    tissue = np.zeros((height + extent[1], width + extent[0]), bool)
    windows = [np.s_[y : y + height, x : x + width] for x, y in shift[members]]
    for frame, window in zip(members, windows, strict=True):
      tissue[window] |= shown[frame]
    for frame, window in zip(members, windows, strict=True):
      hidden += int((~shown[frame]).sum())
      leaked += int((~shown[frame] & tissue[window]).sum())
  return leaked / hidden
