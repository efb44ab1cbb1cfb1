"""Compiling for TPUs on a CPU machine; the slow ones run the real compiler."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from configs import contrastive, videomae
from wsiseq_jax import config as configs
from wsiseq_jax import tasks
from wsiseq_jax.data import loader
from wsiseq_jax.tpu import aot, aot_report, chips, hlo_costs
from wsiseq_jax.tpu.hlo import ArrayShape

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed (the extra `aot`)",
)


@pytest.fixture(autouse=True)
def usual_precision():
  """Products as training has them; other tests ask for six passes each."""
  with jax.default_matmul_precision("default"):
    yield


REPORT = aot_report.Report(
  topology="v5e:2x4",
  chips=8,
  mesh={"data": 8, "fsdp": 1},
  records=2,
  clips=8,
  fits=True,
  argument_bytes=2**30,
  temporary_bytes=2**31,
  peak_bytes=3 * 2**30,
  model_flops=1.97e12,
  flops=3.94e12,
  hbm_bytes=8.19e9,
  collectives={"all-reduce": (3, 1e9), "all-gather": (2, 2e9)},
  compute_seconds=0.02,
  memory_seconds=0.01,
  network_seconds=0.005,
  xla_flops=1.0,
  xla_bytes=1.0,
  compile_seconds=1.0,
)


def smoke_config(**settings):
  config = videomae.get_config("smoke")
  config.data.path = ""
  config.workdir = "unused"
  config.aot.update(settings)
  return config


def test_bounds_by_hand():
  assert REPORT.step_seconds == 0.02
  assert REPORT.limit == "compute"
  assert REPORT.clips_per_second == 8 * 8 / 0.02
  assert REPORT.model_seconds == pytest.approx(1.97e12 / 197e12)
  # An all-reduce sends everything twice.
  assert aot.network_bytes(REPORT.collectives) == 4e9
  assert REPORT.to_dict()["intensity"] == pytest.approx(3.94e12 / 8.19e9)


def test_table_says_what_limits():
  text = aot_report.table(REPORT)
  assert "yes, 3.00 of 16 GiB are in use" in text
  assert "20.00 ms a step, limited by compute" in text
  assert "at the roofline 50 % MFU" in text
  assert "3,200 clips/s" in text
  full = dataclasses.replace(REPORT, fits=False, problem="20G of 15.75G")
  assert aot_report.table(full).endswith("NO: 20G of 15.75G")


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


def test_config_for_tpu():
  config = smoke_config()
  there = aot.for_tpu(config, records_per_chip=3, chips=8)
  assert there.data.batch_size == 24
  assert there.model.attention_kernel == "tpu"
  assert config.model.attention_kernel == "auto"
  config.model.attention_kernel = "xla"
  there = aot.for_tpu(config, records_per_chip=0, chips=8)
  assert there.data.batch_size == config.data.batch_size
  assert there.model.attention_kernel == "xla"


def test_kernel_without_a_formula_is_an_error():
  shape = ArrayShape("bf16", (2, 10, 64))
  kernel = hlo_costs.Kernel("jit(f)/attention_forward/pallas_call", 3, 0.0,
                            (shape,) * 3)  # fmt: skip
  assert aot.kernel_flops(kernel) == 3 * 2 * 2 * (2 * 10 * 10 * 64)
  other = dataclasses.replace(kernel, name="jit(f)/other/pallas_call")
  with pytest.raises(ValueError, match="no formula for its FLOPs"):
    aot.kernel_flops(other)


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
  (report,) = aot.aot(config)
  printed = capsys.readouterr().out
  assert "v5e:2x4, 8 chips, mesh data 8 x fsdp 1" in printed
  (row,) = json.loads((tmp_path / "aot_v5e_2x4.json").read_text())
  assert row["clips_per_second"] == report.clips_per_second
  assert row["fits"]


@needs_libtpu
@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
  "preset", [p for p in videomae.PRESETS if "smoke" not in p]
)
def test_every_preset_compiles(preset):
  """One record a chip on eight chips: it fits, and nothing is wasted."""
  config = videomae.get_config(preset)
  if preset == "giant":
    config.mesh.fsdp = 8  # weights, moments and gradients: 16 bytes a parameter
  run = aot.make_run(config, records_per_chip=1)
  report = aot.analyse(run, "v5e:2x4")
  assert report.fits, report.problem
  # The kernels compute the scores once more; the crop runs in three passes.
  assert report.flops >= report.model_flops
  if config.model.remat == "none" and "demo" not in preset:
    assert report.flops < 1.3 * report.model_flops
  if config.mesh.fsdp == 1:
    # Weights are whole on each chip: gradients are summed, nothing else moves.
    assert set(report.collectives) == {"all-reduce"}
  else:
    # Weights and gradients move, clips stay where they are.
    assert "all-gather" in report.collectives
    assert "all-to-all" not in report.collectives


@needs_libtpu
@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("method", ["tvrl", "ltn", "clm", "cvrl"])
def test_contrastive_presets_compile(method):
  """csimclr and csimclr_te are a part of tvrl's step."""
  run = aot.make_run(contrastive.get_config(method), records_per_chip=1)
  report = aot.analyse(run, "v5e:2x4")
  assert report.fits, report.problem
  assert report.flops >= report.model_flops
  # Gradients are summed; of the activations, only what is compared moves.
  assert set(report.collectives) == {"all-reduce", "all-gather"}
  assert report.collectives["all-gather"][0] <= 3
