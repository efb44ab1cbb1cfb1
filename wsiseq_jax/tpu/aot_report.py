"""What compiling a step for a slice of TPUs found out, and its table.

See `aot.py` for what the numbers mean and where they come from.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wsiseq_jax.tpu import chips


@dataclasses.dataclass(frozen=True)
class Report:
  """What is known of a compiled step; all numbers are per chip and step.

  Attributes:
    topology: The slice.
    chips: Its chips.
    mesh: Sizes of the mesh axes.
    records: Sequences loaded.
    clips: Clips cut from them.
    fits: Whether the program fits into memory. If not, the rest is None.
    problem: What the compiler said if it does not fit.
    argument_bytes: State and batch.
    temporary_bytes: What the compiler sets aside besides.
    peak_bytes: The most that is alive at once.
    model_flops: FLOPs of the model, None for a program that does not fit.
    flops: FLOPs in matrix products that the program executes.
    hbm_bytes: Bytes to and from memory.
    collectives: {kind: [times, bytes]}.
    compute_seconds: `flops` at peak.
    memory_seconds: `hbm_bytes` at peak.
    network_seconds: Collectives at peak.
    xla_flops: FLOPs in the compiler's summary, loops counted once.
    xla_bytes: Bytes accessed in the compiler's summary.
    compile_seconds: How long compiling took here.
  """

  topology: str
  chips: int
  mesh: Mapping[str, int]
  records: int
  clips: int
  fits: bool
  problem: str = ""
  argument_bytes: int | None = None
  temporary_bytes: int | None = None
  peak_bytes: int | None = None
  model_flops: float | int | None = None
  flops: float | int | None = None
  hbm_bytes: float | None = None
  collectives: Mapping[str, Sequence[float | int]] = dataclasses.field(
    default_factory=dict
  )
  compute_seconds: float | None = None
  memory_seconds: float | None = None
  network_seconds: float | None = None
  xla_flops: float | int | None = None
  xla_bytes: float | None = None
  compile_seconds: float | None = None

  @property
  def step_seconds(self) -> float:
    """The roofline: the slowest of the three."""
    return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

  @property
  def limit(self) -> str:
    """Which of the three that is."""
    sides = {
      "compute": self.compute_seconds,
      "memory": self.memory_seconds,
      "network": self.network_seconds,
    }
    return max(sides, key=sides.get)

  @property
  def clips_per_second(self) -> float:
    """Of the whole slice, at the roofline."""
    return self.clips * self.chips / self.step_seconds

  @property
  def model_seconds(self) -> float | None:
    """The model-FLOPs bound."""
    if self.model_flops is None:
      return None
    return self.model_flops / chips.find(self.topology).flops

  def to_dict(self) -> dict[str, Any]:
    """For JSON, with what follows from the counts."""
    values = dataclasses.asdict(self)
    if self.fits:
      values |= {
        "intensity": self.flops / self.hbm_bytes,
        "limit": self.limit,
        "step_seconds": self.step_seconds,
        "model_seconds": self.model_seconds,
        "clips_per_second": self.clips_per_second,
      }
    return values


def table(report: Report) -> str:
  """The report as text."""
  chip = chips.find(report.topology)
  mesh = " x ".join(f"{name} {size}" for name, size in report.mesh.items())
  rows = [
    ("slice", f"{report.topology}, {report.chips} chips, mesh {mesh}"),
    ("a chip's share", f"{report.records} records, {report.clips} clips"),
    ("compiled in", f"{report.compile_seconds:.0f} s"),
  ]
  if not report.fits:
    rows.append(("fits in memory", f"NO: {report.problem}"))
    return _lines(rows)
  gib = 2**30
  rows += [
    (
      "fits in memory",
      f"yes, {report.peak_bytes / gib:.2f} of {chip.hbm_bytes / gib:.0f} GiB "
      "are in use at the peak",
    ),
    ("  arguments", f"{report.argument_bytes / gib:.2f} GiB"),
    ("  temporaries", f"{report.temporary_bytes / gib:.2f} GiB"),
    ("FLOPs executed", f"{report.flops / 1e12:.3f} T"),
    ("bytes accessed", f"{report.hbm_bytes / 1e9:.2f} GB"),
    (
      "intensity",
      f"{report.flops / report.hbm_bytes:.0f} FLOP/byte; the chip balances at "
      f"{chip.flops / chip.hbm_rate:.0f}",
    ),
  ]
  for kind, (count, size) in report.collectives.items():
    rows.append((kind, f"{count} times, {size / 1e6:.1f} MB"))
  rows += [
    ("compute", f"{1e3 * report.compute_seconds:.2f} ms"),
    ("memory", f"{1e3 * report.memory_seconds:.2f} ms"),
    ("network", f"{1e3 * report.network_seconds:.2f} ms"),
    (
      "roofline",
      f"{1e3 * report.step_seconds:.2f} ms a step, limited by {report.limit}",
    ),
  ]
  if report.model_flops is not None:
    share = report.model_seconds / report.step_seconds
    rows += [
      ("FLOPs of the model", f"{report.model_flops / 1e12:.3f} T"),
      (
        "model-FLOPs bound",
        f"{1e3 * report.model_seconds:.2f} ms a step: at the roofline "
        f"{100 * share:.0f} % MFU",
      ),
    ]
  rows.append(("slice at roofline", f"{report.clips_per_second:,.0f} clips/s"))
  return _lines(rows)


def _lines(rows: Sequence[tuple[str, str]]) -> str:
  return "\n".join(f"{name:<20} {value}" for name, value in rows)
