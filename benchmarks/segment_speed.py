"""Pictures a second of every stage of segmentation: to train, to make maps.

    python benchmarks/segment_speed.py
    python benchmarks/segment_speed.py --cases resnet50_512 --name=segment_gpu

Each stage is what `configs/segment.py` makes of it (`demo` for `small`, its
defaults for ResNet-50, whose weights are random), on pictures of noise that lie
on the devices: no reading, no writing. A training step is the trainer's, with
its optimiser. Rates are medians over steps after the first two, which compile;
beside them the rate for each second of CPU, which other work on the cores
changes less, and which says nothing of a GPU.

Writes `benchmarks/results/<name>.json`. It needs no data, and runs on whatever
device JAX finds.
"""

import argparse
import dataclasses
import functools
import math
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np

from configs import segment as presets
from wsiseq_jax import fit, parallel
from wsiseq_jax.segment import (
  cam,
  clicks,
  crf,
  irn,
  lattice,
  nuclei,
  nucleus_masks,
  settings,
  student,
  training,
  walk,
)

METHODS = ("irn", "rpnet", "patches", "points", "nuclei")
FIRST = 2  # steps that are not counted
FEW = ("cam: train", "cam: maps", "irn: train", "walk: maps", "student: train")


@dataclasses.dataclass(frozen=True)
class Case:
  """A network, pictures, and which stages are measured; () = all."""

  backbone: str
  px: int
  batch: int
  steps: int
  stages: tuple[str, ...] = ()


CASES = {
  "small_128": Case("small", 128, 16, 6),
  "resnet50_256": Case("resnet50", 256, 2, 3, FEW),
  "resnet50_512": Case("resnet50", 512, 2, 3),
}


def stages_of(case):
  """Every stage by name, and the backbone, as the config makes them."""
  found = {}
  for method in METHODS:
    size = ",demo" if case.backbone == "small" else ""
    config = presets.get_config(method + size)
    config.workdir = config.data.path = "unused"
    config.backbone.name = case.backbone
    config.backbone.random_weights = case.backbone == "resnet50"
    asked = settings.read(config)
    found |= {one.name: one for one in asked.chain()}
  return found, asked.backbone


