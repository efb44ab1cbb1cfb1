"""Leak of every kind of mask against ratio, drift, heading and window shape.

Run from a checkout: `python benchmarks/mask_leak.py`. Writes
`benchmarks/results/mask_leak.json` and `docs/mask_leak.png`, prints tables.
No data needed: masks and leaks are geometry.
"""

import argparse

import harness
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import leak as leak_lib
from wsiseq_jax.models import masking

PATCH = (2, 16, 16)
FRAMES = 16
# Whole 336 px frames, a 252 px crop and the smallest crop, resized to 224 px,
# eight stored pixels and four stored frames a step.
DRIFTS = (21.3, 28.4, 32.4)
RATIOS = (0.4, 0.6, 0.75, 0.9, 0.95)


def measure(spec, drift, heading_deg, clips) -> float:
  """Mean leak over random masks of one constant drift."""
  angle = np.deg2rad(heading_deg)
  step = drift * np.array([np.cos(angle), -np.sin(angle)])
  shift = np.arange(FRAMES)[:, None] * step[None]
  shifts = jnp.asarray(np.repeat(shift[None], clips, 0), jnp.float32)
  panel = jnp.zeros((clips, FRAMES), jnp.int32)
  mask = masking.make_mask(jax.random.key(0), shifts, panel, spec)
  visible = np.asarray(masking.is_visible(mask, spec))
  return float(np.mean([leak_lib.leak(v, shift, PATCH) for v in visible]))


def table(rows, columns, value):
  """A table as nested dictionaries, printed as it grows."""
  result = {}
  width = max(len(str(r)) for r in rows) + 2
  print(" " * width + "".join(f"{c!s:>9}" for c in columns))
  for row in rows:
    result[str(row)] = {str(c): round(value(row, c), 4) for c in columns}
    cells = "".join(f"{v:9.3f}" for v in result[str(row)].values())
    print(f"{row!s:<{width}}{cells}", flush=True)
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--clips", type=int, default=32, help="masks a number")
  clips = parser.parse_args().clips

  def spec(kind="tissue", ratio=0.9, grid=(8, 14, 14), run=8.0):
    return masking.MaskSpec(
      grid, PATCH, kind=kind, ratio=ratio, run_patches=run
    )

  result = {"clips": clips, "frames": FRAMES, "patch": PATCH}
  for kind in masking.KINDS:
    print(f"\n{kind}: drift (px a frame) by mask ratio")
    result[f"{kind}_by_ratio"] = table(
      DRIFTS, RATIOS, lambda d, r, k=kind: measure(spec(k, r), d, 0, clips)
    )
  print("\ntissue, ratio 0.9: drift by length of a run (patches)")
  result["tissue_by_run"] = table(
    DRIFTS,
    (2, 4, 6, 8, 12, 16),
    lambda d, run: measure(spec(run=run), d, 0, clips),
  )
  print("\nratio 0.9, 28.4 px a frame: kind by direction of travel (degrees)")
  result["by_heading"] = table(
    masking.KINDS,
    (0, 30, 45, 60, 90, 135, 180),
    lambda k, h: measure(spec(k), 28.4, h, clips),
  )
  print("\nratio 0.9, 28.4 px a frame: kind by window (tokens high x wide)")
  windows = {"7x14": (8, 7, 14), "14x7": (8, 14, 7), "10x20": (8, 10, 20),
             "20x10": (8, 20, 10)}  # fmt: skip
  result["by_window"] = table(
    masking.KINDS,
    tuple(windows),
    lambda k, g: measure(spec(k, grid=windows[g]), 28.4, 0, clips),
  )
  print("\nstanding window (no drift), ratio 0.9, by kind")
  result["standing"] = table(
    masking.KINDS, (0,), lambda k, d: measure(spec(k), d, 0, clips)
  )
  harness.write_result(harness.RESULTS / "mask_leak.json", result)
  plot(result, harness.ROOT / "docs" / "mask_leak.png")


def plot(result, path):
  """Leak against mask ratio, one line a kind and drift."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=120)
  colours = {"tissue": "#1b7f5c", "tube": "#b5432a", "random": "#4667a8"}
  names = {"tissue": "motion-aligned tubes", "tube": "tubes fixed in the image",
           "random": "random tokens"}  # fmt: skip
  styles = ("-", "--", ":")
  for kind in masking.KINDS:
    for drift, style in zip(DRIFTS, styles, strict=True):
      line = result[f"{kind}_by_ratio"][str(drift)]
      axes.plot(
        [float(r) for r in line],
        list(line.values()),
        style,
        color=colours[kind],
        marker="o",
        markersize=3,
        label=f"{names[kind]}, {drift} px a frame",
      )
  axes.set(
    xlabel="mask ratio",
    ylabel="share of hidden pixels visible elsewhere",
    ylim=(0, 1.02),
    title="What a mask fails to hide in a drift sequence",
  )
  axes.grid(alpha=0.3)
  axes.legend(fontsize=7, frameon=False)
  figure.tight_layout()
  path.parent.mkdir(exist_ok=True)
  figure.savefig(path)


if __name__ == "__main__":
  main()
