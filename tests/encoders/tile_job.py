"""An encoder whose features can be computed by hand, and a small job.

Features are the mean colour of a tile and its first pixel, times a parameter.
"""

import jax.numpy as jnp
import numpy as np

from configs import embed_tiles as presets
from wsiseq_jax import encoders

TRACES = []  # shapes that were traced


def _apply(params, tiles):
  TRACES.append(tiles.shape)
  tiles = tiles.astype(jnp.float32)
  middle = tiles[:, 0, 0, :1]
  rows = jnp.concatenate([tiles.mean(axis=(1, 2)), middle], axis=1)
  return rows * params["scale"]


def colour_encoder(scale=1.0, **changes):
  values = {
    "name": "colour",
    "width": 4,
    "tile_px": 64,
    "window_px": 64,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "params": {"scale": np.full((1, 1), scale, np.float32)},
    "apply": _apply,
    "weights": "by hand",
    "fingerprint": "a",
    **changes,
  }
  return encoders.Encoder(**values)


def picture(blank=False):
  """Tissue of changing colour over x 128 to 640, y 128 to 384."""
  pixels = np.full((500, 700, 3), 243, np.uint8)
  if not blank:
    tissue = pixels[128:384, 128:640]
    tissue[:] = 190, 110, 170
    tissue[..., 1] += (np.arange(512) // 16).astype(np.uint8)
  return pixels


def config_of(slides, workdir, changes=None):
  config = presets.get_config("smoke").copy_and_resolve_references().unlock()
  config.data.update({"slides": str(slides), "batch_size": 8})
  config.tiles.update({"mpp": 0.5, "min_tissue": 0.5, "max_bad_share": 0.3})
  config.tissue.thumbnail_px = 128
  config.workdir = str(workdir)
  config.update_from_flattened_dict(changes or {})
  return config
