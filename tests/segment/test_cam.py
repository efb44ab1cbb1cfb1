"""Class activation maps: the loss, the scores, certain negatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.files import schema
from wsiseq_jax import fit, parallel
from wsiseq_jax.segment import cam
from wsiseq_jax.segment.backbone import Backbone

BACKBONE = Backbone(channels=(4, 4, 4, 4, 4))


def batch(count=8, size=32, seed=0):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
  return {
    "pixels": jnp.asarray(pixels),
    "labels": jnp.asarray(rng.integers(0, 2, (count, 2)), jnp.float32),
    "tissue": jnp.ones((count, size, size), jnp.uint8),
    "mask": jnp.ones(count),
  }


@pytest.fixture(scope="module")
def model():
  return cam.classifier(BACKBONE, 3, 2)


@pytest.fixture(scope="module")
def params(model):
  frozen = BACKBONE.start(0)
  return jax.jit(lambda f: model.init(jax.random.key(1), f, None))(
    frozen
  ), frozen


def test_a_picture_counts_by_its_tissue():
  x = jnp.arange(8.0).reshape(1, 2, 4, 1)  # a grid of a picture of 4 x 8 px
  tissue = np.zeros((1, 4, 8), np.uint8)
  tissue[:, :2, :2] = 1  # the first place, 0
  tissue[:, 2:, 6:7] = 1  # half of the last, 7
  share = cam.shrink(jnp.asarray(tissue), (2, 4))
  logit = cam.logits_of(x, share)
  assert float(logit[0, 0]) == pytest.approx((1 * 0 + 0.5 * 7) / 1.5)
  assert float(cam.logits_of(x, jnp.zeros_like(share))[0, 0]) == 0


def test_loss_is_the_mean_over_known_labels(model, params):
  one = batch()
  logits = np.asarray(jax.jit(model.apply)(*params, one), np.float64)
  labels = np.array(one["labels"])
  labels[0] = np.nan
  labels[1, 1] = np.nan
  mask = np.ones(8)
  mask[7] = 0
  known = np.isfinite(labels) & (mask > 0)[:, None]
  p = 1 / (1 + np.exp(-logits))
  each = -np.where(labels == 1, np.log(p), np.log(1 - p))
  one |= {"labels": jnp.asarray(labels), "mask": jnp.asarray(mask, jnp.float32)}
  loss = jax.jit(model.loss)
  assert float(loss(*params, one, None)) == pytest.approx(
    each[known].mean(), rel=1e-5
  )
  # Certain negatives are what others are not: half of what is learned.
  none = {**one, "labels": jnp.zeros((8, 2))}
  assert float(loss(*params, none, None)) > 0
  unknown = {**one, "labels": jnp.full((8, 2), jnp.nan)}
  value, grads = jax.jit(jax.value_and_grad(model.loss))(*params, unknown, None)
  assert float(value) == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_one_step_is_the_same_on_one_device_and_on_eight(model, params):
  settings = fit.FitSettings(
    lr=1.0, optimizer="irn_sgd", epochs=1, clip_norm=0.0
  )
  after = []
  for count in (1, 8):
    mesh = parallel.make_mesh(1, jax.devices()[:count])
    one = jax.device_put(batch(), parallel.batch_sharding(mesh))
    whole = {**one, "index": jnp.arange(8)}

    def train(start, one=one):
      while True:
        yield one

    def val(whole=whole):
      yield whole

    fitted = fit.Trainer(model, settings, mesh, params[1]).fit(
      fit.Data(1, train, val),
      functools.partial(cam.validate, np.asarray(one["labels"])),
      0,
    )
    after.append(jax.device_get(fitted.params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *after
  )


def test_maps_of_a_mirrored_picture_are_mirrored(params):
  one = batch(2)
  classify = functools.partial(cam.classify, BACKBONE, 3)
  maps = jax.jit(functools.partial(cam.multi_scale, classify, (1.0, 0.5)))
  plain = maps(*params, one)
  mirrored = maps(*params, {**one, "pixels": one["pixels"][:, :, ::-1]})
  assert plain["cam"].shape == (2, 8, 8, 2)
  for name in ("cam", "relu"):
    np.testing.assert_allclose(
      mirrored[name], plain[name][:, :, ::-1], atol=1e-4
    )
  # Of one scale, the mean of ReLU is at least that of the map.
  assert (plain["relu"] / 4 >= plain["cam"] - 1e-5).all()


def test_absolute_scores_say_what_certain_negatives_are():
  maps = np.array([[[-5.0, 0.0], [1.0, 2.0], [3.0, 4.0], [103.0, 6.0]]])
  found = cam.absolute(maps, [1.0, 2.0], [3.0, 4.0])
  # Median 0.25, high quantile 0.5; d = 50 is 1/2 + 50/102.
  assert found[0, 1].tolist() == [0.25, 0.25]
  assert found[0, 2].tolist() == [0.5, 0.5]
  assert found[0, 3, 0] == pytest.approx(0.5 + 50 / 102)
  assert (np.diff(found, axis=1) > 0).all()
  assert found.min() > 0 and found.max() < 1
  # Negatives that are all alike: no division by nothing.
  flat = cam.absolute(np.zeros((1, 1, 1)), [0.0], [0.0])
  assert flat.item() == 0.5


def test_scores_of_a_picture_without_the_class_are_not_divided_by_nothing():
  relu = np.zeros((2, 2, 2))
  relu[..., 1] = [[1.0, 2.0], [4.0, 0.0]]
  found = cam.per_image_scores(relu)
  assert found[..., 0].max() == 0
  np.testing.assert_allclose(found[..., 1], [[0.25, 0.5], [1, 0]], atol=1e-5)


@pytest.mark.parametrize(
  ("label", "expected"),
  [(None, [1, 0]), ([0, 1], [0, 1]), ([np.nan] * 2, [1, 0])],
)
def test_which_classes_a_picture_has(label, expected):
  # Probabilities of 0.5 and 0.12.
  logits = np.array([0.0, -2.0])
  label = None if label is None else np.array(label, np.float64)
  assert cam.present(label, logits, 0.25).tolist() == expected
  assert cam.present(None, logits, 0.0).tolist() == [1, 1]


def test_validation_by_hand():
  labels = np.array([[1.0], [0.0], [np.nan]])
  score, rows = cam.validate(labels, np.array([[0.0], [0.0], [9.0]]))
  assert score == (-rows["val/loss"],)
  assert rows["val/loss"] == pytest.approx(np.log(2))
  assert rows["val/auroc"] == 0.5


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"level": 6}, "level = 6: must be one of 1, 2, 3, 4, 5"),
    ({"scales": ()}, "scales = .*not empty"),
    ({"background": 0.6}, "background = 0.6: must not exceed .*foreground"),
    ({"optim": {"optimizer": "adam"}}, "optim.optimizer = 'adam': must be"),
    ({"optim": {"lr": -1.0}}, "optim.lr = -1.0: must be a number, 0 or more"),
    ({"scale": (1.0,)}, "unknown key; did you mean 'scales'"),
  ],
)
def test_bad_settings_are_named(values, words):
  with pytest.raises(ValueError, match=words):
    schema.build(cam.Cam, values, "config.stages.cam")
