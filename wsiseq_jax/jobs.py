"""What `config.job` can be, and which config each job takes."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_prep.files.schema import did_you_mean


class JobEntry(NamedTuple):
  """Where a job is."""

  module: str  # has `run(config)`; imported when it is needed
  # the job's own config file; '' is that of a pretraining experiment
  config: str = ""
  block: str = "task"  # a block of that config that others do not have


JOBS: Mapping[str, JobEntry] = {
  "train": JobEntry("wsiseq_jax.train"),
  "evaluate": JobEntry("wsiseq_jax.evaluate"),
  "embed": JobEntry("wsiseq_jax.embed"),
  "report": JobEntry("wsiseq_jax.reports.sequences.job"),
  "aot": JobEntry("wsiseq_jax.tpu.aot"),
  "probe": JobEntry("wsiseq_jax.probe.job", "configs/probe.py", "probe"),
  "embed_tiles": JobEntry(
    "wsiseq_jax.encoders.embed_tiles", "configs/embed_tiles.py", "tiles"
  ),
  "mil": JobEntry("wsiseq_jax.mil.job", "configs/mil.py", "folds"),
  "mil_predict": JobEntry("wsiseq_jax.mil.predict", "configs/mil.py", "folds"),
  "mil_report": JobEntry(
    "wsiseq_jax.reports.slides.job", "configs/mil_report.py", "report"
  ),
  "segment_slides": JobEntry(
    "wsiseq_jax.segment.slides", "configs/segment_slides.py", "output"
  ),
  "spatial": JobEntry(
    "wsiseq_jax.reports.spatial.job", "configs/spatial.py", "statistics"
  ),
  "index": JobEntry("wsiseq_jax.search.build", "configs/search.py", "index"),
  "retrieval": JobEntry(
    "wsiseq_jax.search.evaluation", "configs/search.py", "index"
  ),
  "search": JobEntry(
    "wsiseq_jax.reports.search.job", "configs/search.py", "index"
  ),
  "segment": JobEntry(
    "wsiseq_jax.reports.segment.job", "configs/segment.py", "stages"
  ),
  "view": JobEntry("wsiseq_jax.view.job", "configs/view.py", "server"),
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
  _, file, block = JOBS[job]
  if block in config and ("task" in config) != bool(file):
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
  return importlib.import_module(JOBS[config.job].module).run(config)
