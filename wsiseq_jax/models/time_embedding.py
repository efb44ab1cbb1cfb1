"""Real time as a vector: sinusoids of a float, made for the data's unit.

Time is a float throughout: cast to whole numbers, a jittered frame index would
turn from 2 into 1 as often as not. Frequencies fall from one radian in the
shortest time worth telling apart to one radian in the longest of the data:

    unit    shortest  longest
    frame       1        100   the reference
    year        0.1      100   visits lie months apart
    s           0.01     100   a frame of an ultrasound film; a long film
    um          2      20000   the step of a drifting window; a large section

Deviation: the reference has 1 and 100 for frames and years alike, which leaves
visits that lie half a year apart with nearly the same vector.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

# Shortest and longest time, see above.
PERIODS: dict[str, tuple[float, float]] = {
  "frame": (1.0, 100.0),
  "year": (0.1, 100.0),
  "s": (0.01, 100.0),
  "um": (2.0, 20000.0),
}


def periods(
  time_unit: str, shortest: float = 0.0, longest: float = 0.0
) -> tuple[float, float]:
  """Shortest and longest time of the embedding, in the data's unit.

  Args:
    time_unit: What the data set says its times are.
    shortest: Config key `model.time_shortest`; 0 takes it from the unit.
    longest: Config key `model.time_longest`; 0 takes it from the unit.

  Raises:
    ValueError: The unit is unknown, or the longest is not the longer one.

  Example:
    >>> periods("year")
    (0.1, 100.0)
    >>> periods("year", longest=20.0)
    (0.1, 20.0)
  """
  if time_unit not in PERIODS:
    raise ValueError(
      f"time_unit = {time_unit!r} in the data of config.data.path: must be one "
      f"of {sorted(PERIODS)}"
    )
  usual = PERIODS[time_unit]
  chosen = (float(shortest or usual[0]), float(longest or usual[1]))
  if chosen[1] <= chosen[0]:
    raise ValueError(
      f"config.model.time_longest = {chosen[1]:g} {time_unit} must exceed "
      f"config.model.time_shortest = {chosen[0]:g} {time_unit}"
    )
  return chosen


def sinusoid(
  time: Float[Array, "*b"], width: int, shortest: float, longest: float
) -> Float[Array, "*b d"]:
  """Cosines and sines of a time at falling frequencies.

    vector = [cos(w_i t) ; sin(w_i t)],  i = 0 ... width / 2 - 1
    w_i = (shortest / longest) ** (2 i / width) / shortest

  Reference: Vaswani et al., Attention is all you need, 2017.
  """
  half = width // 2
  rate = np.exp(-math.log(longest / shortest) * np.arange(half) / half)
  rate = jnp.asarray(rate / shortest, jnp.float32)
  angle = time.astype(jnp.float32)[..., None] * rate.reshape(
    (1,) * time.ndim + (half,)
  )
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
  """Sinusoids, and two linear layers with SiLU between if it is to learn."""

  def __init__(
    self,
    width: int,
    shortest: float,
    longest: float,
    is_learned: bool,
    rngs: nnx.Rngs,
  ):
    if width % 2:
      raise ValueError(
        f"a time embedding needs an even width, not {width} (config keys "
        "model.size, model.temporal_width)"
      )
    self.width, self.shortest, self.longest = width, shortest, longest
    self.is_learned = is_learned
    if is_learned:
      init = nnx.initializers.xavier_uniform()
      self.first = nnx.Linear(width, width, kernel_init=init, rngs=rngs)
      self.second = nnx.Linear(width, width, kernel_init=init, rngs=rngs)

  def __call__(self, time: Float[Array, "*b"]) -> Float[Array, "*b d"]:
    """Embeds times."""
    x = sinusoid(time, self.width, self.shortest, self.longest)
    return self.second(jax.nn.silu(self.first(x))) if self.is_learned else x
