"""RPNet's heads and loss, against loops in NumPy and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.files import schema
from tests.segment.test_prototypes import slow_factor, slow_norm
from wsiseq_jax import parallel
from wsiseq_jax.segment import cam, prototypes, rpnet

SMALL = rpnet.Rpnet(width=12)
LABELS = jnp.array([[1.0, 0], [1, 1], [0, 1], [0, 0]])
ONES = jnp.ones(4)
compiled = jax.jit(rpnet.loss, static_argnums=1)


def random_params(config=SMALL, inner=6, classes=2):
  """The norms' factors too: they begin at 0, where a wrong block is right."""
  rng = np.random.default_rng(5)
  shapes = jax.eval_shape(
    lambda: rpnet.init(jax.random.key(0), config, inner, classes)
  )
  return jax.tree.map(
    lambda x: jnp.array(rng.normal(0, 0.4, x.shape), jnp.float32), shapes
  )


def views(scales=1, rows=4, seed=0):
  rng = np.random.default_rng(seed)
  found = []
  for number in range(scales):
    side = 4 + number
    valid = np.ones((rows, side, side), np.float32)
    valid[1, 3:] = 0
    arrays = (
      rng.normal(size=(rows, 2 * side, 2 * side, 5)),
      rng.normal(size=(rows, side, side, 6)),
      valid,
    )
    found.append(rpnet.View(*(jnp.array(x, jnp.float32) for x in arrays)))
  return found


