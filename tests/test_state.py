"""Golden text of every preset's state: `UPDATE_GOLDEN=1 pytest` rewrites it."""

import os

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import videomae as videomae_config
from wsiseq_jax import optim, parallel
from wsiseq_jax import state as states
from wsiseq_jax.tasks import videomae

FSDP = 8


def state_of(preset, fsdp):
  config = videomae_config.get_config(preset)
  model = videomae.model_config(config)
  tx = optim.make_optimizer(config.optim, lambda step: 1e-3)

  def init(key):
    return videomae.init_params(model, key)

  abstract = states.abstract_state(init, tx)
  mesh = parallel.make_mesh(fsdp)
  return init, tx, abstract, states.state_shardings(abstract, mesh)


@pytest.mark.parametrize("preset", videomae_config.PRESETS)
def test_paths_shapes_types_and_shardings(preset, repo_root):
  _, _, abstract, shardings = state_of(preset, FSDP)
  text = states.describe(abstract, shardings)
  path = repo_root / "tests" / "golden" / f"params_{preset}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text)
  assert text == path.read_text(), f"UPDATE_GOLDEN=1 rewrites {path.name}"


def test_known_sizes():
  # Counted by others from the published models: ViT-B with a decoder of four
  # blocks has 94.2 M parameters.
  _, _, abstract, _ = state_of("base", 1)
  count = sum(x.size for x in jax.tree.leaves(abstract.params))
  assert round(count / 1e6, 1) == 94.2


def test_state_is_made_where_it_lives(monkeypatch):
  monkeypatch.setattr(parallel, "FSDP_MIN_ELEMENTS", 256)
  init, tx, _, shardings = state_of("smoke", 4)
  state = states.init_state(init, tx, jax.random.key(0), shardings)
  kernel = state.params["decoder"]["head"]["kernel"]
  assert kernel.sharding.spec == PartitionSpec(None, "fsdp")
  width = kernel.shape[1] // 4
  assert kernel.addressable_shards[0].data.shape[1] == width
  slot = state.opt_state[0].mu["decoder"]["head"]["kernel"]
  assert slot.sharding == kernel.sharding
  assert int(state.step) == 0


def test_init_does_not_depend_on_the_mesh(monkeypatch):
  monkeypatch.setattr(parallel, "FSDP_MIN_ELEMENTS", 256)
  params = []
  for fsdp in (1, 8):
    init, tx, _, shardings = state_of("smoke", fsdp)
    state = states.init_state(init, tx, jax.random.key(0), shardings)
    params.append(jax.tree.map(np.asarray, state.params))
  jax.tree.map(np.testing.assert_array_equal, *params)
