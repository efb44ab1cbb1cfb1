"""Tiles a second of `embed_tiles` by encoder, and who waits for whom.

  python benchmarks/embed_tiles.py                       (a minute or two)
  python benchmarks/embed_tiles.py --encoders=resnet50,vit_large_16 \
      --dtype=bfloat16 --batch=256 --mpp=0.5             (on an accelerator)

Each encoder has random weights (the arithmetic is the same) and embeds one
slide from its file to its feature file, compilation left out. `waiting` is the
share of that time in which the device had nothing to do because the next batch
was not decoded: near 0, the encoder is the limit; near 1, the slide is. It
includes opening the slide and finding its tissue (`opening_s`), which in a
cohort happens behind the slide before. The row `(reading)` decodes the same
tiles and throws them away: what the host can feed.

The slide is `slides/bs9_duodenum_giardiasis_he2_40x.tiff` in the folder that
`WSISEQ_DATA` names (`../shared/data` without it); `--slide` takes any other.

Writes `benchmarks/results/embed_tiles.json`.
"""

import argparse
import os
import pathlib
import platform
import tempfile
import time

import harness
import jax

from configs import embed_tiles as presets
from data_prep.wsi import find, tile_stream, tiles
from wsiseq_jax import encoders
from wsiseq_jax.encoders import embed_tiles
from wsiseq_jax.encoders import settings as embed_config


def make_config(options: argparse.Namespace, name: str, workdir: str):
  config = presets.get_config().unlock()
  config.workdir = workdir
  config.data.update(
    {
      "slides": str(options.slide),
      "batch_size": options.batch,
      "threads": options.threads,
    }
  )
  config.tiles.mpp = options.mpp
  config.encoder.update(
    {"name": name, "random_weights": True, "dtype": options.dtype}
  )
  embed_config.validate(config)
  return config


def time_encoder(options: argparse.Namespace, name: str) -> dict:
  with tempfile.TemporaryDirectory() as workdir:
    config = make_config(options, name, workdir)
    encoder = encoders.load(config.encoder)
    summary = embed_tiles.embed_slides(config, encoder)
  return {
    "width": encoder.width,
    "tile_px": encoder.tile_px,
    "dtype": options.dtype or "float32",
    "tiles": summary.tiles,
    "seconds": round(summary.seconds, 2),
    "tiles_per_s": round(summary.tiles / summary.seconds, 1),
    "waiting": round(summary.waiting, 3),
  }


def time_reading(options: argparse.Namespace, tile_px: int = 224) -> dict:
  """Reads the same tiles, and does nothing with them."""
  with tempfile.TemporaryDirectory() as workdir:
    config = make_config(options, "resnet50", workdir)
    settings = tile_stream.Settings(
      tile_px, tile_px, config.tiles.to_dict(), config.tissue.to_dict()
    )
    entries, errors = find.find_slides(str(options.slide))
    if errors:
      raise SystemExit(errors[0].message)
    events = tile_stream.events(
      entries, settings, workdir, options.batch, options.threads
    )
    count, start = 0, time.perf_counter()
    next(events)  # tissue and grid
    opening = time.perf_counter() - start
    start = time.perf_counter()
    for event in events:
      if isinstance(event, tiles.TileBatch):
        count += len(event.index)
    seconds = time.perf_counter() - start
  return {
    "tile_px": tile_px,
    "opening_s": round(opening, 2),
    "tiles": count,
    "seconds": round(seconds, 2),
    "tiles_per_s": round(count / seconds, 1),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--slide", type=pathlib.Path, default=harness.real_slide()
  )
  parser.add_argument(
    "--encoders", default="resnet50_trunc,resnet50,vit_small_16"
  )
  parser.add_argument("--dtype", default="")
  parser.add_argument("--mpp", type=float, default=1.0)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=harness.RESULTS / "embed_tiles.json",
  )
  options = parser.parse_args()
  result = {
    "slide": options.slide.name,
    "mpp": options.mpp,
    "batch_size": options.batch,
    "threads": options.threads,
    "machine": {
      "cpu": harness.cpu_name(),
      "cores": os.cpu_count(),
      "device": jax.devices()[0].device_kind,
      "devices": jax.device_count(),
      "python": platform.python_version(),
      "jax": jax.__version__,
    },
    "encoders": {"(reading)": time_reading(options)},
  }
  for name in options.encoders.split(","):
    result["encoders"][name] = time_encoder(options, name)
  print(f"{options.slide.name} at {options.mpp} um/px")
  print(f"{'encoder':24}{'width':>6}{'tiles':>8}{'tiles/s':>9}{'waiting':>9}")
  for name, row in result["encoders"].items():
    waiting = f"{row['waiting']:.0%}" if "waiting" in row else ""
    print(
      f"{name:24}{row.get('width', ''):>6}{row['tiles']:>8}"
      f"{row['tiles_per_s']:>9.1f}{waiting:>9}"
    )
  harness.write_result(options.out, result)


if __name__ == "__main__":
  main()
