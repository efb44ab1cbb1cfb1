r"""What ViT-B, L and H cost on slices of TPUs, compiled on a CPU machine.

    JAX_PLATFORMS=cpu python benchmarks/aot_table.py

For each network and slice: the step with 8 clips a chip, and with the largest
power of two of sequences (four clips each) that fits into memory. Blocks keep
matrix products only (`model.remat=dots`), weights are cut over eight chips
(`mesh.fsdp=8`). ViT-B on v5e is also compiled with attention as separate
operations and everything kept, for comparison. Each program takes one to two
minutes to compile; rows that the file of results has already are not compiled
again.
"""

import argparse
import dataclasses
import json
import pathlib

import harness
import jax
from ml_collections import ConfigDict

from benchmarks import hlo_costs
from configs import videomae
from wsiseq_jax import launch
from wsiseq_jax.tpu import aot

PRESETS = ("base", "large", "huge")
TOPOLOGIES = ("v5e:16x16", "v5p:4x8x8", "v6e:16x16")
RESULTS = harness.RESULTS / "aot_table.json"
# name: (preset, topology, attention, remat, fsdp, whether to find the largest)
ROWS = (
  {
    f"{preset} on {topology}": (preset, topology, "tpu", "dots", 8, False)
    for topology in TOPOLOGIES
    for preset in PRESETS
  }
  | {
    "base, unfused attention": ("base", "v5e:16x16", "xla", "none", 1, False),
    "base, all kept": ("base", "v5e:16x16", "tpu", "none", 1, False),
    "base, dots": ("base", "v5e:16x16", "tpu", "dots", 1, False),
  }
  | {
    f"{preset} on {topology}, largest": (
      preset, topology, "tpu", "dots", 8, True,
    )
    for topology in TOPOLOGIES
    for preset in PRESETS
  }
)  # fmt: skip


def make_config(preset, topology, kernel, remat, fsdp) -> ConfigDict:
  config = videomae.get_config(preset)
  config.model.attention_kernel = kernel
  config.model.remat = remat
  config.mesh.fsdp = fsdp
  config.aot.topology = topology
  return config


def measure(row: tuple, known: list[dict]) -> list[dict]:
  """Reports of a row; the last is that of the largest batch.

  Args:
    row: a value of `ROWS`.
    known: what the same row with two records gave, if the largest is wanted.
  """
  *setting, largest = row
  config, topology = make_config(*setting), setting[1]
  rows = {}

  def one(records_per_chip: int) -> aot.StepReport:
    if known and records_per_chip == known[0]["records"]:
      rows[records_per_chip] = known[0]
      names = {field.name for field in dataclasses.fields(aot.StepReport)}
      return aot.StepReport(**{k: v for k, v in known[0].items() if k in names})
    run = aot.make_run(config, records_per_chip)
    report, compiled = aot.analyse(run, topology)
    launch.log(aot.table(report) + "\n")
    more = hlo_costs.roofline(report, compiled) if compiled else {}
    rows[report.records] = report.to_dict() | more
    return report

  # The first guess of the search follows from two records, as a rule.
  reports = aot.find_largest(one, first=2) if largest else [one(2)]
  return [rows[report.records] for report in reports]


COLUMNS = (
  ("program", lambda name, row: name),
  ("clips a chip", lambda name, row: f"{row['clips']}"),
  ("GiB", lambda name, row: f"{row['peak_bytes'] / 2**30:.2f}"),
  ("TFLOP", lambda name, row: f"{row['flops'] / 1e12:.2f}"),
  ("GB", lambda name, row: f"{row['hbm_bytes'] / 1e9:.1f}"),
  ("compute", lambda name, row: f"{1e3 * row['compute_seconds']:.1f}"),
  ("memory", lambda name, row: f"{1e3 * row['memory_seconds']:.1f}"),
  ("network", lambda name, row: f"{1e3 * row['network_seconds']:.1f}"),
  (
    "MFU",
    lambda name, row: f"{row['model_seconds'] / row['step_seconds']:.0%}",
  ),
  ("clips/s", lambda name, row: f"{row['clips_per_second']:,.0f}"),
)


def markdown(rows: dict[str, list[dict]]) -> str:
  """The table of all rows that fit, the last report of each."""
  lines = [
    "| " + " | ".join(title for title, _ in COLUMNS) + " |",
    "|---" * len(COLUMNS) + "|",
  ]
  for name in ROWS:
    if name in rows and rows[name][-1]["fits"]:
      cells = [cell(name, rows[name][-1]) for _, cell in COLUMNS]
      lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
  results = parser.parse_args().results
  jax.config.update("jax_platforms", "cpu")
  rows = {}
  if results.is_file():
    rows = json.loads(results.read_text())["rows"]
  for name, row in ROWS.items():
    if name in rows:
      continue
    rows[name] = measure(row, rows.get(name.removesuffix(", largest")))
    values = {
      "jax": jax.__version__,
      "system": harness.system(),
      "rows": rows,
    }
    harness.write_result(results, values)
  print(markdown(rows))


if __name__ == "__main__":
  main()
