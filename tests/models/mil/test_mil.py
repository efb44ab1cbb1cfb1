"""Bag models under padding, shuffling, chunks and dropout."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.mil.tiny_bags import (
  TILES,
  bag_of,
  close,
  config,
  forward,
  params_of,
  with_garbage,
)
from wsiseq_jax.models import mil
from wsiseq_jax.models.mil import bag as mil_bag

EXACT = [n for n in mil.MODELS if n not in ("chowder", "transmil")]


@pytest.fixture(scope="module", params=mil.MODELS)
def outputs(request):
  """Of a bag of 21 tiles: as it is, padded to 32, and its tiles shuffled."""
  cfg = config(request.param)
  run, bag = forward(cfg), bag_of()
  order = np.random.default_rng(5).permutation(TILES)
  shuffled = jax.tree.map(lambda x: x[order], bag)
  if (
    cfg.name == "transmil"
  ):  # its lengths are compared with it: slow to compile
    bag, shuffled = mil.pad(bag, 32), mil.pad(shuffled, 32)
  plain, other = (
    jax.tree.map(lambda x: x[:TILES] if len(x) > TILES else x, run(b))
    for b in (bag, shuffled)
  )
  return cfg, plain, run(with_garbage(bag, 32)), other, order


MAPS = ("attention", "contribution", "instance_logits")


def test_padding_changes_nothing(outputs):
  _, plain, padded, _, _ = outputs
  close(padded.logits, plain.logits)
  for name in MAPS:
    close(getattr(padded, name)[:TILES], getattr(plain, name))
    assert not np.any(getattr(padded, name)[TILES:]), name


def test_order_of_tiles_changes_nothing(outputs):
  _, plain, _, shuffled, order = outputs
  close(shuffled.logits, plain.logits)
  for name in MAPS:
    close(getattr(shuffled, name), getattr(plain, name)[order])


def test_attention_sums_to_one_and_parts_to_the_logit(outputs):
  cfg, plain, _, _, _ = outputs
  assert plain.logits.shape == (3,)
  assert plain.attention.shape in ((TILES, 1), (TILES, 3))
  assert plain.contribution.shape == plain.instance_logits.shape == (TILES, 3)
  assert np.all(plain.attention >= 0)
  close(plain.attention.sum(axis=0), 1.0)
  if cfg.name in EXACT:
    close(plain.contribution.sum(axis=0), plain.logits)
  else:
    close(plain.contribution, plain.attention * plain.instance_logits)
  # The bag says something: a constant would pass all of the above.
  assert np.ptp(plain.instance_logits, axis=0).min() > 1e-3
  assert cfg.name in ("mean", "max") or np.ptp(plain.attention) > 1e-3


def test_only_transmil_sees_where_tiles_lie():
  bag = mil.pad(bag_of(), 32)
  for name, sees in (("transmil", True), ("gated", False)):
    run = forward(config(name))
    here = run(bag).logits
    apart = run(bag.replace(grid_xy=9 * bag.grid_xy)).logits
    assert (np.abs(apart - here).max() > 1e-3) == sees
    close(run(bag.replace(grid_xy=bag.grid_xy + 50.0)).logits, here)


@pytest.mark.parametrize("name", [n for n in mil.MODELS if n != "dsmil"])
def test_a_tile_by_itself_is_a_bag_of_one_tile(name):
  run, bag = forward(config(name)), bag_of()
  alone = jax.tree.map(lambda x: x[4:5], bag)
  # Padded to the size of another test: no new program.
  found = run(with_garbage(alone, 32))
  close(found.logits, run(mil.pad(bag, 32)).instance_logits[4])
  assert found.attention[0, 0] == pytest.approx(1.0)


def one_tile_or_none(name):
  rates = {"dropout", "attention_dropout"} & set(mil.settings(name))
  cfg = config(name, **dict.fromkeys(rates, 0.5))

  def loss(params, bag):
    output = mil.apply(params, cfg, bag, jax.random.key(0))
    more = mil.auxiliary_loss(params, cfg, output, jnp.eye(3)[1])
    return jnp.sum(output.logits**2) + more

  step = jax.jit(jax.value_and_grad(loss))
  bag = with_garbage(bag_of(1), 5)
  empty = bag.replace(mask=jnp.zeros(5, bool))
  return step(params_of(cfg), bag), step(params_of(cfg), empty)


@pytest.mark.parametrize(
  "name",
  [
    "clam_mb",
    "chowder",
    "dsmil",
    "selection",
    pytest.param("transmil", marks=pytest.mark.slow),
  ],
)
def test_gradients_of_one_tile_and_of_none_are_finite(name):
  for value, grads in one_tile_or_none(name):
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(grads):
      assert np.all(np.isfinite(leaf))


def test_batches_by_vmap():
  cfg = config("clam_mb")
  bags = [with_garbage(bag_of(n, seed=n), 32) for n in (32, 7)]
  both = jax.tree.map(lambda *x: jnp.stack(x), *bags)
  found = jax.jit(jax.vmap(lambda b: mil.apply(params_of(cfg), cfg, b)))(both)
  for i, bag in enumerate(bags):
    jax.tree.map(
      lambda got, want, i=i: close(got[i], want), found, forward(cfg)(bag)
    )


def test_dropout_by_key():
  x = jnp.ones((64, 5))
  found = mil_bag.dropout(x, 0.25, jax.random.key(0))
  assert set(np.unique(found).round(4)) == {0.0, np.float32(1.3333)}
  assert float((found == 0).mean()) == pytest.approx(0.25, abs=0.08)
  close(found, mil_bag.dropout(x, 0.25, jax.random.key(0)))
  assert np.any(found != mil_bag.dropout(x, 0.25, jax.random.key(1)))
  # Channels are dropped apart from each other, also those of one random word.
  agree = (found[:, :-1] == found[:, 1:]).mean(axis=0)
  assert np.all(agree < 0.85)
  assert mil_bag.dropout(x, 0.25, None) is x
  # Of a longer bag, the same values of the first tiles are dropped.
  more = mil_bag.dropout(jnp.ones((90, 5)), 0.25, jax.random.key(0))
  close(more[:64], found)


def test_chunks_have_dropout_of_their_own_whatever_is_padded():
  def draw(size):
    return mil_bag.in_chunks(
      lambda x, key: mil_bag.dropout(x, 0.5, key),
      jnp.ones((size, 4)),
      jax.random.key(0),
      8,
      "none",
    )

  few, many = draw(21), draw(32)
  close(many[:21], few)
  assert np.any(many[:8] != many[8:16]) and np.any(many[16:24] != many[24:])


def test_dropout_needs_a_key():
  cfg = config("gated", dropout=0.5)
  run = jax.jit(lambda bag, key: mil.apply(params_of(cfg), cfg, bag, key))
  bag, want = bag_of(), forward(config("gated"))(bag_of()).logits
  one, two = (run(bag, jax.random.key(i)).logits for i in (0, 1))
  for a, b in ((one, two), (one, want), (two, want)):
    assert np.abs(a - b).max() > 1e-2


def test_chunks_and_remat_change_nothing_but_memory():
  tiles = 512
  bag = bag_of(40)
  bag = jax.tree.map(lambda x: jnp.tile(x, (13, *[1] * (x.ndim - 1))), bag)
  bag = jax.tree.map(lambda x: x[:tiles], bag)

  def gradient(**changes):
    cfg = config("gated", hidden=64, attention_width=32, **changes)

    def loss(params):
      return mil.apply(params, cfg, bag, None).logits.sum()

    params = params_of(config("gated", hidden=64, attention_width=32))
    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes

  whole, most = gradient(chunk_tiles=tiles)
  dots, less = gradient(chunk_tiles=32)
  full, least = gradient(chunk_tiles=32, remat="full")
  for other in (dots, full):
    jax.tree.map(lambda a, b: close(a, b, atol=1e-4), whole, other)
  assert least < less < most
  # Two arrays [m hidden] and what a few chunks need.
  assert less < 4 * 64 * (2 * tiles + 20 * 32)


def test_wrong_bags_and_labels_are_refused():
  cfg = config("gated")
  p, bag = params_of(cfg), bag_of()
  with pytest.raises(ValueError, match=r"\(21, 5\).*\(m, 6\).*model\.width"):
    mil.apply(p, cfg, bag.replace(features=bag.features[:, :5]))
  with pytest.raises(ValueError, match=r"\(20,\).*model\.width"):
    mil.apply(p, cfg, bag.replace(mask=bag.mask[:20]))
  batch = jax.tree.map(lambda x: x[None], bag)
  with pytest.raises(ValueError, match="needs vmap"):
    mil.apply(p, cfg, batch)
  with pytest.raises(ValueError, match=r"\(2,\): must be \(3,\)"):
    mil.auxiliary_loss(p, cfg, forward(cfg)(bag), jnp.zeros(2))
  with pytest.raises(ValueError, match="21 tiles cannot have 20"):
    mil.pad(bag, 20)


@pytest.mark.parametrize(
  "name, changes, words",
  [
    ("abmil", {}, r"config.model.name = 'abmil': must be one of .*'gated'"),
    ("clam_bs", {}, "did you mean 'clam_sb'"),
    ("gated", {"remat": "some"}, "config.model.remat = 'some'"),
    ("gated", {"outputs": 0}, "config.model.outputs = 0"),
    ("gated", {"dropout": 1.0}, "config.model.dropout = 1.0"),
    ("chowder", {"mlp_hidden": (3, 0)}, "config.model.mlp_hidden"),
    ("transmil", {"heads": 3}, "heads = 3 does not divide .* = 8"),
    ("dsmil", {"auxiliary_weight": 1.5}, "auxiliary_weight = 1.5"),
    ("clam_sb", {"instance_loss": "hinge"}, "instance_loss = 'hinge'"),
    ("additive", {"outputs": 1}, "same function as 'gated'"),
    ("selection", {"top": 0.6, "bottom": 0.5}, "sum must not exceed 1"),
  ],
)
def test_what_cannot_be_is_refused(name, changes, words):
  with pytest.raises(ValueError, match=words):
    config(name, **changes)


@pytest.mark.parametrize(
  "name, field",
  [("gated", "tile_hidden"), ("mean", "attention_width"), ("max", "top_tiles")],
)
def test_fields_of_another_model_are_refused(name, field):
  with pytest.raises(ValueError) as caught:
    config(name, **{field: 4})
  message = str(caught.value)
  assert f"config.model.{field} = 4" in message
  assert all(own in message for own in mil.settings(name))


def test_loss_weights_are_the_papers():
  weights = {n: config(n).loss_weights for n in mil.MODELS}
  assert weights["clam_sb"] == weights["clam_mb"] == (0.7, 0.3)
  assert weights["dsmil"] == (0.5, 0.5)
  assert weights.pop("selection") == (0.5, 0.5)
  assert set(weights.values()) == {(0.7, 0.3), (0.5, 0.5), (1.0, 0.0)}
  assert config("dsmil", auxiliary_weight=0.0).loss_weights == (1.0, 0.0)


def test_parameters_are_plain_and_of_the_papers_sizes():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    cfg = mil.configure("clam_sb", width=1024, outputs=2)
    p = jax.eval_shape(lambda: mil.init(jax.random.key(0), cfg))
  assert type(p) is dict
  shapes = {
    jax.tree_util.keystr(k, simple=True, separator="."): v.shape
    for k, v in jax.tree_util.tree_leaves_with_path(p)
  }
  assert shapes == {
    "tile.embed.kernel": (1024, 512),
    "tile.embed.bias": (512,),
    "tile.classifier.kernel": (512, 2),
    "tile.classifier.bias": (2,),
    "value.kernel": (512, 256),
    "value.bias": (256,),
    "gate.kernel": (512, 256),
    "gate.bias": (256,),
    "score.kernel": (256, 1),
    "score.bias": (1,),
    "instance_kernel": (2, 512, 2),
    "instance_bias": (2, 2),
  }
