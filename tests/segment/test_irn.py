"""Boundary and displacement heads: structure, learning, and the whole chain."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.segment import small_job
from wsiseq_jax import fit, parallel
from wsiseq_jax.segment import irn, job, pairs
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.maps import Maps
from wsiseq_jax.segment.pictures import Pictures

# Those of a ResNet-50.
WIDTHS = (64, 256, 512, 1024, 2048)


def test_layers_of_the_published_size():
  params = jax.eval_shape(
    lambda key: irn.init_heads(key, WIDTHS, 32, 256), jax.random.key(0)
  )
  shapes = {
    head: {name: layer["kernel"].shape[2:] for name, layer in layers.items()}
    for head, layers in params.items()
  }
  assert shapes["boundary"] == {
    **{f"x{n}": (w, 32) for n, w in enumerate(WIDTHS, start=1)},
    "out": (160, 1),
  }
  assert shapes["displacement"] == {
    **{"x1": (64, 64), "x2": (256, 128), "x3": (512, 256)},
    **{"x4": (1024, 256), "x5": (2048, 256)},
    **{"coarse": (768, 256), "fine": (448, 256), "out": (256, 2)},
  }
  assert "bias" in params["boundary"]["out"]
  assert set(params["displacement"]["out"]) == {"kernel"}
  assert set(params["boundary"]["x1"]) == {"kernel", "scale", "offset"}


def features_of(h, w, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.normal(size=(2, h // s, w // s, 4)), jnp.float32)
    for s in (4, 4, 8, 16, 16)
  )


# The second is above 512 px, with sides that are odd multiples of 16.
@pytest.mark.parametrize("size", [(64, 48), (16, 1040)])
def test_heads_block_by_block(size):
  features = features_of(*size)
  params = jax.jit(irn.init_heads, static_argnums=(1, 2, 3))(
    jax.random.key(0), (4,) * 5, 8, 16
  )
  grid, half = ((size[0] // s, size[1] // s) for s in (4, 8))
  logits, displacement = jax.jit(irn.apply_heads)(params, features)
  params, features = jax.device_get((params, features))

  def block(layer, x, groups, out):
    x = x @ layer["kernel"][0, 0]
    parts = x.reshape(2, -1, groups, x.shape[-1] // groups)
    mean = parts.mean(axis=(1, 3), keepdims=True)
    std = np.sqrt(parts.var(axis=(1, 3), keepdims=True) + 1e-5)
    x = ((parts - mean) / std).reshape(x.shape)
    return np.maximum([cv2.resize(one, out[::-1]) for one in x], 0)

  head = params["boundary"]
  joined = [
    block(head[f"x{n}"], x, 4, grid) for n, x in enumerate(features, start=1)
  ]
  expected = np.concatenate(joined, -1) @ head["out"]["kernel"][0, 0]
  np.testing.assert_allclose(logits, expected[..., 0], atol=1e-4)
  head = params["displacement"]
  coarse = [block(head[f"x{n}"], features[n - 1], 16, half) for n in (3, 4, 5)]
  coarse = block(head["coarse"], np.concatenate(coarse, -1), 16, grid)
  # They have a quarter and a half of the channels.
  x1 = block(head["x1"], features[0], 4, grid)
  x2 = block(head["x2"], features[1], 8, grid)
  fine = block(head["fine"], np.concatenate([x1, x2, coarse], -1), 16, grid)
  expected = fine @ head["out"]["kernel"][0, 0]
  np.testing.assert_allclose(displacement, expected, atol=1e-4)


def batch_of(side=64, count=2):
  """A disc of another colour, labelled, on a ground."""
  y, x = np.mgrid[:side, :side]
  rows = []
  for number in range(count):
    centre = side * (0.35 + 0.1 * number)
    rows.append(np.hypot(y - centre, x - centre) < side / 5)
  target = np.stack(rows).astype(np.uint8)
  pixels = np.where(target[..., None] > 0, 90, 200)
  noise = np.random.default_rng(0).integers(0, 30, pixels.shape)
  return {
    "pixels": jnp.asarray(pixels + noise, jnp.uint8).repeat(3, axis=-1),
    "target": jnp.asarray(target),
    "weight": jnp.ones(target.shape),
    "mask": jnp.ones(count),
    "index": jnp.arange(count),
  }


def test_what_does_not_count_has_no_label():
  batch = batch_of()
  batch["weight"] = batch["weight"].at[0, :32].set(0)
  batch["mask"] = jnp.array([1.0, 0.0])
  labels = np.asarray(irn.grid_labels(batch))
  assert labels.shape == (2, 16, 16)
  assert (labels[0, :8] == 255).all() and (labels[1] == 255).all()
  assert set(np.unique(labels[0, 8:])) == {0, 1}


def test_boundaries_are_learned_from_pairs():
  backbone, batch = Backbone(channels=(8, 8, 8, 8, 8)), batch_of()
  model = irn.network(backbone, 8, 16, 3)
  settings = fit.FitSettings(
    lr=0.03, epochs=80, warmup_epochs=0, patience=0, keep="last"
  )
  frozen = jax.jit(backbone.init)(jax.random.key(1))
  mesh = parallel.make_mesh(1, jax.devices()[:1])
  data = fit.Data(
    1, lambda start: (batch for _ in iter(int, 1)), lambda: (b for b in [batch])
  )
  fitted = fit.Trainer(model, settings, mesh, frozen).fit(
    data, irn.validate, seed=0
  )
  first, last = fitted.history[0], fitted.history[-1]
  assert last["val/boundary"] < 0.7 * first["val/boundary"]
  assert last["val/displacement"] < first["val/displacement"]
  found = jax.jit(irn.mirrored, static_argnums=0)(
    backbone, fitted.params, frozen, batch
  )
  boundary = np.asarray(found["boundary"])
  labels = np.asarray(irn.grid_labels(batch))
  edges = np.zeros(labels.shape, bool)
  edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
  edges[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
  assert boundary[edges].mean() > 2 * boundary[~edges].mean()


def test_maps_of_the_chain(smoke_run):
  finished = smoke_run("irn")
  for split in ("train", "val", "test"):
    split_of = Pictures("synthetic", split)
    for number, picture in enumerate(split_of.ids):
      size = tuple(split_of.sizes[number].tolist())
      grid = tuple(-(-side // 4) for side in size)
      maps = {
        stage: Maps(finished / stage / "maps" / split).read(picture)
        for stage in ("crf", "irn", "walk")
      }
      assert maps["crf"]["classes"].shape == size
      assert maps["irn"]["boundary"].shape == grid
      assert maps["irn"]["displacement"].shape == (2, *grid)
      scores = maps["walk"]["scores"]
      assert scores.shape[1:] == grid
      assert 0 <= scores.min() and scores.max() <= 1
      if split == "train" and (split_of.labels[number] == 0).all():
        # Certain negatives are background, all of them.
        assert not maps["crf"]["classes"].any()
        assert not maps["walk"]["classes"].any()
      if split != "train":
        numbers = maps["walk"]["instances"]
        assert numbers.shape == size
        assert numbers.max() == len(maps["walk"]["instance_classes"])


def test_radius_without_a_pair_in_a_crop(tmp_path):
  config = small_job.config(tmp_path, "irn,smoke")
  config.stages.irn.radius = 10
  context = job.prepare(config)
  with pytest.raises(ValueError, match="radius = 10: no pair fits into crops"):
    irn.Irn(radius=10).run(context)


def test_thresholds_the_wrong_way_round(tmp_path):
  config = small_job.config(tmp_path, "irn,smoke")
  config.stages.crf.background = 0.9
  with pytest.raises(
    ValueError, match=r"stages.crf.background = 0.9: must not"
  ):
    job.run(config)


def test_least_side_is_of_one_pair():
  side = pairs.least_side(3)
  zeros = jnp.zeros((1, 3, side))
  labels = jnp.zeros((1, 3, side), jnp.uint8)
  sums = pairs.pair_sums(zeros, zeros[..., None].repeat(2, -1), labels, 3)
  assert float(sums[0, pairs.SUMS.index("background_pairs")]) == 12