def slow_nonlocal(params, x, valid):
  """One picture; positions one by one."""
  height, width, channels = x.shape
  places = [(i, j) for i, j in np.ndindex(height, width) if valid[i, j]]
  part = {
    k: x @ params[k]["kernel"] + params[k]["bias"]
    for k in ("theta", "phi", "g")
  }
  response = np.zeros((height, width, channels // 2))
  for p in places:
    for q in places:
      response[p] += part["theta"][p] @ part["phi"][q] * part["g"][q]
  out = response / len(places) @ params["out"]["kernel"]
  for group in range(4):  # gcd(32, 12)
    which = slice(3 * group, 3 * (group + 1))
    values = np.array([out[p][which] for p in places])
    out[..., which] = (out[..., which] - values.mean()) / np.sqrt(
      values.var() + 1e-5
    )
  out = x + out * params["norm"]["scale"] + params["norm"]["bias"]
  return out * valid[..., None]


def slow_cosine(features, vector):
  found = np.zeros(features.shape[:2])
  for p in np.ndindex(*found.shape):
    length = np.linalg.norm(features[p]) * np.linalg.norm(vector)
    found[p] = features[p] @ vector / length if length > 1e-12 else 0
  return found


def slow_mean(features, mask):
  return (features * mask[..., None]).sum((0, 1)) / (mask.sum() + 5e-4)


def slow_loss(params, config, view, labels, key):
  """All of it at one scale; chance is that of the code under test."""
  partners = prototypes.draw_partners(
    jax.random.fold_in(key, 0), labels, jnp.ones(len(labels))
  )
  params, view, labels, partners = jax.tree.map(
    np.asarray, (params, view, labels, partners)
  )
  rows, side = view.valid.shape[:2]
  low = (
    np.asarray(
      jax.image.resize(
        view.fine, (rows, side, side, 5), "linear", antialias=False
      )
    )
    * view.valid[..., None]
  )
  f = view.deep @ params["project"]["kernel"] * view.valid[..., None]
  halves = [
    np.asarray(jax.random.bernoulli(k, 0.5, view.valid.shape))
    for k in jax.random.split(jax.random.fold_in(key, 1), 2)
  ]
  cross, gap = 0.0, 0.0
  for i in range(rows):
    who = (i, partners.row[i])
    standard, vectors = [], []
    for role, at, half in zip("xy", who, halves, strict=True):
      valid = view.valid[at]
      maps = slow_nonlocal(params[role]["standard"], f[at], valid)
      maps = maps @ params[role]["head"]["kernel"]
      standard.append(maps)
      mask = np.zeros_like(valid)
      if partners.shared[i] >= 0 and config.mask == "cam":
        mask = slow_norm(maps, valid)[..., partners.shared[i]] >= 0.3
      elif partners.shared[i] >= 0:
        top = f[at][valid > 0].max(0)
        mask = (f[at] / (top + 1e-5) >= 0.3).any(-1)
      mask = mask * valid
      for level in (f, low):
        for m in (mask, mask * half[i]):
          vectors.append((level is low, slow_mean(level[at], m)))
    for number, (role, at) in enumerate(zip("xy", who, strict=True)):
      valid, label = view.valid[at], labels[at]
      likeness = np.full((side, side), -np.inf)
      for is_low, vector in vectors:
        level = (low if is_low else f)[at]
        likeness = np.maximum(likeness, slow_cosine(level, vector))
      if config.negatives == "prototypes" and partners.has_negative[i]:
        n = partners.negative[i]
        likeness = likeness - np.maximum(
          *[
            slow_cosine(level[at], slow_mean(level[n], view.valid[n]))
            for level in (f, low)
          ]
        )
      again = f[at] * slow_factor(likeness, valid)[..., None]
      again = slow_nonlocal(params[role]["region"], again, valid)
      region = again @ params[role]["head"]["kernel"]
      there = standard[number][valid > 0]
      logits = there.mean(0)
      cross += np.mean(np.log1p(np.exp(logits)) - label * logits)
      apart = slow_norm(standard[number], valid) - slow_norm(region, valid)
      gap += np.mean(apart**2 * label)
  return cross / rows, gap / rows


@pytest.mark.parametrize(
  "mask, negatives", [("cam", "prototypes"), ("published", "plain")]
)
def test_loss_against_loops(mask, negatives):
  config = rpnet.Rpnet(width=12, mask=mask, negatives=negatives)
  params, (view,) = random_params(), views()
  for seed in range(2):
    key = jax.random.key(seed)
    found = compiled(params, config, [view], LABELS, ONES, key)
    cross, gap = slow_loss(params, config, view, LABELS, key)
    assert float(found.classification) == pytest.approx(cross, rel=1e-4)
    assert float(found.disagreement) == pytest.approx(gap, rel=1e-3)
    assert gap > 1e-3
    assert float(found.total) == pytest.approx(cross + 10 * gap, rel=1e-3)


def test_a_fresh_block_returns_its_input():
  params = rpnet.init(jax.random.key(1), SMALL, 6, 2)
  view = views()[0]
  x = rpnet.project(params, view)
  for role in "xy":
    for branch in ("standard", "region"):
      found = rpnet.nonlocal_block(params[role][branch], x, view.valid)
      np.testing.assert_array_equal(found, x)


def test_padding_has_no_part_in_anything():
  params, (view,) = random_params(), views()
  pad = ((0, 0), (0, 2), (0, 3))
  twice = ((0, 0), (0, 4), (0, 6))
  wide = rpnet.View(
    jnp.pad(view.fine, (*twice, (0, 0)), constant_values=7),
    jnp.pad(view.deep, (*pad, (0, 0)), constant_values=-3),
    jnp.pad(view.valid, pad),
  )
  maps = rpnet.class_maps(params, view)
  padded = rpnet.class_maps(params, wide)
  np.testing.assert_allclose(padded[:, :4, :4], maps, atol=1e-5)
  assert not np.any(np.asarray(padded)[:, 4:])
  np.testing.assert_allclose(
    cam.logits_of(padded, wide.valid),
    cam.logits_of(maps, view.valid),
    atol=1e-5,
  )


def test_pictures_without_any_class_only_teach_the_classifier():
  params, view = random_params(), views()
  config = rpnet.Rpnet(width=12, mask="published")
  zeros, key = jnp.zeros((4, 2)), jax.random.key(0)
  found = compiled(params, config, view, zeros, ONES, key)
  assert float(found.disagreement) == 0
  assert float(found.total) == float(found.classification) > 0


def test_further_scales_change_the_loss_and_have_no_gradient():
  config = rpnet.Rpnet(width=12)
  params, (first, second) = random_params(), views(scales=2)

  @jax.jit
  @jax.value_and_grad
  def disagreement(deep):
    both = [first, second._replace(deep=deep)]
    key = jax.random.key(4)
    return rpnet.loss(params, config, both, LABELS, ONES, key).disagreement

  value, slope = disagreement(second.deep)
  assert not np.any(slope)
  assert abs(float(value - disagreement(second.deep + 1.0)[0])) > 1e-5


@pytest.mark.parametrize("mask", ["cam", "published"])
def test_gradient_against_differences(mask):
  params, (view,) = random_params(), views()
  config = rpnet.Rpnet(width=12, mask=mask)
  rng = np.random.default_rng(9)
  direction = jax.tree.map(
    lambda x: jnp.array(rng.normal(size=x.shape), jnp.float32), params
  )

  @jax.jit
  @jax.value_and_grad
  def along(step):
    moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
    key = jax.random.key(0)
    return rpnet.loss(moved, config, [view], LABELS, ONES, key).total

  slope = float(along(0.0)[1])
  # Masks of 0 and 1 jump, and so would the difference of a longer step.
  ahead, back = (float(along(step)[0]) for step in (2e-4, -2e-4))
  assert slope == pytest.approx((ahead - back) / 4e-4, rel=5e-2)


def test_one_and_eight_devices():
  params, (view,) = random_params(), views(rows=8)
  labels = jnp.concatenate([LABELS, LABELS])
  config = rpnet.Rpnet(width=12, negatives="prototypes")

  @jax.value_and_grad
  def total(params, view, labels, real):
    key = jax.random.key(2)
    return rpnet.loss(params, config, [view], labels, real, key).total

  found = []
  for count in (1, 8):
    mesh = parallel.make_mesh(1, jax.devices()[:count])
    batch = jax.device_put(
      (view, labels, jnp.ones(8)), parallel.batch_sharding(mesh)
    )
    step = jax.jit(parallel.with_mesh(mesh, total))
    found.append(
      step(jax.device_put(params, parallel.replicated(mesh)), *batch)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), *found
  )


def test_parameter_tree_is_the_golden_one(repo_root):
  shapes = jax.eval_shape(
    lambda: rpnet.init(jax.random.key(0), rpnet.Rpnet(), 2048, 20)
  )
  lines = [
    f"{parallel.path_name(path)} {list(leaf.shape)} {leaf.dtype}"
    for path, leaf in jax.tree.leaves_with_path(shapes)
  ]
  path = repo_root / "tests" / "golden" / "params_rpnet.txt"
  assert "\n".join(lines) + "\n" == path.read_text()


def test_settings_that_cannot_be():
  for values, words in (
    ({"width": 1}, "config.rpnet.width = 1: must be .*2 or more"),
    ({"mask": "otsu"}, "config.rpnet.mask = 'otsu'"),
    ({"region_scales": ()}, r"config.rpnet.region_scales = \(\): must be"),
  ):
    with pytest.raises(ValueError, match=words):
      schema.build(rpnet.Rpnet, values, "config.rpnet")
