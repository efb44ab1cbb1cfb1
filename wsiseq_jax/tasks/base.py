"""The protocol of a task: what the loop and the jobs know of it.

All functions are pure and traced by `jax.jit`; a batch is what `data.loader`
made, on the devices. Nobody else looks inside a task.

Metrics are pairs (sum, weight), each a sum over the *global* batch. Pairs from
several batches add up, and one division at the end gives the exact mean, also
when the last batch is filled up with records of weight 0.

A task may own state beside its parameters, `extra`: a teacher, a queue, a
centre. It is sharded (leaves named and shaped like a parameter have that
parameter's sharding), checkpointed and donated with the rest.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

Batch = Mapping[str, Array]
Params = Any
Extra = Mapping[str, Any]
# Pairs; lists where they come back from a JSON file.
Metrics = dict[str, tuple[Any, Any] | list[float]]


@dataclasses.dataclass(frozen=True)
class Clip:
  """What a task wants of a record; known before the data are."""

  frames: int  # Frames of a clip
  frame_step: int  # Stored frames from one frame of the clip to the next
  image_px: tuple[int, int]  # (h, w) of a frame as the network gets it
  # Fewest stored frames of a record that has the clip in its middle
  stored: int
  # Stored frames in the middle of such a record that `Task.embed` looks at
  embedded: int


@dataclasses.dataclass(frozen=True)
class Evaluations:
  """What the job `evaluate` measures."""

  # What tells these measures from others, beside the checkpoint and the data;
  # part of the result
  facts: Mapping[str, Any]
  # name → a function like `Task.evaluate`; a task may be measured in several
  # ways
  functions: Mapping[str, Callable[[Params, Extra, Batch], Metrics]]


@dataclasses.dataclass(frozen=True)
class Task:
  """A learning task.

  `params` means the parameters being trained in `loss` and `update_extra`, and
  those that `inference_params` chose everywhere else.
  """

  # key → parameters, a nested dictionary
  init: Callable[[Key[Array, ""]], Params]
  # (params, extra, batch, key, progress) → (the scalar to minimise, (metrics,
  # aux)). `metrics["loss"]` is the pair whose quotient the scalar is. `aux` is
  # a tree of arrays with a leading axis of clips, for `update_extra`. Progress
  # is the part of training that is done, in [0, 1)
  loss: Callable[..., tuple[Array, tuple[Metrics, Any]]]
  # (params, extra, batch) → metrics, the same for the same record whatever
  # batch or device it comes with
  evaluate: Callable[[Params, Extra, Batch], Metrics]
  # (params, batch) → arrays with a leading batch axis, deterministic: features
  # [b, d], averaged over dense test clips where the config asks for them;
  # tokens [b, n, d], token_mask [b, n] (1 = real) and token_time [b, n] (unit
  # of the data), what a probe that pools by itself works on; frame_level0_xy,
  # time and frames of the frames looked at
  embed: Callable[[Params, Batch], dict[str, Array]]
  # (params, batch, key or None) → features [b, d], differentiable. With a key
  # it cuts random clips with mild augmentation, for fine-tuning; without it
  # returns `embed`'s features
  encode: Callable[[Params, Batch, Key[Array, ""] | None], Array]
  # config → what the job `evaluate` measures
  evaluations: Callable[[ConfigDict], Evaluations]
  clips_per_record: int  # Clips computed for each record loaded
  flops: int  # Model FLOPs of a training step for one clip (`models.flops`)
  # params → the extra state at step 0
  init_extra: Callable[[Params], Extra] = lambda params: {}
  # (params after the update, extra, aux) → extra
  update_extra: Callable[[Params, Extra, Any], Extra] = (
    lambda params, extra, aux: extra
  )
  # (params, extra) → the parameters to evaluate and to embed with, such as a
  # teacher's. Chooses, computes nothing
  inference_params: Callable[[Params, Extra], Params] = lambda params, extra: (
    params
  )
  # (params, tokens, token_mask, token_time, cls_token [d]) → [b, d], the task's
  # own pooling of `embed`'s tokens, with another class token in place of the
  # trained one; None where a task has no such pooling
  pool: Callable[[Params, Array, Array, Array, Array], Array] | None = None
  # path → parameters from a file of weights of others; None where a task reads
  # none
  load_params: Callable[[str], Params] | None = None
  # (params, batch, sequence ids, ratio or None, kind or None) → pictures of
  # hidden patches; None where a task hides none
  reconstruct: Callable[..., Any] | None = None
  # Whether the loss of a record depends on the other records of its batch, so
  # that gradients cannot be accumulated over parts of it
  compares_batch: bool = False


def with_ema(task: Task, decay: float) -> Task:
  """The task, evaluated and embedded with averaged parameters.

      ema ← decay · ema + (1 - decay) · params        after each update

  Args:
    task: Any task.
    decay: In [0, 1); 0 returns the task itself.

  Reference: Polyak and Juditsky, Acceleration of stochastic approximation by
  averaging, 1992.
  """
  if not decay:
    return task

  def init_extra(params):
    # Copied: params are donated, and one buffer cannot be donated twice.
    return {**task.init_extra(params), "ema": jax.tree.map(jnp.copy, params)}

  def update_extra(params, extra, aux):
    ema = jax.tree.map(
      lambda old, new: decay * old + (1 - decay) * new, extra["ema"], params
    )
    return {**task.update_extra(params, extra, aux), "ema": ema}

  return dataclasses.replace(
    task,
    init_extra=init_extra,
    update_extra=update_extra,
    inference_params=lambda params, extra: extra["ema"],
  )


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
  """The key of a named use of randomness.

  Naming uses, rather than splitting a key in turn, leaves the others unchanged
  when one is added.

  Args:
    key: The key of the step.
    name: What it is for.

  Example:
    >>> key = jax.random.key(0)
    >>> bool(stream(key, "mask") == stream(key, "crop"))
    False
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def mean_metrics(totals: list[Metrics], prefix: str) -> dict[str, float]:
  """Sums pairs over steps or batches, and divides.

  Args:
    totals: Metrics already fetched from the device, one entry a step.
    prefix: Put before the names: `train/`.

  Returns:
    {prefix + name: sum of sums / sum of weights}; a metric of which nothing was
    measured (no frame was hidden, say) is left out.

  Example:
    >>> rows = [{"loss": (6.0, 2.0)}, {"loss": (1.0, 1.0)}]
    >>> mean_metrics(rows, "val/")
    {'val/loss': 2.3333333333333335}
    >>> mean_metrics([{"loss": (6.0, 2.0), "rank": (0.0, 0.0)}], "val/")
    {'val/loss': 3.0}
  """
  means = {}
  for name in totals[0]:
    total = sum(float(row[name][0]) for row in totals)
    weight = sum(float(row[name][1]) for row in totals)
    if weight:
      means[prefix + name] = total / weight
  return means
