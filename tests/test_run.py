"""What is checked before a training starts."""

import pytest

from tests import small_run
from wsiseq_jax import run as train_setup


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.shards(tmp_path_factory.mktemp("run_data"))


def test_checkpoints_without_identity_and_order_are_resumed(capsys):
  new = {
    "config": small_run.small_config("run", "data").to_dict(),
    **{"fingerprint": "a", "identity": "b", "records": 3, "order": 2},
  }
  old = {k: new[k] for k in ("config", "fingerprint", "records")}
  train_setup.check_resume(old, new)
  assert "order 1 of the data" in capsys.readouterr().err
  train_setup.check_resume(new, new)
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ("key", "value", "match"),
  [
    ("data.frames", 16, "span 16 stored frames, the data has 12"),
    ("data.eval_split", "test", "config.data.eval_split = 'test'"),
    ("data.batch_size", 9, "multiple of the 8 devices"),
    ("optim.warmup_steps", 6, "the warm-up of 6 steps must be shorter"),
    ("mesh.fsdp", 3, "config.mesh.fsdp = 3"),
  ],
)
def test_what_does_not_fit_is_said_before_training(
  data, tmp_path, key, value, match
):
  config = small_run.small_config(tmp_path, data)
  config.eval_every_steps = 3
  block, name = key.split(".")
  config[block][name] = value
  with pytest.raises(ValueError, match=match):
    train_setup.prepare(config)
