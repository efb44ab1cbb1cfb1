r"""Region prototypes across pictures that share a class: the rules of RPNet.

    partner     a picture of the batch with a class of this one
    mask m      where the foreground is, 0 or 1
    prototype   p = Σ m f / (Σ m + 5e-4)             full
                the same over a random half of m     part
    similarity  cosine of each position with p, the highest over
                {own, partner} × {full, part} × {two resolutions}
    factor      1.3 · similarity / (its maximum + 1e-5), smoothed
    agreement   mean of (norm(a) − norm(b))² where the label is 1

All arrays are NHWC; `valid` [b,h,w] is 1 on tissue, 0 on glass and in padding,
which have no part in any maximum, mean or mask.

Deviations from the paper's code. The partner comes from the same batch, so that
the network reads each picture once; without another picture of its class a
picture is its own partner, and a picture without class (a certain negative) is
so too, with an empty mask. Similarities below 0 count as 0: as factors they
would turn features round. Prototypes of negatives are ours.

Reference: Liu, Kong, Hung, Lin, Cross-image region mining with region
prototypical network for weakly supervised segmentation, IEEE TMM 2021, arXiv
2108.07413.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

# Of sums of masks, of maxima, and of lengths.
_FEW, _LOW, _SHORT = 5e-4, 1e-5, 1e-8
_PEAK = 1.3  # what the factor reaches before it is smoothed
_SIDE, _SIGMA = 5, 3.0  # of the Gaussian


class Partners(NamedTuple):
  """With whom each picture of a batch is compared."""

  row: Int[Array, " b"]  # of the partner; its own where there is none
  shared: Int[Array, " b"]  # the class that was drawn; −1 = it has none
  negative: Int[Array, " b"]  # row of a certain negative
  has_negative: Float[Array, " b"]  # 0 where the batch has none


def draw_partners(
  key: Key[Array, ""], labels: Float[Array, "b y"], real: Float[Array, " b"]
) -> Partners:
  """Draws a class of each picture, another picture with it, and a negative.

  A function of key, labels and `real` alone, whatever the number of devices.

  Args:
    key: source of chance.
    labels: 1 and 0, NaN where not known; all 0 is a certain negative.
    real: 0 for rows that only fill the batch; nobody's partners.
  """
  rows, classes = labels.shape
  of_class, of_row, of_negative = jax.random.split(key, 3)
  is_real = (real > 0)[None, :]
  has = labels == 1

  def one_of(allowed, key):
    chance = jax.random.uniform(key, allowed.shape)
    return jnp.argmax(jnp.where(allowed, chance, -1.0), axis=1)

  shared = one_of(has, of_class)
  others = has[:, shared].T & is_real & ~jnp.eye(rows, dtype=bool)
  is_alone = ~(jnp.any(has, axis=1) & jnp.any(others, axis=1))
  row = jnp.where(is_alone, jnp.arange(rows), one_of(others, of_row))
  certain = jnp.all(labels == 0, axis=1)[None, :] & is_real
  certain = jnp.broadcast_to(certain, (rows, rows))
  return Partners(
    row.astype(jnp.int32),
    jnp.where(jnp.any(has, axis=1), shared, -1).astype(jnp.int32),
    one_of(certain, of_negative).astype(jnp.int32),
    jnp.any(certain, axis=1).astype(jnp.float32),
  )


def _highest(x: Float[Array, "b h w c"], valid: Float[Array, "b h w"]) -> Array:
  """Maximum over the positions of each picture, [b,1,1,c]."""
  x = jnp.where(valid[..., None] > 0, x, -jnp.inf)
  return jnp.max(x, axis=(1, 2), keepdims=True)


def published_mask(
  features: Float[Array, "b h w c"],
  valid: Float[Array, "b h w"],
  threshold: float = 0.3,
) -> Float[Array, "b h w"]:
  """Where any channel reaches a share of its maximum over the picture.

  With hundreds of channels that is nearly everywhere, and a channel that is
  negative throughout is above it everywhere: the prototype is then the mean of
  the picture. Kept to be compared with `cam_mask`.
  """
  share = features / (_highest(features, valid) + _LOW)
  return jnp.any(share >= threshold, axis=-1) * valid


def cam_mask(
  cam: Float[Array, "b h w y"],
  shared: Int[Array, " b"],
  valid: Float[Array, "b h w"],
  threshold: float = 0.3,
) -> Float[Array, "b h w"]:
  """Where the class map reaches a share of its maximum over the picture.

  Args:
    cam: class maps.
    shared: class of each picture; none (−1) has an empty mask.
    valid: 1 on tissue.
    threshold: that share.
  """
  chosen = jnp.maximum(shared, 0)[:, None, None, None]
  share = normalised(jnp.take_along_axis(cam, chosen, axis=-1), valid)[..., 0]
  return (share >= threshold) * valid * (shared >= 0)[:, None, None]


def part_of(
  key: Key[Array, ""], mask: Float[Array, "b h w"]
) -> Float[Array, "b h w"]:
  """A random half of a mask."""
  return mask * jax.random.bernoulli(key, 0.5, mask.shape)


def prototype(
  features: Float[Array, "b h w c"], mask: Float[Array, "b h w"]
) -> Float[Array, "b c"]:
  """Mean feature under a mask; nearly 0 under an empty one.

  Example:
    >>> features = jnp.array([[[[1.0], [3.0], [8.0]]]])
    >>> found = prototype(features, jnp.array([[[1.0, 1.0, 0.0]]]))
    >>> round(float(found[0, 0]), 3)
    2.0
  """
  total = jnp.einsum("bhwc,bhw->bc", features, mask)
  return total / (jnp.sum(mask, axis=(1, 2)) + _FEW)[:, None]


def cosine(
  features: Float[Array, "b h w c"], vector: Float[Array, "b c"]
) -> Float[Array, "b h w"]:
  """Cosine of each position with a vector; 0 where either has no length."""

  def unit(x):
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squares, _SHORT**2))

  return jnp.einsum("bhwc,bc->bhw", unit(features), unit(vector))


def smooth(x: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
  """5×5 Gaussian of σ = 3 positions, whose weights sum to 1; zeros outside."""
  places = jnp.arange(_SIDE) - _SIDE // 2
  line = jnp.exp(-jnp.square(places) / (2 * _SIGMA**2))
  kernel = line[:, None] * line[None, :]
  kernel = (kernel / jnp.sum(kernel))[:, :, None, None]
  return lax.conv_general_dilated(
    x[..., None],
    kernel,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )[..., 0]


def factor(
  similarity: Float[Array, "b h w"], valid: Float[Array, "b h w"]
) -> Float[Array, "b h w"]:
  """By how much features are multiplied: 1.3 at the most similar position."""
  similarity = jax.nn.relu(similarity) * valid
  top = jnp.max(similarity, axis=(1, 2), keepdims=True)
  return smooth(_PEAK * similarity / (top + _LOW))


def normalised(
  cam: Float[Array, "b h w y"], valid: Float[Array, "b h w"]
) -> Float[Array, "b h w y"]:
  """Class maps as shares of their maximum over the picture.

  relu(relu(c) − 1e-5) / (max relu(c) + 1e-5)
  """
  cam = jax.nn.relu(cam) * valid[..., None]
  top = jnp.max(cam, axis=(1, 2), keepdims=True)
  return jax.nn.relu(cam - _LOW) / (top + _LOW)


def disagreement(
  one: Float[Array, "b h w y"],
  other: Float[Array, "b h w y"],
  labels: Float[Array, "b y"],
  valid: Float[Array, "b h w"],
  real: Float[Array, " b"],
) -> Float[Array, ""]:
  """Mean squared difference of two normalised class maps.

  The mean is over pictures, classes and positions; classes whose label is not 1
  count as 0, so that pictures without class teach nothing here.
  """
  gap = jnp.square(normalised(one, valid) - normalised(other, valid))
  each = jnp.mean(gap, axis=(1, 2)) * (labels == 1)
  return jnp.sum(jnp.mean(each, axis=1) * real) / jnp.maximum(real.sum(), 1)


def classification(
  logits: Float[Array, "b y"],
  labels: Float[Array, "b y"],
  real: Float[Array, " b"],
) -> Float[Array, ""]:
  """Mean binary cross-entropy over the known labels of a batch."""
  known = jnp.isfinite(labels) * real[:, None]
  target = jnp.where(jnp.isfinite(labels), labels, 0.0)
  each = jax.nn.softplus(logits) - target * logits
  return jnp.sum(each * known) / jnp.maximum(jnp.sum(known), 1)
