"""What training starts from: weights of others, and runs of our own."""

import jax
import numpy as np
import pytest

from tests import clip_run, small_run
from wsiseq_jax import evaluate, train
from wsiseq_jax import run as train_setup
from wsiseq_jax.weights import hf_videomae


def test_training_starts_from_hugging_face_weights(
  repo_root, tmp_path, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  file = repo_root / "tests/golden/videomae_square/model.safetensors"
  config = small_run.small_config(
    tmp_path / "run", small_run.shards(tmp_path / "data")
  )
  config.data.frames = 4
  config.model.update(
    {
      "init_from": str(file),
      "width": 48,
      "depth": 3,
      "heads": 4,
      "mlp_width": 120,
      "decoder_width": 24,
      "decoder_depth": 2,
      "decoder_heads": 2,
      "decoder_mlp_width": 72,
    }
  )
  # One step at a rate of 0 leaves the weights as they were read.
  config.optim.update({"lr_per_256": 0.0, "min_lr_per_256": 0.0})
  config.optim.update({"warmup_steps": 0, "total_steps": 1})
  state = train.run(config)
  want = hf_videomae.load(str(file))[1]
  got = jax.tree.map(np.asarray, state.params)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.array_equal(a, b)
  # The checkpoint describes itself: the file is not needed any more.
  config.model.init_from = "gone.safetensors"
  assert evaluate.load(config).config.model.norm_eps == 1e-12


@pytest.mark.parametrize("task", ["videomae", "contrastive"])
def test_training_starts_from_a_run_of_ours(task, tmp_path, monkeypatch):
  small_run.use_devices(monkeypatch, 1)
  data = small_run.shards(tmp_path / "data")

  def config_of(name):
    if task == "videomae":
      return small_run.small_config(tmp_path / name, data)
    return clip_run.small_config("csimclr", tmp_path / name, data)

  config = config_of("first")
  config.optim.total_steps = 3
  config.eval_every_steps = 0
  if task == "contrastive":
    config.optim.ema_decay = 0.5
  first = train.run(config)
  # A run with averaged parameters is used with these.
  params = first.extra["ema"] if config.optim.ema_decay else first.params
  config = config_of("second")
  config.model.init_from = str(tmp_path / "first")
  config.eval_every_steps = 0
  if task == "videomae":
    # Positions of another grid, resampled from that of the first run.
    config.data.frames = 4
  run = train_setup.prepare(config)
  second = train_setup.first_state(run)
  jax.tree.map(np.testing.assert_array_equal, second.params, params)
  if task == "videomae":
    assert run.config.model.trained_grid == (4, 4, 4)
  with pytest.raises(ValueError, match="config.model.init_from"):
    config.model.init_from = str(tmp_path / "nowhere")
    train_setup.first_state(train_setup.prepare(config))
