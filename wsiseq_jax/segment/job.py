"""The job `segment`: a chain of stages, and a table of what each is worth.

Each stage is done once (`stage.py`). Scores are made from the maps that stages
left, so they can be made again without training anything.
"""

import math
import pathlib

import jax
from ml_collections import ConfigDict

from data_prep.files import atomic
from wsiseq_jax import config as configs
from wsiseq_jax import launch, parallel
from wsiseq_jax.segment import scoring, settings, stage
from wsiseq_jax.segment.pictures import Pictures
from wsiseq_jax.segment.stage import StageContext


def run(config: ConfigDict) -> list[dict[str, object]]:
  """The job: does the stages that are missing, writes `segmentation.csv`.

  Args:
    config: see `configs/segment.py`.

  Returns:
    The rows of `segmentation.csv`.

  Raises:
    ValueError: a bad config, or no such pictures.
    launch.Stopped: it was told to stop; the same command goes on.
  """
  asked = settings.read(config)
  chain = asked.chain()
  context = prepare(config)
  text = configs.to_json(config)
  atomic.write_atomic(context.workdir / "segment_config.json", text)
  inputs = {
    "data": [one.identity for one in context.splits.values()],
    "crops": context.crops,
    "backbone": (context.backbone, context.backbone.fingerprint),
    "seed": context.seed,
  }
  stage.run_chain(chain, context, inputs)
  rows = scoring.write(context, chain, asked.scores)
  launch.log(f"see {context.workdir / 'segmentation.md'}")
  return rows


def prepare(config: ConfigDict) -> StageContext:
  """Opens the pictures and chooses the devices."""
  asked = settings.read(config)
  if jax.process_count() > 1:
    raise ValueError(
      "config.job = 'segment': runs in one process, on all its devices"
    )
  data = asked.data
  splits = {
    role: Pictures(
      data.path, getattr(data, f"{role}_split"), f"data.{role}_split"
    )
    for role in ("train", "val", "test")
  }
  for role, one in splits.items():
    launch.log(
      f"{role}: {len(one)} pictures of {len(set(one.patient_ids))} patients"
    )
  devices = jax.local_devices()
  shared = math.gcd(data.crops.batch_size, data.batch_size, len(devices))
  if shared < len(devices):
    launch.log(
      f"config.data.crops.batch_size = {data.crops.batch_size}, config.data."
      f"batch_size = {data.batch_size}: {shared} of {len(devices)} devices are "
      "used"
    )
  workdir = pathlib.Path(asked.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  return StageContext(
    config=config,
    workdir=workdir,
    splits=splits,
    crops=data.crops,
    batch_size=data.batch_size,
    backbone=asked.backbone,
    mesh=parallel.make_mesh(1, devices[:shared]),
    seed=asked.seed,
    preemption=launch.Preemption(),
    chain=tuple(one.name for one in asked.chain()),
  )
