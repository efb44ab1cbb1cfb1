"""One sequence before masking, under the mask, and as the model fills it in.

Filled by the training code, drawn by `report.py`. It lives here, apart from
both, so that a report needs no model and a model no Matplotlib.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """A clip and its reconstruction at one mask ratio.

  Attributes:
    sequence_id: the sequence.
    mask_kind: `tissue`, `tube`, or `random`.
    mask_ratio: share of tokens hidden from the encoder.
    original: the frames as the model gets them, [t, h, w, 3].
    masked: the same with hidden patches blanked.
    reconstructed: visible patches as given, hidden ones as predicted.
    used_true_statistics: whether hidden patches were brought back to colour
      with the mean and standard deviation of the *true* patch. A model trained
      on normalised targets predicts neither, so the colour is then borrowed.
    loss: training loss of this clip.
  """

  sequence_id: str
  mask_kind: str
  mask_ratio: float
  original: UInt8[np.ndarray, "t h w 3"]
  masked: UInt8[np.ndarray, "t h w 3"]
  reconstructed: UInt8[np.ndarray, "t h w 3"]
  used_true_statistics: bool
  loss: float

  def __post_init__(self):
    shapes = {
      name: getattr(self, name).shape
      for name in ("original", "masked", "reconstructed")
    }
    if len(set(shapes.values())) != 1:
      raise ValueError(
        f"reconstruction of {self.sequence_id}: the three clips must have one "
        f"shape, got {shapes}"
      )
