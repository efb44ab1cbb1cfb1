"""Lattices of cells: cut, labelled, in bags of pictures and of slides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.files import schema
from wsiseq_jax import parallel
from wsiseq_jax.models.mil import selection
from wsiseq_jax.segment import lattice
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.lattice import Lattice

TINY = Backbone(channels=(4, 4, 4, 4, 4))
SMALL = Lattice(cell_px=16, level=3)


@pytest.fixture(scope="module")
def params():
  model = lattice.network(SMALL, TINY, 2, ("max_max",))
  frozen = {"backbone": TINY.start(0), "teachers": []}
  return model.init(jax.random.key(1), frozen, None), frozen


def batch_of(rows=4, height=32, width=48):
  rng = np.random.default_rng(3)
  tissue = np.ones((rows, height, width), np.uint8)
  tissue[1, :, 16:] = 0
  labels = np.array([[1, 0], [0, 1], [0, 0], [1, np.nan]], np.float32)
  pixels = rng.integers(0, 255, (rows, height, width, 3), np.uint8)
  return {
    "pixels": jnp.array(pixels),
    "tissue": jnp.array(tissue),
    "labels": jnp.array(np.tile(labels, (rows // 4, 1))),
    "mask": jnp.ones(rows),
  }


def test_a_cell_sees_itself_alone(params):
  params, frozen = params
  batch = batch_of()

  @jax.jit
  def read(pixels):
    return lattice.cells_of(
      SMALL, TINY, params, frozen["backbone"], pixels, batch["tissue"]
    )

  cells, real = read(batch["pixels"])
  assert cells.shape == (4, 2, 3, 2)
  assert real[1].tolist() == [[1, 0, 0], [1, 0, 0]] and np.all(real[0] == 1)
  # Another pixel in one cell changes that cell alone.
  changed, _ = read(batch["pixels"].at[2, 20:30, 35:45].set(0))
  moved = np.abs(np.asarray(changed - cells)).max(axis=-1) > 1e-6
  assert np.argwhere(moved).tolist() == [[2, 1, 2]]
  # A cell is what a picture of its size is.
  alone, _ = read(
    jnp.zeros_like(batch["pixels"])
    .at[:, :16, :16]
    .set(batch["pixels"][:, 16:32, 32:48])
  )
  np.testing.assert_allclose(alone[:, 0, 0], cells[:, 1, 2], atol=1e-5)


def test_maps_are_cells_enlarged(params):
  params, frozen = params
  batch = batch_of(height=48, width=32)
  config = Lattice(cell_px=32, level=3)
  maps, logits = jax.jit(config.classify(TINY))(
    params, frozen["backbone"], batch["pixels"], batch["tissue"]
  )
  cells, _ = lattice.cells_of(
    config, TINY, params, frozen["backbone"], batch["pixels"], batch["tissue"]
  )
  # The second row of cells reaches beyond the picture.
  assert cells.shape == (4, 2, 1, 2) and maps.shape == (4, 12, 8, 2)
  np.testing.assert_allclose(
    maps[:, 0], cells[:, :1, 0].repeat(8, 1), atol=1e-5
  )
  assert (
    np.abs(maps[:, -1] - cells[:, 1]).max()
    < np.abs(maps[:, 0] - cells[:, 1]).max()
  )
  # Half of the lower cells is padding: still in the bag.
  np.testing.assert_allclose(logits, cells.max(axis=(1, 2)), atol=1e-5)


def test_strongest_by_hand():
  cells = jnp.array([[[1.0, 4.0], [3.0, 9.0]]])[..., None]
  real = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
  assert lattice.strongest(cells, real, 0.0).tolist() == [[4.0]]
  assert lattice.strongest(cells, real, 0.7).tolist() == [[3.5]]
  assert lattice.strongest(cells, 0 * real, 0.7).tolist() == [[0.0]]


def slow_loss(cells, scores, labels, real, rules):
  """Bags and classes one by one."""
  total = []
  for rule, score in zip(rules, scores, strict=True):
    of_bags = []
    for bag, label in enumerate(labels):
      of_class = []
      for c, one in enumerate(label):
        if np.isnan(one):
          continue
        at = np.flatnonzero(real[bag])
        order = at[np.argsort(score[bag, at, c])]
        picked = {
          "max_max": [(order[-1], one)],
          "max_min": [(order[-1] if one else order[0], one)],
          "quantile": [(i, 0) for i in order]
          if not one
          else [(order[0], 0)] * (len(order) > 1) + [(order[-1], 1)],
        }[rule]
        z = cells[bag, [i for i, _ in picked], c]
        y = np.array([y for _, y in picked])
        of_class.append(np.mean(np.log1p(np.exp(z)) - y * z))
      if of_class:
        of_bags.append(np.mean(of_class))
    total.append(np.mean(of_bags))
  return np.mean(total)


def read_cells(config, params, frozen, batch):
  """Logits of cells and which are real, a bag in a row."""
  together = config.bag_pictures if config.bag == "slide" else 1
  cells, real = jax.jit(
    lambda one: lattice.cells_of(
      config, TINY, one, frozen["backbone"], batch["pixels"], batch["tissue"]
    )
  )(params)
  cells = np.asarray(cells).reshape(-1, 6 * together, 2)
  return cells, np.asarray(real).reshape(-1, 6 * together)


# A fifth of 6 and of 2 cells is one, and one cell is never both ends.
@pytest.mark.parametrize(
  "bag, rules", [("picture", selection.RULES), ("slide", selection.RULES[1:])]
)
def test_taught_loss_against_loops(bag, rules, params):
  config = Lattice(cell_px=16, level=3, bag=bag, bag_pictures=2)
  rng = np.random.default_rng(0)
  own, frozen = params
  teachers = [
    jax.tree.map(
      lambda x: jnp.array(x + 0.3 * rng.normal(size=x.shape), jnp.float32), own
    )
    for _ in rules
  ]
  frozen = {**frozen, "teachers": teachers}
  batch, labels = batch_of(), np.asarray(batch_of()["labels"])
  if bag == "slide":  # the highest of two pictures; NaN is not known
    labels = np.array([[1, 1], [1, np.nan]])
  model = lattice.network(config, TINY, 2, rules)
  found = jax.jit(model.loss)(own, frozen, batch, jax.random.key(0))
  cells, real = read_cells(config, own, frozen, batch)
  scores = [read_cells(config, one, frozen, batch)[0] for one in teachers]
  want = slow_loss(cells, scores, labels, real, rules)
  assert float(found) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_own_loss_against_loops(weight, params):
  config = Lattice(
    cell_px=16, level=3, rules=("quantile",), top=0.5, bag_weight=weight
  )
  own, frozen = params
  batch = batch_of()
  # Labels of which the selection knows one end each: a fifth at the bottom.
  labels = np.array([[0, np.nan], [np.nan, 0], [0, 0], [np.nan, np.nan]])
  batch["labels"] = jnp.array(labels, jnp.float32)
  model = lattice.network(config, TINY, 2, ("quantile",))
  found = jax.jit(model.loss)(own, frozen, batch, jax.random.key(0))
  cells, real = read_cells(config, own, frozen, batch)
  selected = slow_loss(cells, [cells], labels, real, ("quantile",))
  whole = []
  for bag, c in np.argwhere(labels == 0):
    z = np.sort(cells[bag, real[bag] > 0, c])[::-1]
    z = z[: max(1, len(z) // 2)].mean()
    whole.append(np.log1p(np.exp(z)))
  want = weight * np.mean(whole) + (1 - weight) * selected
  assert float(found) == pytest.approx(want, rel=1e-4)


def test_one_and_eight_devices(params):
  own, frozen = params
  model = lattice.network(SMALL, TINY, 2, ("max_min",))
  found = []
  for count in (1, 8):
    mesh = parallel.make_mesh(1, jax.devices()[:count])
    batch = jax.device_put(batch_of(8), parallel.batch_sharding(mesh))
    step = jax.jit(parallel.with_mesh(mesh, jax.value_and_grad(model.loss)))
    everywhere = jax.device_put((own, frozen), parallel.replicated(mesh))
    found.append(step(*everywhere, batch, jax.random.key(0)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), *found
  )


def test_a_step_sees_pictures_of_few_slides():
  slides = ["a"] * 5 + ["b"] + ["c"] * 3
  seen = set()
  for step in range(20):
    order = lattice.slides_of_step(slides, 2, 3, 11, step)
    np.testing.assert_array_equal(
      order, lattice.slides_of_step(slides, 2, 3, 11, step)
    )
    for bag in order.reshape(2, 3):
      assert len({slides[i] for i in bag}) == 1
      # The slide of one picture gives it three times, others never.
      assert len(set(bag)) == (1 if slides[bag[0]] == "b" else 3)
      seen.add(slides[bag[0]])
  assert seen == {"a", "b", "c"}


def test_settings_that_cannot_be():
  for values, words in (
    ({"cell_px": 40}, "config.stages.lattice.cell_px = 40.*multiple of 16"),
    ({"rules": ("best",)}, "config.stages.lattice.rules"),
    ({"top": 0.8, "bottom": 0.5}, "sum must not exceed 1"),
  ):
    with pytest.raises(ValueError, match=words):
      schema.build(Lattice, values, "config.stages.lattice")
