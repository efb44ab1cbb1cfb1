"""The dense CRF on windows of several widths, against all pairs of places.

  python benchmarks/dense_crf.py                      (two minutes)

Drawn pictures of 256 and of 512 px: two textures of colours that overlap, and
scores that are blurred and noisy. For each width, in standard deviations of the
far kernel: seconds of CPU for mining the labels of a picture, ten iterations
and both thresholds; the share of labels that differ from those of all pairs;
and of the labels that are not ignored, how many are right, without and with the
CRF.

Writes `benchmarks/results/dense_crf.json`.
"""

import argparse
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from wsiseq_jax.segment import crf

SIDES = {"256 px": 64, "512 px": 128}
WINDOWS = (2.0, 3.0, 100.0)  # the last one is all pairs
LIMITS = (0.5, 0.25)


def picture(side):
  """Truth, colours and scores."""
  rng = np.random.default_rng(0)

  def smooth(shape, sigma):
    return scipy.ndimage.gaussian_filter(rng.normal(size=shape), sigma)

  truth = smooth((side, side), side / 16) > 0
  colours = np.where(truth[..., None], [150, 90, 140], [190, 140, 180])
  colours = colours + 25 * smooth((side, side, 3), (1, 1, 0))
  scores = scipy.ndimage.gaussian_filter(truth * 1.0, 4)
  scores = np.clip(scores + 2 * smooth((side, side), 3), 0, 1)[..., None]
  return truth, colours.astype(np.float32), scores.astype(np.float32)


def quality(labels, truth):
  """Share of pixels that are labelled, and of those that are right."""
  known = labels != 255
  right = (labels == truth)[known].mean()
  return {
    "labelled": round(float(known.mean()), 3),
    "right": round(float(right), 4),
  }


def main() -> None:
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  ).parse_args()
  result = {"machine": {**harness.machine(), "cpu": harness.cpu_name()}}
  for name, side in SIDES.items():
    truth, colours, scores = picture(side)
    arrays = jax.device_put((scores, colours, np.ones((side, side), bool)))
    found, rows = {}, {}
    for window in WINDOWS:
      settings = crf.DenseCrf(window=window)
      program = jax.jit(lambda *a, s=settings: crf.mine(*a, *LIMITS, s)[1])
      program(*arrays).block_until_ready()
      start = time.process_time()
      found[window] = np.asarray(program(*arrays))
      rows[f"window {window:g}"] = {
        "cpu_seconds": round(time.process_time() - start, 2),
        **quality(found[window], truth),
      }
    for window in WINDOWS:
      differ = float((found[window] != found[WINDOWS[-1]]).mean())
      rows[f"window {window:g}"]["differ_from_all_pairs"] = round(differ, 5)
    scores = jnp.asarray(scores)
    high, low = (crf.labels_of(scores, limit) for limit in LIMITS)
    rows["without crf"] = quality(np.asarray(crf.mined(high, low)), truth)
    result[name] = rows
  path = harness.RESULTS / "dense_crf.json"
  print(harness.write_result(path, result))


if __name__ == "__main__":
  main()
