"""Keys of `configs/probe.py`, and what they may be."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from wsiseq_jax import config as configs
from wsiseq_jax import jobs

KINDS = ("linear", "knn", "attentive", "pooling", "fine_tune", "supervised")
# Nothing in these is random but which labels they are given.
DETERMINISTIC = ("linear", "knn")
ON_TOKENS = ("attentive", "pooling")
ON_PIXELS = ("fine_tune", "supervised")


def _rates(value: Any) -> str | None:
  try:
    if all(float(rate) > 0 for rate in parse_rates(value).values()):
      return None
  except (ValueError, AttributeError, TypeError):
    pass
  return "a tuple of 'target=rate'"


def parse_rates(value: Iterable[str]) -> dict[str, float]:
  """Reads `lr_of`.

  Example:
    >>> parse_rates(("age=5e-3",))
    {'age': 0.005}
  """
  pairs = (text.rpartition("=") for text in value)
  return {name: float(rate) for name, _, rate in pairs}


def _names(*allowed: str) -> configs.Check:
  """A tuple of names; any, if none are listed."""

  def check(value: Any) -> str | None:
    is_good = isinstance(value, tuple | list) and all(
      isinstance(v, str) and (not allowed or v in allowed) for v in value
    )
    if is_good and (value or not allowed):
      return None
    return "a tuple of " + (", ".join(map(repr, allowed)) or "names")

  return check


CHECKS: Mapping[str, configs.Check] = {
  "workdir": configs.text(),
  "data.path": configs.text(),
  "data.train_split": configs.text(),
  "data.batch_size": configs.integer(1),
  "data.threads": configs.integer(1),
  "data.worker_processes": configs.integer(0),
  "mesh.fsdp": configs.integer(1),
  "checkpoint.path": configs.text(),
  "job": configs.one_of("probe"),
  "data.tfds": configs.text(),
  "data.tfds_dir": configs.text(),
  "data.val_split": configs.text(),
  "data.test_split": configs.text(),
  "probe.targets": _names(),
  "probe.kinds": _names(*KINDS),
  "probe.fractions": configs.numbers(1e-6, 1),
  "probe.seeds": configs.seeds(),
  "probe.resamples": configs.integer(10),
  **{
    f"{block}.{key}": check
    for block in ("head", "fine_tune")
    for key, check in {
      "lr_per_256": configs.number(0),
      "lr_of": _rates,
      "weight_decay": configs.number(0),
      "batch_size": configs.integer(1),
      "epochs": configs.integer(1),
      "warmup_epochs": configs.integer(0),
      "patience": configs.integer(0),
    }.items()
  },
}  # fmt: skip


def validate(config: ConfigDict) -> None:
  """Checks every key and value of a probe config.

  Raises:
    ValueError: all that is wrong.
  """
  jobs.check(config, "probe")
  configs.check_keys(config, CHECKS)
  if bool(config.data.tfds) == bool(config.data.path):
    raise ValueError(
      f"config.data.path = {config.data.path!r}, config.data.tfds = "
      f"{config.data.tfds!r}: name one of them"
    )
