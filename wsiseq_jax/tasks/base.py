"""What the loop knows of a task: a few functions of parameters and a batch.

The loop, the checkpoints and the jobs never look inside. All functions are pure
and traced by `jax.jit`; a batch is what `data.loader` made, on the devices.

Metrics are pairs (sum, weight), each a sum over the *global* batch. Pairs from
several batches add up, and one division at the end gives the exact mean, also
when the last batch is filled up with records of weight 0.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Key
from ml_collections import ConfigDict

Batch = Mapping[str, Array]
# Pairs; lists where they come back from a JSON file.
Metrics = dict[str, tuple[Any, Any] | list[float]]


@dataclasses.dataclass(frozen=True)
class Evaluations:
  """What the job `evaluate` measures.

  Attributes:
    facts: What tells these measures from others, beside the checkpoint and the
      data; part of the result.
    functions: name → a function like `Task.evaluate`; a task may be measured in
      several ways.
  """

  facts: Mapping[str, Any]
  functions: Mapping[str, Callable[[Any, Batch], Metrics]]


@dataclasses.dataclass(frozen=True)
class Task:
  """A learning task.

  Attributes:
    init: key → parameters, a nested dictionary.
    loss: (params, batch, key, progress) → the scalar to minimise, and metrics;
      `loss` must be among them. Progress is the part of training that is done,
      from 0 up to 1.
    evaluate: (params, batch) → metrics, the same for the same record whatever
      batch, key or device it comes with.
    embed: (params, batch) → arrays with a leading batch axis, deterministic:
      features [b, d], averaged over dense test clips where the config asks for
      them; tokens [b, n, d], token_mask [b, n] (1 = real) and token_time [b, n]
      (unit of the data), what a probe that pools by itself works on;
      frame_level0_xy, time and frames of the frames looked at.
    encode: (params, batch, key or None) → features [b, d], differentiable.
      With a key it cuts random clips with mild augmentation, for fine-tuning;
      without it returns `embed`'s features.
    pool: (params, tokens, token_mask, token_time, cls_token [d]) → [b, d], the
      task's own pooling of `embed`'s tokens, with another class token in place
      of the trained one; None where a task has no such pooling.
    load_params: path → parameters from a file of weights.
    evaluations: config → what the job `evaluate` measures.
    reconstruct: (params, batch, sequence ids, ratio or None, kind or None) →
      pictures of hidden patches; None where a task hides none.
    clips_per_record: clips computed for each record loaded.
    setup: what the task keeps for itself (model, crops, masks).
  """

  init: Callable[[Key[Array, ""]], Any]
  loss: Callable[[Any, Batch, Key[Array, ""], Array], tuple[Array, Metrics]]
  evaluate: Callable[[Any, Batch], Metrics]
  embed: Callable[[Any, Batch], dict[str, Array]]
  encode: Callable[[Any, Batch, Key[Array, ""] | None], Array]
  pool: Callable[[Any, Array, Array, Array, Array], Array] | None
  load_params: Callable[[str], Any]
  evaluations: Callable[[ConfigDict], Evaluations]
  reconstruct: Callable[..., Any] | None
  clips_per_record: int
  setup: Any


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
