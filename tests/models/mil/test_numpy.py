"""Bag models against their formulas, worked in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.mil.tiny_bags import (
  TILES,
  auxiliary,
  bag_of,
  close,
  config,
  forward,
  params_of,
  with_garbage,
)
from wsiseq_jax.models import mil
from wsiseq_jax.models.mil import clam


def softmax(x):
  e = np.exp(x - x.max(axis=0, keepdims=True))
  return e / e.sum(axis=0, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def layer(p, x):
  return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"])


def embedded(p, x):
  return np.maximum(layer(p["tile"]["embed"], x), 0)


X = np.asarray(bag_of().features, np.float64)


@pytest.mark.parametrize("name", ["attention", "gated", "additive", "clam_sb"])
def test_attention_against_numpy(name):
  """Pool, then classify: the models classify, then pool."""
  p = params_of(config(name))
  h = embedded(p, X)
  gate = 1.0 if name == "attention" else sigmoid(layer(p["gate"], h))
  a = softmax(layer(p["score"], np.tanh(layer(p["value"], h)) * gate))
  w, b = (np.asarray(p["tile"]["classifier"][k]) for k in ("kernel", "bias"))
  pooled = np.broadcast_to(a, (TILES, 3) if name == "additive" else a.shape)
  logits = np.array(
    [
      (pooled[:, min(c, pooled.shape[1] - 1)] @ h) @ w[:, c] + b[c]
      for c in range(3)
    ]
  )
  found = forward(config(name))(bag_of())
  close(found.attention, a)
  close(found.logits, logits)
  close(found.contribution, a * layer(p["tile"]["classifier"], h))


def test_additive_with_a_hidden_layer():
  cfg = config("additive", tile_hidden=5)
  p = params_of(cfg)
  h = embedded(p, X)
  single = layer(
    p["tile"]["classifier"],
    np.maximum(layer(p["tile"]["classifier_hidden"], h), 0),
  )
  gate = sigmoid(layer(p["gate"], h))
  a = softmax(layer(p["score"], np.tanh(layer(p["value"], h)) * gate))
  found = forward(cfg)(bag_of())
  close(found.instance_logits, single)
  close(found.logits, (a * single).sum(axis=0))


def svm(s, y):
  return np.log(sum(np.exp(s[j] + (j != y) - s[y]) for j in range(len(s))))


def entropy(s, y):
  return np.log(np.exp(s).sum()) - s[y]


def instance_loss(p, a, label, loss, count, subtyping):
  """CLAM's, tile by tile, as its text has it; one class a slide."""
  h, classes = embedded(p, X), len(p["instance_kernel"])
  total = 0.0
  for c in range(classes):
    k, b = (np.asarray(p[f"instance_{n}"][c]) for n in ("kernel", "bias"))
    rank = np.argsort(-a[:, min(c, a.shape[1] - 1)])
    labelled = [(i, 1) for i in rank[:count]] + [(i, 0) for i in rank[-count:]]
    if c != label:
      labelled = [(i, 0) for i in rank[:count]] if subtyping else []
    if labelled:
      total += np.mean([loss(h[i] @ k + b, y) for i, y in labelled])
  return total / classes if subtyping else total


@pytest.mark.parametrize(
  "name, kind, subtyping",
  [("clam_sb", "svm", False), ("clam_mb", "cross_entropy", True)],
)
def test_clam_against_numpy(name, kind, subtyping):
  cfg = config(name, instance_loss=kind, subtyping=subtyping)
  p, bag = params_of(cfg), bag_of()
  found = forward(cfg)(bag)
  want = instance_loss(
    p,
    np.asarray(found.attention),
    1,
    svm if kind == "svm" else entropy,
    4,
    subtyping,
  )
  got = auxiliary(cfg)(found, jnp.eye(3)[1])
  assert float(got) == pytest.approx(want, rel=1e-5)
  # Nothing is learned from a label that is not known.
  unknown = jnp.full(3, jnp.nan)
  assert float(auxiliary(cfg)(found, unknown)) == 0.0
  # Padding: the same tiles are chosen.
  padded = with_garbage(bag, 32)
  again = auxiliary(cfg)(forward(cfg)(padded), jnp.eye(3)[1])
  close(again, got)


def test_clam_in_small_bags():
  """B is at most half of the bag, so that no tile is labelled twice."""
  cfg = config("clam_sb")
  for tiles, count in ((1, 0), (2, 1), (5, 2), (8, 4), (21, 4)):
    aux = forward(cfg)(with_garbage(bag_of(tiles), 32)).aux
    assert int(aux["counts"].sum()) == count


