"""Contrast over the global batch: the same on many devices, one all-gather.

Each clip is compared with all others, so the vectors compared must travel once.
Nothing else may: no frames, no activations.
"""

import functools
import os

import jax
import numpy as np
import pytest

from benchmarks import hlo
from configs import contrastive as contrastive_config
from data_prep.synthetic import smoke
from tests import clip_run, small_run
from wsiseq_jax import optim, parallel, train
from wsiseq_jax import run as train_setup
from wsiseq_jax import state as states
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import clip_encoder
from wsiseq_jax.tasks.contrastive import losses, setup

# Five records a device: no parameter has an axis that 5 divides, so activations
# are told from parameters by their shape.
BATCH, FSDP = 40, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return smoke.make_shards(tmp_path_factory.mktemp("contrastive_sharding"))


def run_of(data, method, devices=8, fsdp=1):
  config = clip_run.small_config(method, data / "none", data)
  config.mesh.fsdp = fsdp
  config.data.batch_size = BATCH
  source = sources.RecordSource(config.data.path, "train")
  return train_setup.build(config, source, None, jax.devices()[:devices])


def exchanged(text):
  """{kind: [sizes of each array]} of a compiled program."""
  found = {}
  for _, instruction, times in hlo.Program(text).walk():
    if instruction.collective:
      arrays = [shape.sizes for shape in instruction.shapes]
      found.setdefault(instruction.collective, []).extend(arrays * times)
  return found


def text_of(function, *arguments):
  return function.lower(*arguments).compile().as_text()


@pytest.mark.parametrize(
  "method", ["tvrl", pytest.param("ltn", marks=pytest.mark.slow)]
)
def test_one_all_gather_of_the_vectors_compared(data, method):
  run = run_of(data, method)
  row = loader.load(run.source, 0)
  batch = {
    name: jax.ShapeDtypeStruct(
      (BATCH, *np.shape(array)),
      np.asarray(array).dtype,
      sharding=parallel.batch_sharding(run.mesh),
    )
    for name, array in row.items()
  }
  found = exchanged(text_of(train.make_train_step(run), run.abstract, batch))
  assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
  # Two views a record, 16 numbers and the record's weight.
  (gathered,) = found["all-gather"]
  assert int(np.prod(gathered)) == BATCH * 2 * (16 + 1)
  # Beside gradients only sums over the batch, and the gradient of what was
  # gathered: no frames (40 x 2 x 4 x 16) and no clips that are not compared.
  known = {()}
  for path, leaf in jax.tree.leaves_with_path(run.abstract.params):
    known.add(sizes(leaf.shape))
    if parallel.is_stacked(parallel.path_name(path)):
      known.add(sizes(leaf.shape[1:]))
  others = [
    shape
    for kind in ("all-reduce", "reduce-scatter")
    for shape in found.get(kind, [])
    if sizes(shape) not in known
  ]
  assert len(others) <= 4, others
  assert all(np.prod(shape) <= BATCH * 2 * 17 for shape in others), others


def sizes(shape):
  return tuple(sorted(n for n in shape if n > 1))


def info_nce_gradient(mesh, projected, weight):
  def loss(projected, weight):
    out = losses.info_nce(projected, weight, 0.1)
    return losses.mean_of(out["contrastive_loss"]), out

  rows = parallel.batch_sharding(mesh)
  step = jax.jit(
    parallel.with_mesh(mesh, jax.value_and_grad(loss, has_aux=True)),
    in_shardings=(rows, rows),
    out_shardings=(parallel.replicated(mesh), rows),
  )
  return step, step(projected, weight)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_sharded_info_nce_is_that_of_one_device(fsdp):
  rng = np.random.default_rng(0)
  projected = rng.normal(size=(BATCH, 2, 6)).astype(np.float32)
  weight = (rng.random(BATCH) < 0.8).astype(np.float32)
  one = parallel.make_mesh(1, jax.devices()[:1])
  many = parallel.make_mesh(fsdp)
  _, ((alone, metrics), slope) = info_nce_gradient(one, projected, weight)
  step, ((loss, found), sharded) = info_nce_gradient(many, projected, weight)
  assert float(loss) == pytest.approx(float(alone), rel=1e-6)
  for name, pair in metrics.items():
    np.testing.assert_allclose(found[name], pair, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(sharded, slope, atol=1e-6)
  text = text_of(step, projected, weight)
  assert hlo.count_collectives(text)["all-gather"] == 1


def gradients(data, devices, fsdp=1):
  run = run_of(data, "tvrl", devices, fsdp)
  return small_run.loss_and_gradients(run, progress=1.0)


@pytest.mark.slow
def test_loss_and_gradients_do_not_depend_on_the_devices(data, monkeypatch):
  monkeypatch.setattr(parallel, "FSDP_MIN_ELEMENTS", 256)
  value, grads = gradients(data, 8, fsdp=4)
  wanted, wanted_grads = gradients(data, 1)
  assert value == pytest.approx(wanted, rel=1e-5)
  scale = max(np.abs(g).max() for g in jax.tree.leaves(wanted_grads))
  for one, two in zip(
    jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True
  ):
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("method", contrastive_config.METHODS)
def test_paths_shapes_types_and_shardings(method, repo_root):
  config = contrastive_config.get_config(method)
  model = setup.model_config(config, "year")
  tx = optim.make_optimizer(config.optim, lambda step: 1e-3)
  abstract = states.abstract_state(
    functools.partial(clip_encoder.init_params, model), tx
  )
  shardings = states.state_shardings(abstract, parallel.make_mesh(FSDP))
  text = states.describe(abstract, shardings)
  path = repo_root / "tests" / "golden" / f"params_contrastive_{method}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text)
  assert text == path.read_text(), f"UPDATE_GOLDEN=1 rewrites {path.name}"
