"""Optimisers: AdamW as VideoMAE uses it, and SGD as IRN does.

Learning rates are given per 256 sequences and multiplied by batch / 256. The
batch is the number of sequences loaded in a step; repeated copies of one
sequence do not count, which is why a recipe with four repeats states a four
times higher rate than one without.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from wsiseq_jax import parallel

# What `named` makes; the first is everybody's default.
NAMES = ("adamw", "sgd", "irn_sgd")
_MOMENTUM = 0.9
_POLY_POWER = 0.9

# Last names of parameters that are never decayed, whatever their shape.
_NO_DECAY = ("bias", "scale", "mask_token", "cls_token", "pos_embed")


def scaled_lr(lr_per_256: float, batch_size: int) -> float:
  """The linear rule: rate × batch / 256.

  Example:
    >>> scaled_lr(1e-3, 64)
    0.00025
  """
  return lr_per_256 * batch_size / 256


def warmup_cosine(
  step: Int[Array, ""] | int,
  peak: float | int,
  floor: float | int,
  warmup_steps: int,
  total_steps: int,
) -> Float[Array, ""]:
  """Learning rate of the update that leads from `step` to `step + 1`.

  Linear from 0 to the peak, then half a cosine down to the floor:

      step < warmup:  peak · step / warmup
      else:           floor + (peak − floor) · (1 + cos(π p)) / 2,
                      p = (step − warmup) / (total − warmup)

  Example:
    >>> [round(float(warmup_cosine(s, 1.0, 0.0, 2, 6)), 3) for s in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
  """
  step = jnp.asarray(step, jnp.float32)
  rise = peak * step / max(warmup_steps, 1)
  part = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
  part = jnp.clip(part, 0.0, 1.0)
  fall = floor + (peak - floor) * 0.5 * (1.0 + jnp.cos(math.pi * part))
  return jnp.where(step < warmup_steps, rise, fall)


def poly(
  step: Int[Array, ""] | int, peak: float, total_steps: int
) -> Float[Array, ""]:
  """Learning rate peak · (1 − step / total)^0.9; steps count from 0.

  Example:
    >>> [round(float(poly(s, 1.0, 4)), 3) for s in range(5)]
    [1.0, 0.772, 0.536, 0.287, 0.0]
  """
  left = 1.0 - jnp.asarray(step, jnp.float32) / total_steps
  return peak * left**_POLY_POWER


def decay_mask(params):
  """True for the parameters that weight decay shrinks: the matrices.

  Biases, norm scales, tokens and everything one-dimensional are left alone. In
  stacked blocks the leading axis counts layers, so that a stacked bias has two
  axes and yet is one-dimensional.

  Example:
    >>> leaf = jax.ShapeDtypeStruct((12, 768), jnp.float32)
    >>> decay_mask({"blocks": {"gain": leaf}, "head": {"kernel": leaf}})
    {'blocks': {'gain': False}, 'head': {'kernel': True}}
  """

  def is_decayed(path, leaf) -> bool:
    name = parallel.path_name(path)
    axes = len(leaf.shape) - parallel.is_stacked(name)
    return axes >= 2 and name.split("/")[-1] not in _NO_DECAY

  return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_schedule(
  config, batch_size: int, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """The learning rate as a function of the step, from `config.optim`."""
  if warmup_steps >= total_steps:
    raise ValueError(
      f"config.optim: the warm-up of {warmup_steps} steps must be shorter than "
      f"the run of {total_steps} steps (set optim.warmup_* or optim.total_*)"
    )
  peak = scaled_lr(config.lr_per_256, batch_size)
  floor = scaled_lr(config.min_lr_per_256, batch_size)

  def schedule(step):
    return warmup_cosine(step, peak, floor, warmup_steps, total_steps)

  return schedule


def make_optimizer(
  config, schedule: optax.Schedule | None = None
) -> optax.GradientTransformation:
  """AdamW with decoupled decay (multiplied by the rate), clipping before it.

  Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
  ICLR 2019.
  """
  parts = []
  if config.clip_norm > 0:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  parts += [
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
  ]
  if schedule is not None:
    parts.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*parts)


def named(config) -> optax.GradientTransformation:
  """The optimiser `config.optimizer`, without its learning rate.

      adamw    decoupled decay of the matrices
      sgd      momentum 0.9, decay added to the gradient of all parameters
      irn_sgd  the same without momentum

  `irn_sgd` is what the code of IRN does: its wrapper hands the weight decay to
  SGD's third argument, momentum, which thereby is 1e-4, nothing. Its settings
  with a momentum of 0.9 would take steps ten times as long.

  Args:
    config: has `optimizer`, `weight_decay`, `b1`, `b2`, `eps`, `clip_norm`.

  Raises:
    ValueError: there is no such optimiser.
  """
  if config.optimizer == "adamw":
    return make_optimizer(config)
  if config.optimizer not in NAMES:
    raise ValueError(
      f"optimizer = {config.optimizer!r}: must be one of {NAMES}"
    )
  parts = []
  if config.clip_norm > 0:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  parts.append(optax.add_decayed_weights(config.weight_decay))
  if config.optimizer == "sgd":
    parts.append(optax.trace(decay=_MOMENTUM))
  return optax.chain(*parts)


def lr_factors(params, factors: tuple[tuple[str, float], ...]):
  """Factor of the learning rate of every parameter.

  Args:
    params: a tree.
    factors: (beginning of a path, factor) pairs, the first that fits counts.

  Raises:
    ValueError: no parameter's path begins so.

  Example:
    >>> lr_factors({"body": {"bias": 0}, "head": {"bias": 0}}, (("head", 9.0),))
    {'body': {'bias': 1.0}, 'head': {'bias': 9.0}}
  """
  used = set()

  def factor(path, leaf) -> float:
    del leaf
    name = parallel.path_name(path) + "/"
    for start, value in factors:
      if name.startswith(start + "/"):
        used.add(start)
        return value
    return 1.0

  found = jax.tree_util.tree_map_with_path(factor, params)
  if unused := [start for start, _ in factors if start not in used]:
    raise ValueError(
      f"lr_factors: no parameter is left for {unused}; parameters begin with "
      f"{sorted(params)}"
    )
  return found


def value_and_grad(loss, parts: int = 1):
  """Gradient of `Task.loss`, over a batch at once or over parts of it in turn.

  Parts need the memory of one of them. The result is that of the whole batch:
  the mean of the parts' gradients, each weighted as its loss is.

  Args:
    loss: (params, extra, batch, key, progress) → (loss, (metrics, aux)).
    parts: Parts of the batch; each draws from a key of its own.

  Returns:
    A function of the same arguments → ((loss, (metrics, aux)), gradient).
  """
  grad = jax.value_and_grad(loss, has_aux=True)
  if parts == 1:
    return grad

  def accumulated(params, extra, batch, key, progress):
    def add(total, part):
      number, rows = part
      (value, (metrics, aux)), grads = grad(
        params, extra, rows, jax.random.fold_in(key, number), progress
      )
      weight = metrics["loss"][1]
      total = jax.tree.map(
        lambda t, x: t + weight * x, total, (grads, value, 1.0)
      )
      return total, (metrics, aux)

    rows = jax.tree.map(lambda x: parallel.split_batch(x, parts), dict(batch))
    zeros = (jax.tree.map(jnp.zeros_like, params), 0.0, 0.0)
    (grads, value, weight), (metrics, aux) = jax.lax.scan(
      add, zeros, (jnp.arange(parts), rows)
    )
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
    aux = jax.tree.map(parallel.join_batch, aux)
    grads = jax.tree.map(lambda g: g / weight, grads)
    return (value / weight, (metrics, aux)), grads

  return accumulated