def batch_of(case, mesh):
  """Pictures of noise with labels of all kinds; half are certain negatives."""
  rng = np.random.default_rng(0)
  b, shape = case.batch, (case.batch, case.px, case.px)
  target = rng.integers(0, 2, shape, np.uint8)
  target[:, : case.px // 4] = 255
  labels = (np.arange(b) % 2).astype(np.float32)[:, None]
  batch = {
    "pixels": rng.integers(0, 256, (*shape, 3), np.uint8),
    "labels": labels,
    "truth": target,
    "target": target,
    "weight": np.ones(shape, np.float32),
    "tissue": np.ones(shape, np.uint8),
    "size": np.full((b, 2), case.px, np.int32),
    "index": np.arange(b, dtype=np.int32),
    "mask": np.ones(b, np.float32),
  }
  return jax.device_put(batch, parallel.batch_sharding(mesh))


def models_of(stages, backbone):
  """What is trained, by stage."""
  found = {
    "cam": stages["cam"].model(backbone, 1),
    "rpnet": stages["rpnet"].model(backbone, 1),
    "lattice": lattice.network(stages["lattice"], backbone, 1, ("max_max",)),
  }
  one = stages["irn"]
  found["irn"] = irn.network(
    backbone, one.boundary_width, one.width, one.radius
  )
  one = stages["student"]
  found["student"] = student.network(backbone, 1, one.width, True, False)
  one = stages["clicks"]
  found["clicks"] = clicks.network(backbone, 1, one.width, one.loss)
  one = stages["detect"]
  found["detect"] = nuclei.network(backbone, one.width, one.rule.weight)
  one = stages["nuclei"]
  found["nuclei"] = nucleus_masks.network(backbone, one.width, 0.0, one.window)
  return found


def maps_of(stages, backbone, mesh):
  """What makes maps, by stage: (parameters of a stage, frozen ones, batch)."""
  one = stages["cam"]
  scales = functools.partial(
    cam.multi_scale, one.classify(backbone), one.scales
  )
  one = stages["crf"]
  mine = functools.partial(
    crf.mine_batch, (one.foreground, one.background), one.crf, mesh
  )
  one = stages["walk"]
  spread = functools.partial(walk.spread, one.radius, one.beta, one.steps)

  def scores(batch):
    """Of a stride of 4, [b, 1, h, w]: how bright it is."""
    grey = batch["pixels"].astype(jnp.float32).mean(axis=-1) / 255
    grid = [side // cam.STRIDE for side in grey.shape[1:]]
    return cam.shrink(grey, grid)[:, None]

  def mined(params, frozen, batch):
    return mine(scores(batch), batch)

  def walked(params, frozen, batch):
    found = scores(batch)
    return spread(found, found, 0.5 * found[:, 0], batch)

  def masks(params, frozen, batch):
    return student.slide_scores(backbone, params, frozen, batch["pixels"])

  return {
    "cam": scales,
    "crf": mined,
    "irn": functools.partial(irn.mirrored, backbone),
    "walk": walked,
    "student": masks,
  }


class Clock:
  """Wall and CPU seconds between ticks."""

  def __init__(self):
    self.times = []

  def tick(self):
    """Notes the time."""
    self.times.append((time.perf_counter(), time.process_time()))

  def rates(self, pictures):
    """Pictures a second, of the wall and of CPU, by the median."""
    between = np.diff(self.times[FIRST:], axis=0)
    wall, cpu = np.median(between, axis=0)
    return {
      "a_second": round(float(pictures / wall), 3),
      "a_second_of_cpu": round(float(pictures / cpu), 3),
    }


def train_rate(model, stage, frozen, batch, mesh, case):
  """Pictures a second of the trainer."""
  clock = Clock()
  # Validation is not what is asked.
  model = dataclasses.replace(
    model, apply=lambda params, frozen, batch: batch["mask"][:, None]
  )

  def endless(start):
    while True:
      clock.tick()
      yield batch

  # Two steps are under way before the first is waited for.
  data = fit.Data(
    2 * FIRST + case.steps, endless, lambda: (one for one in (batch,))
  )
  optim = dataclasses.replace(stage.optim, epochs=1)
  if stage.name == "lattice":
    frozen = {"backbone": frozen, "teachers": []}
  # Rates of heads, which are named otherwise in `irn`, take no time.
  how = optim.settings(lr_factors=())
  fit.Trainer(model, how, mesh, frozen).fit(
    data, lambda outputs: ((0.0,), {}), 0
  )
  return clock.rates(case.batch)


def map_rate(function, params, frozen, batch, mesh, case):
  """Maps of pictures a second."""
  clock, program = Clock(), training.compiled(function, mesh)
  for _ in range(FIRST + case.steps):
    jax.block_until_ready(program(params, frozen, batch))
    clock.tick()
  return clock.rates(case.batch)


def measured(case, asked):
  """Titles and rates of the stages that are asked for, one after the other."""
  count = math.gcd(case.batch, jax.local_device_count())
  mesh = parallel.make_mesh(1, jax.local_devices()[:count])
  stages, backbone = stages_of(case)
  batch = batch_of(case, mesh)
  everywhere = parallel.replicated(mesh)
  frozen = jax.device_put(backbone.start(0), everywhere)
  models, maps = models_of(stages, backbone), maps_of(stages, backbone, mesh)
  titles = [*(f"{n}: train" for n in models), *(f"{n}: maps" for n in maps)]
  for title in asked or case.stages or titles:
    name, _, what = title.partition(": ")
    if what == "train":
      stage = stages[name]
      rate = train_rate(models[name], stage, frozen, batch, mesh, case)
    else:
      params = {}
      if name in models:
        key = jax.random.key(0)
        params = jax.jit(models[name].init)(key, frozen, None)
        params = jax.device_put(params, everywhere)
      rate = map_rate(maps[name], params, frozen, batch, mesh, case)
    yield title, rate


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  default = ["small_128", "resnet50_256"]
  parser.add_argument("--cases", nargs="+", choices=CASES, default=default)
  parser.add_argument(
    "--stages", nargs="+", default=(), help="such as 'cam: train' 'crf: maps'"
  )
  parser.add_argument("--name", default="segment_speed")
  options = parser.parse_args()
  device = jax.local_devices()[0]
  result = {
    **harness.machine(),
    "device": device.device_kind,
    "devices": jax.local_device_count(),
    "load_average": harness.load_average(),  # of other work, on the cores
    "cases": {},
  }
  if device.platform == "cpu":
    result["device"] = harness.cpu_name()
  for name in options.cases:
    print(name, flush=True)
    case = CASES[name]
    about = {"backbone": case.backbone, "px": case.px, "batch": case.batch}
    rates = {}
    result["cases"][name] = {**about, "rates": rates}
    for title, rate in measured(case, options.stages):
      rates[title] = rate
      print(f"  {title:<16}{rate}", flush=True)
      harness.write_result(harness.RESULTS / f"{options.name}.json", result)


if __name__ == "__main__":
  main()
