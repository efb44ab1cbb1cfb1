"""Which tokens the encoder sees and which the decoder rebuilds.

A clip is a grid of tokens (t, h, w); one token is a tubelet of a few frames.
All masks have a fixed number of visible tokens, so that shapes are static.

Why motion-aligned tubes. VideoMAE hides the same positions in every frame
("tube"), so that nothing can be copied along time from a video that hardly
moves. In a drift sequence everything moves, at a constant 1.3 to 2 patches a
frame: a tube fixed in the image then hides nothing, since the hidden tissue
shows up in a visible position a frame later. At ratio 0.9, 40 to 54 % of the
hidden pixels are visible elsewhere in the clip; at 0.4, 97 %.

The kind `tissue` chooses what to show in the coordinates of the tissue. Tissue
is cut into bands one patch wide along the direction of travel, the bands into
runs of `run_patches` patches with a random phase; each run draws one number,
tokens take the number of the run in which they lie, and the lowest are
visible. Of the run at the threshold a connected part is shown. What remains as
leak comes from tokens across the end of a run; `evals.leak` measures it, and
`benchmarks/mask_leak.py` has the table from which the default was chosen.

Reference: Tong et al., "VideoMAE", NeurIPS 2022 (tube masking); Wang et al.,
"VideoMAE V2", CVPR 2023 (running-cell decoder masking).
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from data_prep.files.schema import Range, Rule

KINDS = ("tissue", "tube", "random")
DECODERS = ("all", "running_cell")
# Rows and columns of the table of random numbers that runs look up, modulo its
# size. Larger than any clip, so that a wrap round merely repeats a number.
_TABLE = (512, 64)


_OF_FOUR = Rule(
  lambda part: part in (0.25, 0.5, 0.75), "0.25, 0.5 or 0.75 of four places"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskSettings:
  """How to mask: the block `mask` of a config."""

  # `tissue` (motion-aligned tubes), `tube` or `random`.
  kind: Literal[KINDS] = "tissue"
  # Part of the positions of a frame that is hidden, rounded down.
  ratio: Annotated[float, Range(0.01, 0.99)] = 0.9
  # `all` hidden tokens are rebuilt, or those in a `running_cell`.
  decoder: Literal[DECODERS] = "all"
  # Part dropped by the running cell.
  decoder_ratio: Annotated[float, _OF_FOUR] = 0.5
  # Length of a run along the travel, for `tissue`, in patches.
  run_patches: Annotated[float, Range(1)] = 8.0


@dataclasses.dataclass(frozen=True)
class MaskSpec(MaskSettings):
  """How to mask a grid of tokens.

  Raises:
    ValueError: At construction, naming the config key that cannot be.
  """

  grid: tuple[int, int, int]  # tokens along (t, h, w)
  patch: tuple[int, int, int]  # pixels of a token along (t, h, w)

  def __post_init__(self):
    t, h, w = self.grid
    if not 0 < self.visible < t * h * w:
      raise ValueError(
        f"config.mask.ratio = {self.ratio} leaves {self.visible} of "
        f"{t * h * w} tokens visible (grid {self.grid}): both parts need at "
        "least one"
      )
    if self.decoder == "running_cell" and (h % 2 or w % 2):
      raise ValueError(
        f"config.mask.decoder = 'running_cell' needs an even grid, not {h}x{w}"
      )

  @property
  def visible(self) -> int:
    """Visible tokens of a clip, k: the same for every kind of mask."""
    t, h, w = self.grid
    # The small number undoes 0.29 * 100 = 28.999….
    return t * (h * w - int(self.ratio * h * w + 1e-6))

  @property
  def decoded(self) -> int:
    """Tokens the decoder rebuilds, m."""
    t, h, w = self.grid
    if self.decoder == "all":
      return t * h * w - self.visible
    return round(t * h * w * (1 - self.decoder_ratio))


class TokenMask(NamedTuple):
  """Token indices in the order (t, h, w), ascending."""

  visible: Int[Array, "b k"]  # what the encoder sees
  decode: Int[Array, "b m"]  # what the decoder rebuilds
  # [b, m], 1 where the rebuilt token counts in the loss (it was hidden from the
  # encoder), else 0.
  weight: Float[Array, "b m"]


def travel_direction(shift_px: Float[Array, "t 2"]) -> Float[Array, "2"]:
  """Unit vector of the window's travel over the tissue; +x if it stands."""
  travel = shift_px[-1] - shift_px[0]
  length = jnp.sqrt(jnp.sum(travel**2))
  along_x = jnp.asarray([1.0, 0.0])
  return jnp.where(length > 1e-3, travel / jnp.maximum(length, 1e-3), along_x)


