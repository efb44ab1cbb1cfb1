"""Compiles the training step for TPUs that are not there.

    pip install wsiseq_jax[aot]
    python main.py --config=configs/videomae.py:base --config.job=aot \
        --config.aot.topology=v5e:16x16 --config.aot.records_per_chip=2 \
        --config.workdir=RUN

The compiler for TPU runs on any CPU machine. It is given the very step that
training runs: same model, shardings, donation. So it says before any chip is
rented whether the step compiles, is split over the slice and fits into memory;
`Task.flops` says how fast it can be at best.

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
from typing import Any

import jax
import numpy as np
import simplejpeg
from jax.experimental import topologies
from ml_collections import ConfigDict

from data_prep import records
from data_prep.files import atomic
from wsiseq_jax import launch, parallel, tasks, train
from wsiseq_jax import run as train_setup
from wsiseq_jax.data import loader, sources
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.tpu import chips

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
  """The devices of a slice that is not there."""
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


class ReferenceRecords:
  """Stands in for data: blank records of the drift recipe."""

  def __init__(self):
    self.split, self.identity = "train", "reference"
    self.spec = DataSpec(
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


@dataclasses.dataclass(frozen=True)
class StepReport:
  """What is known of a compiled step; all numbers are per chip and step."""

  topology: str  # the slice
  chips: int  # its chips
  mesh: Mapping[str, int]  # sizes of the mesh axes
  records: int  # sequences loaded
  clips: int  # clips cut from them
  # Whether the program fits into memory. If not, bytes are None.
  fits: bool
  model_flops: float | int  # FLOPs of the model: nothing that is computed twice
  compile_seconds: float  # how long compiling took here
  problem: str = ""  # what the compiler said if it does not fit
  argument_bytes: int | None = None  # state and batch
  temporary_bytes: int | None = None  # what the compiler sets aside besides
  peak_bytes: int | None = None  # the most that is alive at once
  # FLOPs in the compiler's summary, which counts a loop once.
  xla_flops: float | int | None = None
  # Bytes accessed in the compiler's summary.
  xla_bytes: float | int | None = None

  @property
  def model_seconds(self) -> float:
    """The model-FLOPs bound: what no program on this chip can beat."""
    return self.model_flops / chips.find(self.topology).flops

  def to_dict(self) -> dict[str, Any]:
    """For JSON, with the bound."""
    return dataclasses.asdict(self) | {"model_seconds": self.model_seconds}


def table(report: StepReport) -> str:
  """The report as text."""
  chip, gib = chips.find(report.topology), 2**30
  mesh = " x ".join(f"{name} {size}" for name, size in report.mesh.items())
  rows = [
    ("slice", f"{report.topology}, {report.chips} chips, mesh {mesh}"),
    ("a chip's share", f"{report.records} records, {report.clips} clips"),
    ("compiled in", f"{report.compile_seconds:.0f} s"),
  ]
  if report.fits:
    rows += [
      (
        "fits in memory",
        f"yes, {report.peak_bytes / gib:.2f} of {chip.hbm_bytes / gib:.0f} "
        "GiB are in use at the peak",
      ),
      ("  arguments", f"{report.argument_bytes / gib:.2f} GiB"),
      ("  temporaries", f"{report.temporary_bytes / gib:.2f} GiB"),
    ]
  else:
    rows.append(("fits in memory", f"NO: {report.problem}"))
  rate = report.clips * report.chips / report.model_seconds
  rows += [
    ("FLOPs of the model", f"{report.model_flops / 1e12:.3f} T"),
    (
      "model-FLOPs bound",
      f"{1e3 * report.model_seconds:.2f} ms a step, {rate:,.0f} clips/s of "
      "the slice; a real step is slower",
    ),
  ]
  return "\n".join(f"{name:<20} {value}" for name, value in rows)


def analyse(
  run: train_setup.Run, topology: str
) -> tuple[StepReport, jax.stages.Compiled | None]:
  """Compiles a step and says whether it fits."""
  records = run.config.data.batch_size // run.mesh.size
  clips = records * run.task.clips_per_record
  start, compiled, more = time.monotonic(), None, {}
  try:
    compiled = compile_step(run)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    first = str(error).splitlines()[0]
    more["problem"] = first.removeprefix("RESOURCE_EXHAUSTED: ")
  seconds = time.monotonic() - start
  if compiled is not None:
    memory, summary = compiled.memory_analysis(), compiled.cost_analysis()
    more = {
      "argument_bytes": memory.argument_size_in_bytes,
      "temporary_bytes": memory.temp_size_in_bytes,
      "peak_bytes": memory.peak_memory_in_bytes,
      "xla_flops": summary["flops"],
      "xla_bytes": summary["bytes accessed"],
    }
  report = StepReport(
    topology=topology,
    chips=run.mesh.size,
    mesh=dict(run.mesh.shape),
    records=records,
    clips=clips,
    fits=compiled is not None,
    model_flops=run.task.flops * clips,
    compile_seconds=seconds,
    **more,
  )
  return report, compiled


def find_largest(
  report: Callable[[int], StepReport], first: int = 1
) -> list[StepReport]:
  """Finds the largest power of two of records per chip that fits.

  Beyond the state, memory grows nearly linearly with the batch. The first
  program says how fast, which gives a guess; from there it is doubled or halved
  until one fits and twice as much does not. Three programs are compiled, as a
  rule.
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
  if records_per_chip:
    config = ConfigDict(config.to_dict())
    config.data.batch_size = records_per_chip * len(devices)
  config = tasks.get(config.task).resolve(config)
  source = ReferenceRecords()
  if config.data.path:
    source = sources.open(config.data.path, config.data.train_split)
  return train_setup.build(config, source, None, devices)


def run(config: ConfigDict) -> list[StepReport]:
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

  def one(records_per_chip: int) -> StepReport:
    report, _ = analyse(make_run(config, records_per_chip), topology)
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
  atomic.write_atomic(path, json.dumps(values, indent=2) + "\n")
  launch.log(f"written: {path}")
  return reports