def test_clam_with_one_logit_is_clam_with_two():
  two = config("clam_mb", outputs=2)
  one = config("clam_mb", outputs=1)
  bag = bag_of()  # and the same parameters
  double, single = forward(two)(bag), forward(one)(bag)
  close(single.logits[0], double.logits[1] - double.logits[0])
  close(single.attention[:, 0], double.attention[:, 1])
  close(single.contribution.sum(axis=0), single.logits)
  for label in (0, 1):
    close(
      auxiliary(one)(single, jnp.array([float(label)])),
      auxiliary(two)(double, jnp.eye(2)[label]),
    )


def test_smooth_svm_by_hand():
  # Right class 0: exponents 2 − 2, 1 + 1 − 2, −1 + 1 − 2.
  s = jnp.array([[2.0, 1.0, -1.0]])
  want = np.log(1 + np.exp(0.0) + np.exp(-2.0))
  got = clam.smooth_svm(s, jnp.array([0]))
  assert float(got[0]) == pytest.approx(want, rel=1e-6)
  # Right class 1: 2 + 1 − 1, 1 − 1, −1 + 1 − 1.
  want = np.log(np.exp(2.0) + 1 + np.exp(-1.0))
  got = clam.smooth_svm(s, jnp.array([1]))
  assert float(got[0]) == pytest.approx(want, rel=1e-6)
  # Far apart, where the original takes the maximum instead.
  far = clam.smooth_svm(jnp.array([[1e4, 0.0]]), jnp.array([1]))
  assert float(far[0]) == pytest.approx(1e4 + 1)


def test_dsmil_against_numpy():
  cfg = config("dsmil")
  p, bag = params_of(cfg), bag_of()
  single = layer(p["instance"], X)
  hidden = np.maximum(layer(p["query_hidden"], X), 0)
  q = np.tanh(layer(p["query_out"], hidden))
  a = softmax(q @ q[single.argmax(axis=0)].T / 2.0)
  kernel = np.asarray(p["bag_kernel"], np.float64)
  logits = np.einsum("cd,cdo->o", a.T @ X, kernel) + np.asarray(p["bag_bias"])
  found = forward(cfg)(bag)
  close(found.attention, a)
  close(found.instance_logits, single)
  close(found.logits, logits)
  best, onehot = single.max(axis=0), np.array([0.0, 1.0, np.nan])
  want = np.mean([np.log1p(np.exp(best[0])), np.log1p(np.exp(-best[1]))])
  got = auxiliary(cfg)(found, jnp.asarray(onehot))
  assert float(got) == pytest.approx(want, rel=1e-5)


def test_dsmil_starts_orthogonal():
  p = mil.init(jax.random.key(0), config("dsmil", width=32, query_width=16))
  for kernel in (
    p["instance"]["kernel"],
    p["query_hidden"]["kernel"],
    p["query_out"]["kernel"],
    p["bag_kernel"].reshape(-1, 3),
  ):
    close(kernel.T @ kernel, np.eye(kernel.shape[1]))


@pytest.mark.parametrize("tiles", [TILES, 1])
def test_chowder_against_numpy(tiles):
  cfg = config("chowder")
  p = params_of(cfg)
  scores = np.sort(layer(p["score"], X[:tiles])[:, 0])
  chosen = np.concatenate([scores[:2], scores[-2:]])
  if tiles == 1:
    chosen = np.repeat(scores, 4)
  hidden = sigmoid(layer(p["second"], sigmoid(layer(p["first"], chosen))))
  bag = jax.tree.map(lambda x: x[:tiles], bag_of())
  found = forward(cfg)(with_garbage(bag, 32))
  close(found.logits, layer(p["last"], hidden))
  order = np.argsort(layer(p["score"], X[:tiles])[:, 0])
  want = np.zeros(tiles)
  for i in [*order[:2], *order[-2:]] if tiles > 1 else [0] * 4:
    want[i] += 0.25
  close(found.attention[:tiles, 0], want)


def test_pooling_against_numpy():
  p = params_of(config("mean"))  # those of max and instance are the same
  single = layer(p["tile"]["classifier"], embedded(p, X))
  want = {
    "mean": single.mean(axis=0),
    "max": single.max(axis=0),
    "instance": np.sort(single, axis=0)[-3:].mean(axis=0),
  }
  for name, logits in want.items():
    # In a padded bag: of those tiles, and no others.
    found = forward(config(name))(with_garbage(bag_of(), 32))
    close(found.logits, logits)
    close(found.attention.sum(axis=0), 1.0)
