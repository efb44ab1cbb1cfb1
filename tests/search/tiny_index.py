"""Small indices whose vectors are known."""

import dataclasses
import pathlib

import faiss
import jax.numpy as jnp
import numpy as np

from wsiseq_jax import encoders
from wsiseq_jax.data import tile_features
from wsiseq_jax.search import build, settings

# Threads that wait for work take it from others.
faiss.omp_set_num_threads(1)
SIDE = 100.0  # of a tile, level-0 pixels


def write_slide(
  folder: pathlib.Path,
  slide_id: str,
  vectors,
  xy=None,
  encoder: str = "one",
  mpp: float = 1.0,
) -> pathlib.Path:
  """A feature file; tiles in a row unless places are given."""
  vectors = np.asarray(vectors, np.float32)
  if xy is None:
    xy = np.stack([np.arange(len(vectors)) * SIDE, np.zeros(len(vectors))], 1)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{slide_id}.h5"
  tile_features.write(
    path,
    tile_features.TileFeatures(
      slide_id, vectors, np.asarray(xy, np.float64), SIDE,
      mpp=mpp, level0_mpp=0.5,
    ),
    attributes={"encoder_fingerprint": encoder},
  )  # fmt: skip
  return path


def asked(workdir, features, **index) -> settings.SearchSettings:
  """Settings of a build."""
  blocks = {
    key: index.pop(key) for key in ("encoder", "workers") if key in index
  }
  block = settings.IndexBlock(features=str(features), **index)
  return settings.SearchSettings(workdir=str(workdir), index=block, **blocks)


def make(workdir: pathlib.Path, vectors_of: dict, **index) -> build.Built:
  """An index of slides: id to vectors."""
  for slide_id, vectors in vectors_of.items():
    write_slide(workdir / "features", slide_id, vectors)
  return build.build(asked(workdir / "index", workdir / "features", **index))


def write_table(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  """A CSV with what is known of slides."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [",".join(rows[0])]
  lines += [",".join(map(str, row.values())) for row in rows]
  path.write_text("\n".join(lines) + "\n")
  return path


def colour_encoder(tile_px: int = 16, window_px: int = 0) -> encoders.Encoder:
  """An encoder whose features are the mean red, green and blue of a tile."""
  window = window_px or tile_px
  rim = (window - tile_px) // 2

  def apply(params, tiles):
    inner = tiles[:, rim : rim + tile_px, rim : rim + tile_px]
    return jnp.asarray(inner).astype(jnp.float32).mean(axis=(1, 2)) + params

  return encoders.Encoder(
    name="colour", width=3, tile_px=tile_px, window_px=window,
    mean=(0.0,) * 3, std=(1.0,) * 3, params=jnp.zeros((1, 3)), apply=apply,
    weights="none", fingerprint="one",
  )  # fmt: skip


def with_colour_encoder(monkeypatch, **sizes) -> settings.QueryEncoder:
  """Has `encoders.load` return the encoder of mean colours."""
  made = colour_encoder(**sizes)
  monkeypatch.setattr(encoders, "load", lambda config: made)
  return settings.QueryEncoder(name="resnet50", random_weights=True)


def directions(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
  """Random vectors of length 1."""
  drawn = np.random.default_rng(seed).normal(size=(count, width))
  return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype("f4")


def replace(found: settings.SearchSettings, **index) -> settings.SearchSettings:
  """Settings with another block `index`."""
  block = dataclasses.replace(found.index, **index)
  return dataclasses.replace(found, index=block)