def _tissue_scores(
  key: Key[Array, ""],
  shift_px: Float[Array, "t 2"],
  panel: Int[Array, " t"],
  spec: MaskSpec,
) -> Float[Array, " n"]:
  """A number for each token: that of its run, and its place in the run."""
  slots, rows, columns = spec.grid
  _, patch_h, patch_w = spec.patch
  # A tubelet shows its frames one after the other: take their middle.
  shift = shift_px.reshape(slots, -1, 2).mean(axis=1)
  panel = panel.reshape(slots, -1)[:, 0]
  y = (jnp.arange(rows) + 0.5) * patch_h
  x = (jnp.arange(columns) + 0.5) * patch_w
  x = shift[:, 0, None, None] + x[None, None, :]
  y = shift[:, 1, None, None] + y[None, :, None]

  ex, ey = travel_direction(shift_px)
  along = x * ex + y * ey
  across = y * ex - x * ey
  # Along an axis of the image, bands coincide with rows of tokens. Across the
  # grid they cannot, and bands of two patches leak less than bands of one.
  aligned = jnp.abs(ex * ey) < 1e-2
  # Bands and runs are measured in patches; a patch need not be square.
  patch_along = jnp.abs(ex) * patch_w + jnp.abs(ey) * patch_h
  patch_across = jnp.abs(ex) * patch_h + jnp.abs(ey) * patch_w
  thickness = jnp.where(aligned, 1.0, 2.0) * patch_across
  band_key, phase_key, number_key = jax.random.split(key, 3)
  # With the first token's centre in the middle of a band, rounding errors
  # cannot move a row of tokens from one band to the next.
  offset = jnp.where(aligned, 0.5, jax.random.uniform(band_key))
  band = jnp.floor((across - across.min()) / thickness + offset)
  # Panels share no tissue: their bands must not share numbers.
  band = band.astype(jnp.int32) + 61 * panel[:, None, None]
  band = jnp.mod(band, _TABLE[0])
  phase = jnp.take(jax.random.uniform(phase_key, (_TABLE[0],)), band)
  place = (along - along.min()) / (spec.run_patches * patch_along) + phase
  run = jnp.floor(place)
  number = jax.random.uniform(number_key, (_TABLE[0] * _TABLE[1],))
  index = band * _TABLE[1] + jnp.mod(run.astype(jnp.int32), _TABLE[1])
  # The place within the run breaks ties, so that of a run that is only partly
  # shown, one connected stretch of tissue is shown.
  return (jnp.take(number, index) + 1e-4 * (place - run)).ravel()


def _scores(key, shift_px, panel, spec: MaskSpec) -> Float[Array, " n"]:
  slots, rows, columns = spec.grid
  if spec.kind == "tissue":
    return _tissue_scores(key, shift_px, panel, spec)
  if spec.kind == "tube":
    return jnp.tile(jax.random.uniform(key, (rows * columns,)), slots)
  return jax.random.uniform(key, (slots * rows * columns,))


def running_cell(phase: Int[Array, ""], spec: MaskSpec) -> Int[Array, " m"]:
  """Token positions that a running-cell decoder mask keeps, ascending.

  A cell of 2 × 2 positions drops some of its four places; the places move on
  by one at each time slot, so that every position is kept at some time.

  Args:
    phase: 0 to 3, the place at which the first slot starts.
    spec: The grid and the part to drop.
  """
  slots, rows, columns = spec.grid
  dropped = round(4 * spec.decoder_ratio)
  place = (
    2 * (jnp.arange(rows) % 2)[:, None] + (jnp.arange(columns) % 2)[None, :]
  )
  turn = phase + jnp.arange(slots)
  is_kept = jnp.mod(place[None] - turn[:, None, None], 4) >= dropped
  # A stable sort of the flags puts the kept positions first, in order.
  return jnp.argsort(~is_kept.ravel(), stable=True)[: spec.decoded]


def make_mask(
  key: Key[Array, ""],
  shift_px: Float[Array, "b t 2"],
  panel: Int[Array, "b t"],
  spec: MaskSpec,
) -> TokenMask:
  """Draws a mask for every clip of a batch.

  Args:
    key: The key of this step.
    shift_px: Where each frame lies in its panel (x, y), in pixels of the clip;
      `Clips.shift_px`. Used by the kind `tissue` alone.
    panel: Which panel each frame comes from; `Clips.panel`.
    spec: How to mask.

  Returns:
    Visible and decoded tokens of every clip.

  Raises:
    ValueError: If the frames do not fill the grid.
  """
  b, frames = panel.shape
  if frames != spec.grid[0] * spec.patch[0]:
    raise ValueError(
      f"{frames} frames do not make a grid of {spec.grid} tokens of "
      f"{spec.patch}: data.frames and model.patch disagree"
    )

  def one(key, shift_px, panel):
    score_key, cell_key = jax.random.split(key)
    order = jnp.argsort(_scores(score_key, shift_px, panel, spec), stable=True)
    visible = jnp.sort(order[: spec.visible])
    if spec.decoder == "all":
      decode = jnp.sort(order[spec.visible :])
      return TokenMask(visible, decode, jnp.ones(decode.shape))
    decode = running_cell(jax.random.randint(cell_key, (), 0, 4), spec)
    # The rank of a token says whether it is among the visible ones.
    rank = jnp.argsort(order)
    weight = (jnp.take(rank, decode) >= spec.visible).astype(jnp.float32)
    return TokenMask(visible, decode, weight)

  return jax.vmap(one)(jax.random.split(key, b), shift_px, panel)


def is_visible(mask: TokenMask, spec: MaskSpec) -> Array:
  """The visible tokens as booleans [b, t, h, w], for pictures and tests."""
  slots, rows, columns = spec.grid
  flags = jax.nn.one_hot(mask.visible, slots * rows * columns).sum(axis=1) > 0
  return flags.reshape(-1, slots, rows, columns)
