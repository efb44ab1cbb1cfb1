"""Keys of `configs/mil.py`, and what they may be."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from wsiseq_jax import config as configs
from wsiseq_jax import jobs
from wsiseq_jax.mil import class_weights, cohort
from wsiseq_jax.models.mil import config as mil_config

JOBS = ("mil", "mil_predict")
SYNTHETIC = "synthetic"


def _texts(value: Any) -> str | None:
  is_good = isinstance(value, tuple | list) and all(
    isinstance(v, str) for v in value
  )
  if is_good and len(set(value)) == len(value):
    return None
  return "a tuple of different names, () for all"


def _share_or_paper(value: Any) -> str | None:
  if value == -1 or configs.number(0, 1)(value) is None:
    return None
  return "a number from 0 to 1, or -1 for the paper's"


CHECKS: Mapping[str, configs.Check] = {
  **{
    key: check
    for key, check in configs.COMMON.items()
    if key.startswith("wandb.")
  },
  "job": configs.one_of(*JOBS),
  "workdir": configs.text(),
  "target_type": configs.one_of(*cohort.TARGET_TYPES),
  "data.features": configs.text(),
  "data.table": configs.text(),
  "data.label": configs.text(),
  "data.classes": _texts,
  "data.split_column": configs.text(),
  "data.unlisted": configs.one_of("error", "ignore"),
  "data.tile_size": configs.number(0),
  "data.batch_size": configs.integer(1),
  "data.max_tiles": configs.integer(0),
  "data.smallest_bucket": configs.integer(1),
  "data.cache_gb": configs.number(0),
  "data.threads": configs.integer(1),
  "model.name": configs.one_of(*mil_config.MODELS),
  "model.hidden": configs.integer(1),
  "model.attention_width": configs.integer(1),
  "model.dropout": configs.number(0, 0.99),
  "model.tile_hidden": configs.integer(0),
  "model.pooling": configs.one_of(*mil_config.POOLINGS),
  "model.top_tiles": configs.integer(1),
  "model.sharpness": configs.number(0),
  "model.extremes": configs.integer(1),
  "model.chowder_hidden": configs.integers(1, 2),
  "model.instance_tiles": configs.integer(1),
  "model.instance_loss": configs.one_of(*mil_config.INSTANCE_LOSSES),
  "model.subtyping": configs.flag(),
  "model.query_width": configs.integer(1),
  "model.heads": configs.integer(1),
  "model.landmarks": configs.integer(1),
  "model.pinv_iterations": configs.integer(1),
  "model.attention_dropout": configs.number(0, 0.99),
  "model.auxiliary_weight": _share_or_paper,
  "model.dtype": configs.one_of(*mil_config.DTYPES),
  "model.remat": configs.one_of(*mil_config.vit.REMAT),
  "model.chunk_tiles": configs.integer(1),
  "optim.lr": configs.number(0),
  "optim.weight_decay": configs.number(0),
  "optim.b1": configs.number(0, 1),
  "optim.b2": configs.number(0, 1),
  "optim.eps": configs.number(0),
  "optim.clip_norm": configs.number(0),
  "optim.warmup_epochs": configs.integer(0),
  "optim.epochs": configs.integer(1),
  "optim.patience": configs.integer(0),
  "optim.class_weights": configs.one_of(*class_weights.NAMES),
  "folds.k": configs.integer(2),
  "folds.repeats": configs.integer(1),
  "folds.val_share": configs.number(0.01, 0.5),
  "folds.stratify": configs.flag(),
  "folds.seed": configs.integer(0),
  "seeds": configs.seeds(),
  "scores.resamples": configs.integer(10),
  "scores.ece_bins": configs.integer(1),
  "maps.write": configs.flag(),
  "maps.class_name": configs.text(),
  "predict.models": configs.text(),
}


def validate(config: ConfigDict) -> None:
  """Checks every key and value of a config of `configs/mil.py`.

  Raises:
    ValueError: all that is wrong.
  """
  jobs.check(config, "mil")
  configs.check_keys(config, CHECKS)
  problems = []
  if not config.workdir:
    problems.append("config.workdir = '': name a folder for the results")
  if not config.data.features:
    problems.append("config.data.features = '': name a folder of features")
  is_predict = config.job == "mil_predict"
  if is_predict and not config.predict.models:
    problems.append(
      "config.predict.models = '': name the workdir of a finished job 'mil'"
    )
  if config.predict.models and not is_predict:
    problems.append(
      f"config.predict.models = {config.predict.models!r}: is for config.job = "
      "'mil_predict'"
    )
  if not is_predict and config.data.features != SYNTHETIC:
    if not config.data.table:
      problems.append("config.data.table = '': name a CSV of slides and labels")
  weights = config.optim.class_weights
  if weights != "none" and config.target_type not in class_weights.HEADS:
    problems.append(
      f"config.optim.class_weights = {weights!r}: config.target_type = "
      f"{config.target_type!r} has no classes; of use for {class_weights.HEADS}"
    )
  if problems:
    raise ValueError("bad config:\n  " + "\n  ".join(problems))


def model_config(
  config: ConfigDict, width: int, outputs: int
) -> mil_config.MilConfig:
  """The model's shape.

  Args:
    config: the experiment.
    width: of features.
    outputs: logits of a slide.

  Raises:
    ValueError: naming the key that cannot be.
  """
  values = config.model.to_dict()
  values["chowder_hidden"] = tuple(values["chowder_hidden"])
  if values["auxiliary_weight"] == -1:
    values["auxiliary_weight"] = None
  return mil_config.MilConfig(width=width, outputs=outputs, **values)


def outputs_of(target_type: str, classes: tuple[str, ...]) -> int:
  """Logits of a slide.

  Example:
    >>> outputs_of("binary", ("a", "b")), outputs_of("multiclass", ("a", "b"))
    (1, 2)
  """
  return len(classes) if target_type in ("multiclass", "multilabel") else 1
