"""Compiles the training step for TPUs that are not there, and reads the result.

    pip install wsiseq_jax[aot]
    python main.py --config=configs/videomae.py:base --config.job=aot \
        --config.aot.topology=v5e:16x16 --config.aot.records_per_chip=2 \
        --config.workdir=RUN

The compiler for TPU runs on any CPU machine and needs no TPU. It is given the
very step that training runs: same model, shardings, donation. What comes out is
the program each chip would execute, which shows before any chip is rented

- that it compiles, is split over the slice, and fits into memory;
- what it computes, reads and writes, and sends to neighbours;
- and so how fast it can be at best.

    seconds of a step >= max(FLOPs / peak, bytes / memory rate,
                             bytes sent / link rate)

is the roofline: each of the three goes on while the others do, and none at more
than its peak. The model-FLOPs bound is the first alone, of `Task.flops`: what
no implementation on this chip can beat.

Counts come from the program's text (`hlo_costs.py`), because the compiler's own
summary counts a loop over layers once. The FLOPs of our kernels, which the text
does not show, are added by hand from their shapes (`attention_tpu`); each of
their operands and results passes once between memory and chip.

No data are needed: without `data.path`, records are those of the drift recipe
(96 frames of 336 px in a strip of 336 x 1096).
"""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import simplejpeg
from jax.experimental import topologies
from ml_collections import ConfigDict

from data_prep import records
from wsiseq_jax import launch, parallel, tasks, train
from wsiseq_jax import run as train_setup
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import attention_tpu
from wsiseq_jax.tpu import chips, hlo_costs
from wsiseq_jax.tpu.aot_report import Report, table

# libtpu would otherwise ask the network whether this is a TPU machine, warn
# that it found out neither name nor type (which the topology decides, not
# this), and take a lock so that one process alone can use the chips.
_NO_TPU_HERE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def make_topology(name: str) -> Sequence[jax.Device]:
  """The devices of a slice that is not there.

  Args:
    name: `v5e:16x16`.

  Raises:
    ValueError: No such slice, or libtpu is not installed.
  """
  chip = chips.find(name)
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      "config.job = 'aot' needs the compiler for TPU: pip install libtpu (the "
      "extra `aot` of this project)"
    )
  for variable, value in _NO_TPU_HERE.items():
    os.environ.setdefault(variable, value)
  # The two cores of a v4 chip are one device, as on real machines.
  more = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
  try:
    return topologies.get_topology_desc(name, "tpu", **more).devices
  except jax.errors.JaxRuntimeError as error:
    first = str(error).splitlines()[0]
    raise ValueError(
      f"config.aot.topology = {name!r}: {first}. A slice of this chip is "
      f"{chip.example!r}"
    ) from error


class ReferenceRecords(sources.RecordSource):
  """Stands in for data: blank records of the drift recipe."""

  def __init__(self):
    self.split = "train"
    self.spec = sources.DataSpec(
      fingerprint="reference",
      geometry="drift",
      frames=96,
      panels=1,
      panel_px=(336, 336 + 95 * 8),
      frame_px=(336, 336),
      time_unit="um",
      target_names=(),
      target_classes={},
      metadata={},
    )

  def __len__(self) -> int:
    """Sequences of a hundred slides, 128 centres with 8 headings each."""
    return 102_400

  def record(self, index: int) -> records.SequenceRecord:
    """A blank record."""
    spec = self.spec
    left = 8 * np.arange(spec.frames, dtype=np.float32)
    box = np.zeros((spec.frames, 4), np.float32)
    box[:, 0], box[:, 2:] = left, spec.frame_px
    blank = np.full(spec.panels_shape[1:], 255, np.uint8)
    return records.SequenceRecord(
      sequence_id=str(index),
      slide_id="reference",
      patient_id="reference",
      panels=(simplejpeg.encode_jpeg(blank),),
      frame_panel=np.zeros(spec.frames, np.int32),
      frame_box=box,
      frame_level0_xy=box[:, :2],
      time=left / 4,
      frame_mask=np.ones(spec.frames, np.float32),
      mpp=0.25,
      heading_deg=0.0,
      targets=np.zeros(0, np.float32),
    )


def for_tpu(config: ConfigDict, records_per_chip: int, chips: int):
  """The experiment as it would run on the slice.

  `auto` attention asks which machine it runs on, which here is the wrong one.
  """

  def choose(block):
    for key, value in block.items():
      if isinstance(value, dict):
        choose(value)
      elif key == "attention_kernel" and value == "auto":
        block[key] = "tpu"

  values = config.to_dict()
  choose(values)
  if records_per_chip:
    values["data"]["batch_size"] = records_per_chip * chips
  return ConfigDict(values)


def compile_step(run: train_setup.Run) -> jax.stages.Compiled:
  """Compiles the training step of a run for the devices of its mesh."""
  step = train.make_train_step(run)
  rows = parallel.batch_sharding(run.mesh)
  batch = {
    name: jax.ShapeDtypeStruct(
      (run.config.data.batch_size, *np.shape(value)),
      np.asarray(value).dtype,
      sharding=rows,
    )
    for name, value in loader.load(run.source, 0).items()
  }
  return step.lower(run.abstract, batch).compile()


def _clips(run: train_setup.Run) -> int:
  rows = run.config.data.batch_size // run.mesh.size
  return rows * run.task.clips_per_record


