"""What every bag model has; its own settings lie beside each model's module."""

import dataclasses
from typing import Annotated, ClassVar, Literal

from data_prep.files.schema import Range
from wsiseq_jax.models import vit

Count = Annotated[int, Range(1)]
# Of a multiple of 1/256, see `bag.dropout`.
Rate = Annotated[float, Range(0, 0.99)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilConfig:
  """Shape of a bag model."""

  name: str  # one of `mil.MODELS`
  width: Count  # channels of a tile's feature
  # Logits of a slide: classes of a multi-class or multi-label target, 1 for
  # binary, regression and survival.
  outputs: Count = 1
  # Compute dtype of matrix products.
  dtype: Literal["float32", "bfloat16"] = "float32"
  # What the backward pass recomputes: 'none' stores all of a tile, 'dots'
  # recomputes all but matrix products, 'full' stores nothing.
  remat: Literal[vit.REMAT] = "dots"
  chunk_tiles: Count = 4096  # tiles computed at once

  # A field of models that have an auxiliary loss.
  auxiliary_weight: ClassVar[float] = 0.0

  @property
  def loss_weights(self) -> tuple[float, float]:
    """Weights of the bag's loss and of the auxiliary loss; their sum is 1."""
    return 1 - self.auxiliary_weight, self.auxiliary_weight
