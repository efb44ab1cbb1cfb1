"""Shape of a bag model (`mil.py`), checked before anything is built."""

import dataclasses

from wsiseq_jax.models import vit

MODELS = (
  "additive",
  "gated",
  "attention",
  "clam_sb",
  "clam_mb",
  "chowder",
  "dsmil",
  "transmil",
  "mean",
  "max",
  "instance",
)
DTYPES = ("float32", "bfloat16")
POOLINGS = ("top", "logsumexp")
INSTANCE_LOSSES = ("svm", "cross_entropy")

# Share of the auxiliary loss in the papers; all others have none.
_AUXILIARY = {"clam_sb": 0.3, "clam_mb": 0.3, "dsmil": 0.5}


@dataclasses.dataclass(frozen=True)
class MilConfig:
  """Shape of a bag model.

  Attributes:
    name: One of `MODELS`.
    width: Channels of a tile's feature.
    outputs: Logits of a slide: classes of a multi-class or multi-label head, 1
      for binary, regression and survival.
    hidden: Channels of embedded tiles (all but chowder and dsmil).
    attention_width: Channels in which attention is computed.
    dropout: Of embedded tiles and attention branches; of chowder's hidden
      layers. Rounded to a multiple of 1/256.
    tile_hidden: Hidden channels of additive's classifier of tiles; 0 makes it
      linear.
    pooling: Of the instance model: 'top' is the mean of the `top_tiles` highest
      logits, 'logsumexp' the smooth maximum.
    top_tiles: See `pooling`.
    sharpness: r of (1/r) log mean exp(r · logit).
    extremes: R of chowder: that many smallest and largest scores.
    chowder_hidden: Channels of the two hidden layers after them.
    instance_tiles: B of CLAM: that many tiles of highest and of lowest
      attention, at most half of the bag.
    instance_loss: Of CLAM's tiles, 'svm' (smooth top-1) or 'cross_entropy'.
    subtyping: Whether in CLAM classes exclude each other in every tile: the
      tiles of highest attention are then told to be none of the other classes.
    query_width: Channels of dsmil's queries.
    heads: Attention heads of transmil, of 64 channels as `hidden` = 512.
    landmarks: Of its Nyström attention.
    pinv_iterations: Of the pseudo-inverse.
    attention_dropout: Of the output of its attention.
    auxiliary_weight: Weight of the auxiliary loss; that of the bag's loss is
      what is left to 1. None takes the paper's: 0.3 of CLAM, 0.5 of DSMIL, 0 of
      all others, which have no auxiliary loss.
    dtype: Compute dtype of matrix products, 'float32' or 'bfloat16'.
    remat: What the backward pass recomputes: 'none' stores all of a tile,
      'dots' recomputes all but matrix products, 'full' stores nothing.
    chunk_tiles: Tiles computed at once.

  Raises:
    ValueError: At construction, naming the config key that cannot be.

  Example:
    >>> MilConfig(width=1024, outputs=3, name="clam_mb").loss_weights
    (0.7, 0.3)
  """

  name: str = "additive"
  width: int = 1024
  outputs: int = 1
  hidden: int = 512
  attention_width: int = 256
  dropout: float = 0.25
  tile_hidden: int = 0
  pooling: str = "top"
  top_tiles: int = 10
  sharpness: float = 4.0
  extremes: int = 5
  chowder_hidden: tuple[int, int] = (200, 100)
  instance_tiles: int = 8
  instance_loss: str = "svm"
  subtyping: bool = False
  query_width: int = 128
  heads: int = 8
  landmarks: int = 256
  pinv_iterations: int = 6
  attention_dropout: float = 0.1
  auxiliary_weight: float | None = None
  dtype: str = "float32"
  remat: str = "dots"
  chunk_tiles: int = 4096

  def __post_init__(self):
    for field, allowed in (
      ("name", MODELS),
      ("pooling", POOLINGS),
      ("instance_loss", INSTANCE_LOSSES),
      ("dtype", DTYPES),
      ("remat", vit.REMAT),
    ):
      if getattr(self, field) not in allowed:
        raise ValueError(
          f"config.model.{field} = {getattr(self, field)!r}: must be one of "
          f"{allowed}"
        )
    for field in (
      "width", "outputs", "hidden", "attention_width", "top_tiles", "extremes",
      "instance_tiles", "query_width", "heads", "landmarks", "pinv_iterations",
      "chunk_tiles",
    ):  # fmt: skip
      if getattr(self, field) < 1:
        raise ValueError(
          f"config.model.{field} = {getattr(self, field)}: must be at least 1"
        )
    for field in ("dropout", "attention_dropout"):
      if not 0 <= getattr(self, field) <= 0.99:
        raise ValueError(
          f"config.model.{field} = {getattr(self, field)}: must be in [0, 0.99]"
        )
    if self.sharpness <= 0:
      raise ValueError(
        f"config.model.sharpness = {self.sharpness}: must be positive"
      )
    if self.tile_hidden < 0 or (self.tile_hidden and self.name != "additive"):
      raise ValueError(
        f"config.model.tile_hidden = {self.tile_hidden}: must be 0, or for "
        f"config.model.name = 'additive' (here {self.name!r}) positive"
      )
    if len(self.chowder_hidden) != 2 or min(self.chowder_hidden) < 1:
      raise ValueError(
        f"config.model.chowder_hidden = {self.chowder_hidden}: must be two "
        "positive numbers"
      )
    if self.name == "transmil" and self.hidden % self.heads:
      raise ValueError(
        f"config.model.heads = {self.heads} does not divide "
        f"config.model.hidden = {self.hidden}"
      )
    weight = self.auxiliary_weight
    if weight is not None and not 0 <= weight <= 1:
      raise ValueError(
        f"config.model.auxiliary_weight = {weight}: must be in [0, 1]"
      )
    if weight and self.name not in _AUXILIARY:
      raise ValueError(
        f"config.model.auxiliary_weight = {weight}: {self.name!r} has no "
        f"auxiliary loss; {tuple(_AUXILIARY)} have"
      )

  @property
  def loss_weights(self) -> tuple[float, float]:
    """Weights of the bag's loss and of the auxiliary loss; their sum is 1."""
    weight = self.auxiliary_weight
    if weight is None:
      weight = _AUXILIARY.get(self.name, 0.0)
    return 1 - weight, weight

  @property
  def classes(self) -> int:
    """Classes that CLAM tells apart: one logit stands for two.

    Example:
      >>> MilConfig(outputs=1).classes, MilConfig(outputs=3).classes
      (2, 3)
    """
    return max(2, self.outputs)

  @property
  def branches(self) -> int:
    """Attention maps of a model of the gated kind."""
    if self.name == "clam_mb":
      return self.classes
    return self.outputs if self.name == "additive" else 1