def kernel_flops(kernel: hlo_costs.Kernel) -> int:
  """FLOPs of all runs of a kernel, by hand.

  Raises:
    ValueError: A kernel without a formula.
  """
  for name, one in attention_tpu.KERNEL_FLOPS.items():
    if name in kernel.name.split("/"):
      query, key = kernel.operands[:2]
      b, n, width = query.sizes
      return kernel.times * one(b, n, key.sizes[1], width)
  raise ValueError(f"kernel {kernel.name!r}: no formula for its FLOPs")


def network_bytes(collectives: Mapping[str, Sequence[float | int]]) -> float:
  """Bytes that each chip sends, at least, for its collectives.

  An all-reduce is a reduce-scatter and an all-gather: everything leaves twice.
  """
  return math.fsum(
    size * (2 if kind == "all-reduce" else 1)
    for kind, (_, size) in collectives.items()
  )


def analyse(run: train_setup.Run, topology: str) -> Report:
  """Compiles a step and counts what it does.

  Args:
    run: What `train.build` made for the devices of the slice.
    topology: The slice.

  Returns:
    The report; that the program does not fit is an answer, not an error.
  """
  chip = chips.find(topology)
  report = Report(
    topology=topology,
    chips=run.mesh.size,
    mesh=dict(run.mesh.shape),
    records=run.config.data.batch_size // run.mesh.size,
    clips=_clips(run),
    fits=False,
  )
  start = time.monotonic()
  try:
    compiled = compile_step(run)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    problem = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return dataclasses.replace(
      report, problem=problem, compile_seconds=time.monotonic() - start
    )
  seconds = time.monotonic() - start
  costs = hlo_costs.costs(compiled.as_text())
  memory, summary = compiled.memory_analysis(), compiled.cost_analysis()
  executed = costs.mxu_flops + sum(map(kernel_flops, costs.kernels))
  return dataclasses.replace(
    report,
    fits=True,
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=memory.peak_memory_in_bytes,
    model_flops=run.task.flops * _clips(run),
    flops=executed,
    hbm_bytes=costs.hbm_bytes,
    collectives=costs.collectives,
    compute_seconds=executed / chip.flops,
    memory_seconds=costs.hbm_bytes / chip.hbm_rate,
    network_seconds=network_bytes(costs.collectives) / chip.ici_rate,
    xla_flops=summary["flops"],
    xla_bytes=summary["bytes accessed"],
    compile_seconds=seconds,
  )


def find_largest(
  report: Callable[[int], Report], first: int = 1
) -> list[Report]:
  """Finds the largest power of two of records per chip that fits.

  Beyond the state, memory grows nearly linearly with the batch. The first
  program says how fast, which gives a guess; from there it is doubled or halved
  until one fits and twice as much does not. Three programs are compiled, as a
  rule.

  Args:
    report: Compiles for a number of records per chip.
    first: Where to begin, a power of two.

  Returns:
    All reports made, the largest that fits last; if one record does not fit,
    the report that says so.
  """
  done = {first: report(first)}
  count = first
  if done[first].fits:
    known = done[first]
    for_records = (known.peak_bytes - known.argument_bytes) / first
    room = chips.find(known.topology).hbm_bytes - known.argument_bytes
    count = 2 ** int(math.log2(max(room / for_records, 2 * first)))
    done[count] = report(count)
  while done[count].fits and 2 * count not in done:
    count *= 2
    done[count] = report(count)
  while not done[count].fits and count > 1:
    count //= 2
    if count not in done:
      done[count] = report(count)
  return [done[n] for n in sorted(done) if n != count] + [done[count]]


def make_run(config: ConfigDict, records_per_chip: int) -> train_setup.Run:
  """The run of a config on its slice, without data or devices."""
  devices = make_topology(config.aot.topology)
  config = for_tpu(config, records_per_chip, len(devices))
  config = tasks.get(config.task).resolve(config)
  source = ReferenceRecords()
  if config.data.path:
    source = sources.RecordSource(config.data.path, config.data.train_split)
  return train_setup.build(config, source, None, devices)


def aot(config: ConfigDict) -> list[Report]:
  """The job `aot`: compiles, prints the table, writes `aot_<slice>.json`.

  Args:
    config: The experiment; `config.aot` says for which slice.

  Returns:
    The reports, the last of which was printed.

  Raises:
    ValueError: No such slice, no libtpu, or a config that cannot run on it.
  """
  # Compiling must not take a real accelerator of this machine.
  jax.config.update("jax_platforms", "cpu")
  topology = config.aot.topology

  def one(records_per_chip: int) -> Report:
    report = analyse(make_run(config, records_per_chip), topology)
    verdict = "fits" if report.fits else f"does not fit ({report.problem})"
    launch.log(f"{report.records} records a chip: {verdict}")
    return report

  if config.aot.find_largest:
    reports = find_largest(one, config.aot.records_per_chip or 1)
  else:
    reports = [one(config.aot.records_per_chip)]
  print(table(reports[-1]), flush=True)
  workdir = pathlib.Path(config.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / f"aot_{topology.replace(':', '_')}.json"
  values = [report.to_dict() for report in reports]
  path.write_text(json.dumps(values, indent=2) + "\n")
  launch.log(f"written: {path}")
  return reports
