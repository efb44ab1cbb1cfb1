"""Compiling for TPUs on a CPU machine; the slow ones run the real compiler."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from benchmarks import hlo_costs
from configs import contrastive, videomae
from wsiseq_jax import config as configs
from wsiseq_jax import tasks
from wsiseq_jax.data import loader
from wsiseq_jax.tpu import aot, chips

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed (the extra `aot`)",
)


@pytest.fixture(autouse=True)
def usual_precision():
  """Products as training has them; other tests ask for six passes each."""
  with jax.default_matmul_precision("default"):
    yield


@pytest.fixture
def least_effort():
  """Compiles in a third of the time; memory comes out a few per cent larger.

  What is split, exchanged and multiplied is the same.
  """
  names = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
  before = {name: getattr(jax.config, name) for name in names}
  for name in names:
    jax.config.update(name, -1.0)
  yield
  for name, effort in before.items():
    jax.config.update(name, effort)


REPORT = aot.StepReport(
  topology="v5e:2x4",
  chips=8,
  mesh={"data": 8, "fsdp": 1},
  records=2,
  clips=8,
  fits=True,
  model_flops=1.97e12,
  compile_seconds=1.0,
  argument_bytes=2**30,
  temporary_bytes=2**31,
  peak_bytes=3 * 2**30,
  xla_flops=1.0,
  xla_bytes=1.0,
)


def smoke_config(**settings):
  config = videomae.get_config("smoke")
  config.data.path = ""
  config.workdir = "unused"
  config.aot.update(settings)
  return config


def test_bound_by_hand():
  assert REPORT.model_seconds == pytest.approx(1.97e12 / 197e12)
  assert REPORT.to_dict()["model_seconds"] == REPORT.model_seconds


def test_table_says_what_fits():
  text = aot.table(REPORT)
  assert "yes, 3.00 of 16 GiB are in use" in text
  assert "10.00 ms a step, 6,400 clips/s" in text
  full = dataclasses.replace(REPORT, fits=False, problem="20G of 15.75G")
  assert "NO: 20G of 15.75G" in aot.table(full)


@pytest.mark.parametrize("name", ["v9:2x2", "v5litepod-16", ""])
def test_unknown_chip_lists_what_works(name):
  with pytest.raises(ValueError, match="config.aot.topology.*'v5e:16x16'"):
    chips.find(name)


def fake_reports(largest, state=2**30, per_record=2**28):
  """Programs of which those of up to `largest` records fit."""
  compiled = []

  def report(n):
    compiled.append(n)
    return dataclasses.replace(
      REPORT,
      records=n,
      fits=n <= largest,
      argument_bytes=state,
      peak_bytes=state + n * per_record,
    )

  return report, compiled


def test_largest_is_found_in_few_programs():
  # 15 GiB of room and 1/4 GiB a record: guessed 32, and 64 does not fit.
  report, compiled = fake_reports(largest=60)
  reports = aot.find_largest(report)
  assert reports[-1].records == 32
  assert compiled == [1, 32, 64]
  assert len(reports) == 3


def test_largest_where_the_guess_is_wrong():
  for largest, expected in ((9, 8), (1, 1), (300, 256)):
    report, _ = fake_reports(largest)
    assert aot.find_largest(report)[-1].records == expected


def test_largest_where_nothing_fits():
  report, compiled = fake_reports(largest=0)
  reports = aot.find_largest(report)
  assert not reports[-1].fits
  assert compiled == [1]


def test_reference_records_are_those_of_the_recipe():
  source = aot.ReferenceRecords()
  batch = loader.load(source, 0)
  assert batch["panels"].shape == (1, 336, 1096, 3)
  assert batch["frame_box"][-1].tolist() == [760, 0, 336, 336]
  # 2 um from frame to frame.
  assert batch["time"][1] - batch["time"][0] == 2


@needs_libtpu
@pytest.mark.aot
def test_slice_that_does_not_exist():
  with pytest.raises(ValueError, match="config.aot.topology = 'v5e:3x3'"):
    aot.make_topology("v5e:3x3")


@needs_libtpu
@pytest.mark.aot
@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=chips.CHIPS)
def test_examples_exist_one_device_a_chip(chip):
  sizes = [int(s) for s in chip.example.split(":")[1].split("x")]
  expected = 1
  for size in sizes:
    expected *= size
  assert len(aot.make_topology(chip.example)) == expected


@needs_libtpu
@pytest.mark.aot
@pytest.mark.slow
def test_job_prints_and_writes(tmp_path, capsys):
  config = smoke_config(topology="v5e:2x4")
  config.workdir = str(tmp_path)
  configs.validate(config, tasks.get(config.task).Config)
  (report,) = aot.run(config)
  printed = capsys.readouterr().out
  assert "v5e:2x4, 8 chips, mesh data 8 x fsdp 1" in printed
  (row,) = json.loads((tmp_path / "aot_v5e_2x4.json").read_text())
  assert row["model_seconds"] == report.model_seconds
  assert row["fits"]


@needs_libtpu
@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
  "preset", sorted({*videomae.PRESETS} - {"smoke", "small", "series,smoke"})
)
def test_every_preset_compiles(preset, least_effort):
  """One record a chip on eight chips: it fits, and nothing is wasted.

  `small` is `base` with fewer channels.
  """
  config = videomae.get_config(preset)
  if preset == "giant":
    config.mesh.fsdp = 8  # weights, moments and gradients: 16 bytes a parameter
  run = aot.make_run(config, records_per_chip=1)
  report, compiled = aot.analyse(run, "v5e:2x4")
  assert report.fits, report.problem
  counted = hlo_costs.roofline(report, compiled)
  # The kernels compute the scores once more; the crop runs in three passes.
  assert counted["flops"] >= report.model_flops
  if config.model.remat == "none" and "demo" not in preset:
    assert counted["flops"] < 1.3 * report.model_flops
  if config.mesh.fsdp == 1:
    # Weights are whole on each chip: gradients are summed, nothing else moves.
    assert set(counted["collectives"]) == {"all-reduce"}
  else:
    # Weights and gradients move, clips stay where they are.
    assert "all-gather" in counted["collectives"]
    assert "all-to-all" not in counted["collectives"]


@needs_libtpu
@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
  "preset", ["tvrl", "ltn,smoke", "clm,smoke", "cvrl,smoke"]
)
def test_contrastive_presets_compile(preset, least_effort):
  """csimclr and csimclr_te are a part of tvrl's step.

  The others have its encoder: what they exchange does not depend on its size.
  """
  config = contrastive.get_config(preset)
  config.data.path = ""
  run = aot.make_run(config, records_per_chip=1)
  report, compiled = aot.analyse(run, "v5e:2x4")
  assert report.fits, report.problem
  counted = hlo_costs.roofline(report, compiled)
  assert counted["flops"] >= report.model_flops
  # Gradients are summed; of the activations, only what is compared moves.
  assert set(counted["collectives"]) == {"all-reduce", "all-gather"}
  assert counted["collectives"]["all-gather"][0] <= 3
