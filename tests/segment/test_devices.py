"""Eight devices compute what one does, whatever each of them knows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax import parallel
from wsiseq_jax.segment import crf, nuclei, nucleus_masks, student, walk
from wsiseq_jax.segment.backbone import Backbone

TINY = Backbone(channels=(8, 8, 8, 8, 8))


def batch_of(kinds, side=32):
  """Eight pictures: one without a label, one that only fills up."""
  rng = np.random.default_rng(0)
  shape = (8, side, side)
  target = rng.integers(0, kinds, shape).astype(np.uint8)
  # What is labelled differs from device to device.
  for row in range(8):
    target[row, :, : 4 * row] = 255
  target[3] = 255
  return {
    "pixels": rng.integers(0, 256, (*shape, 3), np.uint8),
    "labels": rng.integers(0, 2, (8, 2)).astype(np.float32),
    "truth": np.where(target == 255, 255, target % 3).astype(np.uint8),
    "target": target,
    "weight": rng.uniform(0.5, 1, shape).astype(np.float32),
    "tissue": np.ones(shape, np.uint8),
    "size": np.full((8, 2), side, np.int32),
    "index": np.arange(8, dtype=np.int32),
    "mask": np.array([1] * 7 + [0], np.float32),
  }


def on_one_and_eight(function, everywhere, *batch):
  """Results of a function of what all devices have, and of a batch."""
  found = []
  for count in (1, 8):
    mesh = parallel.make_mesh(1, jax.devices()[:count])
    rows = jax.device_put(batch, parallel.batch_sharding(mesh))
    assert jax.tree.leaves(rows)[0].sharding.num_devices == count
    same = jax.device_put(everywhere, parallel.replicated(mesh))
    program = jax.jit(parallel.with_mesh(mesh, function(mesh)))
    found.append(jax.device_get(program(same, *rows)))
  return found


def assert_close(one, eight, rtol=2e-3, atol=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    one,
    eight,
  )


def test_a_students_loss_and_gradient():
  model = student.network(TINY, 2, 8, True, False)
  frozen = TINY.start(0)
  own = model.init(jax.random.key(1), frozen, None)
  # It starts at zero, where no gradient reaches further down.
  out = own["head"]["out"]
  out["kernel"] = jax.random.normal(jax.random.key(2), out["kernel"].shape)

  def step(own, batch):
    return jax.value_and_grad(model.loss)(own, frozen, batch, None)

  one, eight = on_one_and_eight(lambda _: step, own, batch_of(3))
  assert one[0] > 0
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(one[1]))
  assert_close(one, eight)


# Of logits [8, h, w, 2] and a target of so many numbers.
LOSSES = {
  "detect": (
    255,
    lambda x, t: nuclei.detection_loss(jax.nn.sigmoid(x[..., 0]), t, 10.0),
  ),
  "nuclei": (9, nucleus_masks.outline_loss),
  "full": (
    2,
    lambda x, t: student.pixel_loss(x, t, jnp.ones(t.shape), False, False),
  ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_pixels(name):
  kinds, loss = LOSSES[name]
  target = batch_of(kinds)["target"]
  logits = np.random.default_rng(3).normal(size=(*target.shape, 2))

  def step(_, logits, target):
    return jax.value_and_grad(loss)(logits, target)

  one, eight = on_one_and_eight(
    lambda _: step, {}, logits.astype(np.float32), target
  )
  assert one[0] > 0 and np.abs(one[1]).max() > 0
  assert_close(one, eight, atol=1e-8)


def test_labels_of_the_crf():
  rng = np.random.default_rng(1)
  batch = batch_of(3)
  batch["size"][2] = (21, 30)  # of a padded picture
  scores = rng.uniform(0, 1, (8, 2, 8, 8)).astype(np.float32)
  scores[5] = 0  # a picture without a class
  settings = crf.DenseCrf(far_px=8.0, colour=60.0, iterations=2)

  def mined(mesh):
    work = functools.partial(crf.mine_batch, (0.5, 0.25), settings, mesh)
    return lambda _, scores, batch: work(scores, batch)

  one, eight = on_one_and_eight(mined, {}, scores, batch)
  np.testing.assert_array_equal(one["classes"], eight["classes"])
  np.testing.assert_allclose(one["scores"], eight["scores"], atol=1e-5)
  assert not one["classes"][5].any() and {0, 1, 2} < set(one["classes"].flat)


def test_a_walk():
  rng = np.random.default_rng(2)
  batch = batch_of(3)
  batch["size"][2] = (21, 30)
  scores, image_scores = rng.uniform(0, 1, (2, 8, 2, 8, 8)).astype(np.float32)
  boundary = rng.uniform(0, 0.5, (8, 8, 8)).astype(np.float32)

  def spread(_):
    work = functools.partial(walk.spread, 3, 4.0, 8)
    return lambda _, *arrays: work(*arrays)

  one, eight = on_one_and_eight(
    spread, {}, scores, image_scores, boundary, batch
  )
  assert_close(one, eight, rtol=0, atol=1e-5)
  assert one["walked"].shape == (8, 5, 8, 8)
  assert np.abs(one["walked"][:, :2] - jnp.asarray(scores)).max() > 0.1
