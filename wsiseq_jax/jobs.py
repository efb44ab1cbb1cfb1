"""What `config.job` can be, and which config each job takes."""

import importlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from data_prep.files.schema import did_you_mean

# Where each job is; imported when it is needed.
JOBS: Mapping[str, tuple[str, str]] = {
  "train": ("wsiseq_jax.train", "train"),
  "evaluate": ("wsiseq_jax.evaluate", "run_evaluate"),
  "embed": ("wsiseq_jax.evaluate", "run_embed"),
  "report": ("wsiseq_jax.reports.sequences.job", "run"),
  "probe": ("wsiseq_jax.probe.job", "run"),
  "aot": ("wsiseq_jax.tpu.aot", "aot"),
  "embed_tiles": ("wsiseq_jax.encoders.embed_tiles", "run"),
  "mil": ("wsiseq_jax.mil.job", "run"),
  "mil_predict": ("wsiseq_jax.mil.predict", "run"),
  "mil_report": ("wsiseq_jax.reports.slides.job", "run"),
}

# Jobs that are no part of a pretraining experiment have configs of their own:
# the file, and a block that tells it from the others.
OWN_CONFIGS: Mapping[str, tuple[str, str]] = {
  "probe": ("configs/probe.py", "probe"),
  "embed_tiles": ("configs/embed_tiles.py", "tiles"),
  "mil": ("configs/mil.py", "folds"),
  "mil_predict": ("configs/mil.py", "folds"),
  "mil_report": ("configs/mil_report.py", "report"),
}


def check(config: ConfigDict, job: str = "") -> None:
  """Checks that there is such a job, and that the config is one for it.

  Args:
    config: the experiment.
    job: the job; '' is the one that the config names.

  Raises:
    ValueError: says which jobs there are, or which config to take.
  """
  job = job or config.job
  if job not in JOBS:
    known = ", ".join(map(repr, JOBS))
    hint = did_you_mean(job, JOBS)
    raise ValueError(f"config.job = {job!r}: must be one of {known}{hint}")
  file, block = OWN_CONFIGS.get(job, ("", "task"))
  is_pretraining = "task" in config
  if block in config and is_pretraining == (job not in OWN_CONFIGS):
    return
  if file:
    raise ValueError(
      f"config.job = {job!r} has a config of its own: --config={file}"
    )
  raise ValueError(
    f"config.job = {job!r} is part of an experiment such as "
    "--config=configs/videomae.py or --config=configs/contrastive.py"
  )


def run(config: ConfigDict) -> Any:
  """Does the job of a checked config; returns what the job returns."""
  module, function = JOBS[config.job]
  return getattr(importlib.import_module(module), function)(config)
