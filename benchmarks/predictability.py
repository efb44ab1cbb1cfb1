"""How much of what a mask hides can be told from what it shows: no model.

Visible pixels are laid out in tissue coordinates and smoothed with a Gaussian
(the best of a few widths); hidden pixels are read off. Its error, against that
of painting each clip's mean colour, is a floor for what easy learning can win:
where it is near 1, a short training cannot do better than the mean colour.

    python benchmarks/predictability.py --data=DATA --split=val

Writes `benchmarks/results/predictability.json`.
"""

import argparse

import cv2
import harness
import jax
import jax.numpy as jnp
import numpy as np

from wsiseq_jax.data import augment, loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import masking

SIGMAS_PX = (1.0, 2.0, 4.0, 8.0)


def errors(pixels, shift_px, visible, patch):
  """Squared error of each width of smoothing, and of the mean colour."""
  frames, height, width, _ = pixels.shape
  left = np.round(shift_px[:, 0] - shift_px[0, 0]).astype(int)
  shown = visible.repeat(patch[0], 0).repeat(patch[1], 1).repeat(patch[2], 2)
  total = np.zeros((height, width + left[-1], 3), np.float32)
  count = np.zeros(total.shape[:2], np.float32)
  for t in range(frames):
    window = np.s_[:, left[t] : left[t] + width]
    total[window] += pixels[t] * shown[t][..., None]
    count[window] += shown[t]
  mean = total.sum((0, 1)) / count.sum()
  found = []
  for sigma in SIGMAS_PX:
    # A trace of the mean colour fills what no visible pixel reaches.
    value = cv2.GaussianBlur(total, (0, 0), sigma) + 1e-4 * mean
    value /= (cv2.GaussianBlur(count, (0, 0), sigma) + 1e-4)[..., None]
    guess = np.stack([value[:, x : x + width] for x in left])
    found.append(np.square(guess - pixels)[~shown].mean())
  return [*found, np.square(pixels - mean)[~shown].mean()]


def middle_clips(source, count, frames, frame_step, image_px):
  """The middle clips, in [0, 1], of sequences spread over a split."""
  rows = np.linspace(0, len(source) - 1, count).astype(int)
  batch = loader.stack([loader.load(source, int(i)) for i in rows])
  spec = augment.ClipSpec(
    frames=frames,
    frame_step=frame_step,
    image_px=image_px,
    frame_px=source.spec.frame_px,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
  )
  batch = jax.tree.map(jnp.asarray, batch)
  return jax.tree.map(np.asarray, augment.centre_clips(batch, spec))


def of_mask(clips, mask_spec):
  """Errors of interpolation and of the mean colour under masks of a kind."""
  mask = masking.make_mask(
    jax.random.key(0),
    jnp.asarray(clips.shift_px),
    jnp.asarray(clips.panel),
    mask_spec,
  )
  visible = np.asarray(masking.is_visible(mask, mask_spec))
  rows = [
    errors(pixels, shift, shown, mask_spec.patch)
    for pixels, shift, shown in zip(
      clips.pixels, clips.shift_px, visible, strict=True
    )
  ]
  *widths, colour = np.mean(rows, axis=0)
  return {
    "interpolation": round(float(min(widths)), 5),
    "mean_colour": round(float(colour), 5),
    "relative": round(float(min(widths) / colour), 3),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", required=True)
  parser.add_argument("--split", default="val")
  parser.add_argument("--clips", type=int, default=48)
  args = parser.parse_args()
  source = sources.RecordSource(args.data, args.split)
  clips = middle_clips(source, args.clips, 8, 2, (48, 48))
  table = []
  for patch in ((2, 6, 6), (2, 4, 4)):
    grid = (4, 48 // patch[1], 48 // patch[2])
    for kind in masking.KINDS:
      for ratio in (0.5, 0.75, 0.9):
        mask_spec = masking.MaskSpec(
          grid, patch, kind=kind, ratio=ratio, run_patches=4.0
        )
        row = {"patch": patch, "mask": kind, "ratio": ratio}
        table.append(row | of_mask(clips, mask_spec))
        print(table[-1], flush=True)
  result = {
    "mpp": source.spec.metadata["mpp"],
    "slides": len(source.spec.metadata["slides"]),
    "clips": args.clips,
    "rows": table,
  }
  harness.write_result(harness.RESULTS / "predictability.json", result)


if __name__ == "__main__":
  main()
