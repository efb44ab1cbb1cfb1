r"""Nyström attention over a padded sequence, linear in its tokens.

With L landmarks, each the mean of a segment of the (normed) sequence, q̃ and k̃
their queries and keys, and q scaled by 1/√c,

    softmax(q k̃ᵀ) · softmax(q̃ k̃ᵀ)⁺ · softmax(q̃ kᵀ) v + conv33(v)

stands in for softmax(q kᵀ) v. The pseudo-inverse is iterated:

    z₀ = xᵀ / (max column abs-sum · max row abs-sum)
    z ← ¼ z (13 I − x z (15 I − x z (7 I − x z)))

conv33 is a convolution along the sequence, one kernel a head.

Padding. Segments are of the real tokens alone: token r of n belongs to segment
⌊r L / n⌋. With n ≤ L each token is a landmark, what is left of them is masked,
rows and columns of zeros that stay zero in the pseudo-inverse; attention is
exact then, as far as the iteration has converged.

Memory. Both large softmaxes are computed in chunks of tokens, the one over
tokens with a running maximum, and computed again in the backward pass: no array
of tokens × landmarks is ever whole.

Deviations: segments differ by one token at most, where the original puts zeros
before the sequence until it can be cut evenly (and averages them); the maxima
in z₀ are of a head, not over all heads and bags of a batch, by which bags would
change each other.

Reference: Xiong et al., Nyströmformer, AAAI 2021; Shao et al., TransMIL,
NeurIPS 2021.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from wsiseq_jax.models import vit
from wsiseq_jax.models.mil import bag
from wsiseq_jax.models.mil.config import Count, MilConfig, Rate

_REACH = 16  # of the convolution, to either side
_BLOCK = 128  # tokens that are convolved by one matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class NystromConfig(MilConfig):
  """`transmil`."""

  hidden: Count = 512  # channels of tokens
  heads: Count = 8  # attention heads
  landmarks: Count = 256  # of the attention
  pinv_iterations: Count = 6  # of the pseudo-inverse
  attention_dropout: Rate = 0.1  # of the output of attention

  def __post_init__(self):
    if self.hidden % self.heads:
      raise ValueError(
        f"config.model.heads = {self.heads} does not divide "
        f"config.model.hidden = {self.hidden}"
      )


def pseudo_inverse(
  x: Float[Array, "h l l"], iterations: int
) -> Float[Array, "h l l"]:
  """The iterated pseudo-inverse of each matrix.

  Example:
    >>> x = jnp.array([[[0.8, 0.2], [0.4, 0.6]]])
    >>> [[round(float(v), 3) for v in row] for row in pseudo_inverse(x, 6)[0]]
    [[1.5, -0.5], [-1.0, 2.0]]
  """
  size = jnp.abs(x)
  columns = jnp.max(jnp.sum(size, axis=1), axis=1)
  rows = jnp.max(jnp.sum(size, axis=2), axis=1)
  z = jnp.swapaxes(x, 1, 2) / (columns * rows)[:, None, None]
  identity = jnp.eye(x.shape[1])[None]

  def step(z, _):
    xz = x @ z
    inner = 15 * identity - xz @ (7 * identity - xz)
    return 0.25 * z @ (13 * identity - xz @ inner), None

  return lax.scan(step, z, length=iterations)[0]


def convolve_sequence(
  x: Float[Array, "r h c"], kernel: Float[Array, "k h"]
) -> Float[Array, "n h c"]:
  """Convolves along a sequence, n = r − 32 tokens of it.

  A block of tokens is multiplied by a banded matrix: more arithmetic than 33
  shifted sums, but little memory traffic.
  """
  width = kernel.shape[0]
  count = x.shape[0] - width + 1
  block = min(_BLOCK, count)
  blocks = -(-count // block)
  x = jnp.pad(x, ((0, blocks * block - count), (0, 0), (0, 0)))
  start = block * jnp.arange(blocks)[:, None]
  windows = x[start + jnp.arange(block + width - 1)[None]]
  step = jnp.arange(block + width - 1)[None] - jnp.arange(block)[:, None]
  band = jnp.where(
    ((step >= 0) & (step < width))[..., None],
    kernel[jnp.clip(step, 0, width - 1)],
    0.0,
  )
  out = jnp.einsum("ijh,bjhc->bihc", band, windows)
  return out.reshape(-1, *x.shape[1:])[:count]


def _softmax(scores: Array, mask: Array) -> Array:
  """Over the last axis, in f32; one entry at least must not be masked."""
  return jax.nn.softmax(scores.astype(jnp.float32), axis=-1, where=mask)


class _Landmarks(NamedTuple):
  """What a sequence is reduced to, whichever tokens are read out."""

  queries: Array  # scaled ones of landmarks, [l h c]
  keys: Array  # of landmarks, [l h c]
  is_landmark: Array  # which landmarks there are, [l]
  inverse: Array  # softmax(q̃ k̃ᵀ)⁺, [h l l]
  shift: Array  # maximum over tokens of q̃ kᵀ, [h l]
  total: Array  # sum over tokens of exp(q̃ kᵀ − shift), [h l]
  mixed: Array  # inverse · softmax(q̃ kᵀ) v, [h l c]


class NystromAttention(nnx.Module):
  """LayerNorm and Nyström attention, to be added to the tokens.

  The real tokens come first in the sequence, and there is one at least.
  """

  def __init__(self, config: NystromConfig, rngs: nnx.Rngs):
    width = config.hidden

    def project():
      return nnx.Linear(
        width,
        width,
        use_bias=False,
        kernel_init=nnx.initializers.xavier_uniform(),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
      )

    self.norm = vit.make_norm(width, 1e-5, "float32", rngs)
    self.query, self.key, self.value = project(), project(), project()
    self.out = bag.linear(width, width, config, rngs)
    bound = 1 / math.sqrt(2 * _REACH + 1)
    self.kernel = nnx.Param(
      jax.random.uniform(
        rngs.params(),
        (2 * _REACH + 1, config.heads),
        minval=-bound,
        maxval=bound,
      )
    )
    self.config = config

  def __call__(
    self,
    x: Float[Array, "n e"],
    valid: Bool[Array, " n"],
    key: Key[Array, ""] | None,
  ) -> Float[Array, "n e"]:
    """What is to be added to the tokens."""
    return self._answer(x, valid, self._read(x, valid), x.shape[0], key)

  def first_token(
    self,
    x: Float[Array, "n e"],
    valid: Bool[Array, " n"],
    key: Key[Array, ""] | None,
  ) -> tuple[Float[Array, "1 e"], Float[Array, " n"]]:
    """The same for the first token alone, and what that is made of."""
    read = self._read(x, valid)
    out = self._answer(x, valid, read, 1, key)
    outer = self._outer(x[:1], read.keys, read.is_landmark)
    share = (outer @ read.inverse)[:, 0] / read.total

    def weigh(tokens, key):
      keys = self._heads(self.key, tokens)
      scores = jnp.einsum("lhc,nhc->hln", read.queries, keys)
      weights = jnp.exp(scores.astype(jnp.float32) - read.shift[..., None])
      return jnp.einsum("hl,hln->n", share, weights) / self.config.heads

    return out, jnp.where(valid, self._chunks(weigh, x, None), 0.0)

  def _read(self, x, valid) -> _Landmarks:
    """All that does not depend on who asks."""
    q, k, is_landmark = self._landmarks(x, valid)
    inner = _softmax(jnp.einsum("lhc,khc->hlk", q, k), is_landmark[None, None])
    inner = jnp.where(is_landmark[None, :, None], inner, 0.0)
    inverse = pseudo_inverse(inner, self.config.pinv_iterations)
    shift, total, values = self._of_tokens(x, valid, q)
    return _Landmarks(
      queries=q,
      keys=k,
      is_landmark=is_landmark,
      inverse=inverse,
      shift=shift,
      total=total,
      mixed=inverse @ (values / total[..., None]),
    )

  def _answer(self, x, valid, read, count, key):
    """The output of the first tokens, so many of them."""
    kernel = self.kernel[...]
    in_one_go = count <= self.config.chunk_tiles

    def answer(tokens, key):
      x, valid = tokens
      values = self._heads(self.value, x)
      values = jnp.where(valid[:, None, None], values, 0.0)
      if in_one_go:  # zeros beyond the ends, rather than tokens
        after = count + _REACH - x.shape[0]
        values = jnp.pad(values, ((_REACH, after), (0, 0), (0, 0)))
        x = x[:count]
      else:
        x = x[_REACH:-_REACH]
      outer = self._outer(x, read.keys, read.is_landmark)
      out = jnp.einsum("hnl,hlc->nhc", outer, read.mixed)
      out = out + convolve_sequence(values, jnp.asarray(kernel, values.dtype))
      out = self.out(out.reshape(x.shape)).astype(jnp.float32)
      return bag.dropout(out, self.config.attention_dropout, key)

    tokens = x[: count + _REACH], valid[: count + _REACH]
    if in_one_go:
      return answer(tokens, key)
    after = count + _REACH - tokens[0].shape[0]
    tokens = jax.tree.map(
      lambda v: jnp.pad(v, ((_REACH, after), *(((0, 0),) * (v.ndim - 1)))),
      tokens,
    )
    return self._chunks(answer, tokens, key, _REACH)

  def _chunks(self, function, arrays, key, reach=0):
    # Saved matrix products would be those of tokens and landmarks.
    remat = "none" if self.config.remat == "none" else "full"
    size = self.config.chunk_tiles
    return bag.in_chunks(function, arrays, key, size, remat, reach)

  def _heads(self, project, x):
    """Projects normed tokens [n e] to [n h c]."""
    return project(self.norm(x)).reshape(x.shape[0], self.config.heads, -1)

  def _scaled_query(self, x):
    q = self._heads(self.query, x)
    return q / math.sqrt(q.shape[-1])

  def _outer(self, x, k, is_landmark):
    """softmax(q k̃ᵀ), [h n l]."""
    scores = jnp.einsum("nhc,lhc->hnl", self._scaled_query(x), k)
    return _softmax(scores, is_landmark[None, None])

  def _landmarks(self, x, valid):
    """Scaled queries and keys [l h c] of landmarks, and which there are."""
    config, count = self.config, x.shape[0]

    def project(normed):
      heads = (normed.shape[0], config.heads, -1)
      q, k = (p(normed).reshape(heads) for p in (self.query, self.key))
      return q / math.sqrt(q.shape[-1]), k

    if count <= config.landmarks:
      return *project(self.norm(x)), valid
    tokens = jnp.sum(valid)
    used = jnp.minimum(config.landmarks, tokens)
    segment = jnp.arange(count) * used // tokens
    segment = jnp.where(valid, segment, config.landmarks)

    def sums(tokens, key):
      x, segment = tokens
      normed = self.norm(x)
      each = jnp.concatenate([normed, jnp.ones_like(normed[:, :1])], axis=1)
      return jax.ops.segment_sum(
        each, segment, config.landmarks + 1, indices_are_sorted=True
      )[None]

    total = jnp.sum(self._chunks(sums, (x, segment), None), axis=0)[:-1]
    mean = total[:, :-1] / jnp.maximum(total[:, -1:], 1.0)
    return *project(mean), jnp.arange(config.landmarks) < used

  def _of_tokens(self, x, valid, q):
    """The parts of softmax(q̃ kᵀ) v: maximum and sum [h l], and [h l c]."""

    def part(tokens, key):
      x, valid = tokens
      scores = jnp.einsum("lhc,nhc->hln", q, self._heads(self.key, x))
      scores = jnp.where(
        valid[None, None], scores.astype(jnp.float32), -jnp.inf
      )
      top = lax.stop_gradient(jnp.max(scores, axis=-1))
      shift = jnp.where(jnp.isfinite(top), top, 0.0)
      weights = jnp.exp(scores - shift[..., None])
      values = jnp.einsum("hln,nhc->hlc", weights, self._heads(self.value, x))
      return top[None], jnp.sum(weights, axis=-1)[None], values[None]

    top, total, values = self._chunks(part, (x, valid), None)
    shift = jnp.max(top, axis=0)
    scale = jnp.exp(top - shift[None])
    total = jnp.sum(total * scale, axis=0)
    return shift, total, jnp.sum(values * scale[..., None], axis=0)
