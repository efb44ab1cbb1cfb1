import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from wsiseq_jax import checkpoint, parallel
from wsiseq_jax import state as states

META = {"config": {"seed": 0, "names": [], "empty": {}}, "step": 0}


def state_at(step, mesh, rows=8):
  spec = PartitionSpec("fsdp")

  def put(array, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))

  kernel = jnp.arange(rows * 4.0).reshape(rows, 4) + step
  return states.TrainState(
    step=put(jnp.int32(step), PartitionSpec()),
    params={"layer": {"kernel": put(kernel, spec)}},
    opt_state=({"mu": put(-kernel, spec)}, ()),
  )


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def test_round_trip_of_all_four_parts(tmp_path):
  mesh = parallel.make_mesh(4)
  state = state_at(7, mesh)
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    assert saved.latest is None
    saved.save(state, {"step": 7, "pending": [0.1]}, META)
  with checkpoint.Checkpoints(tmp_path / "c") as saved:
    assert saved.latest == 7
    assert saved.meta() == META
    loaded, data = saved.restore(abstract(state))
  assert data == {"step": 7, "pending": [0.1]}
  jax.tree.map(np.testing.assert_array_equal, loaded, state)
  assert int(loaded.step) == 7
  names = {p.name for p in (tmp_path / "c" / "7").iterdir() if p.is_dir()}
  assert names == {"params", "opt_state", "data", "meta"}


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_moves_to_other_devices(tmp_path, fsdp):
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(state_at(1, parallel.make_mesh(8)), {}, META)
  mesh = parallel.make_mesh(fsdp, jax.devices()[:fsdp])
  target = state_at(0, mesh)
  with checkpoint.Checkpoints(tmp_path, read_only=True) as saved:
    loaded, _ = saved.restore(abstract(target))
    params = saved.restore_parts({"params": abstract(target.params)})["params"]
  kernel = loaded.params["layer"]["kernel"]
  assert kernel.sharding == target.params["layer"]["kernel"].sharding
  np.testing.assert_array_equal(kernel, np.arange(32.0).reshape(8, 4) + 1)
  np.testing.assert_array_equal(params["layer"]["kernel"], kernel)


def test_small_arrays_that_all_devices_have_are_not_cut(tmp_path, caplog):
  mesh = parallel.make_mesh(8)
  # Of a size that nothing else has: a program for it would be a new one.
  kernel = np.arange(24.0 * 13).reshape(24, 13)
  kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
  state = states.TrainState(
    step=jnp.int32(1),
    params={"kernel": kernel},
    opt_state={"mu": kernel},
  )
  with jax.log_compiles(), checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(state, {}, META)
  assert "XLA compilation of jit(slice)" not in caplog.text


def test_a_state_may_be_donated_right_after_saving(tmp_path):
  mesh = parallel.make_mesh(8)
  state = state_at(1, mesh)
  overwrite = jax.jit(
    lambda s: jax.tree.map(lambda x: x * 0 - 5, s), donate_argnums=0
  )
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(state, {}, META)
    state = overwrite(state)
    jax.block_until_ready(state)
  with checkpoint.Checkpoints(tmp_path) as saved:
    loaded, _ = saved.restore(abstract(state_at(1, mesh)))
  kernel = np.asarray(loaded.params["layer"]["kernel"])
  np.testing.assert_array_equal(kernel, np.arange(32.0).reshape(8, 4) + 1)


def test_reading_waits_for_what_is_being_saved(tmp_path, monkeypatch):
  mesh, orbax = parallel.make_mesh(1), ocp.training.Checkpointer
  start = orbax.save_checkpointables_async

  class Late:
    """A save that is not begun before somebody waits for it."""

    def __init__(self, *args, **kwargs):
      self.args, self.kwargs = args, kwargs

    def result(self):
      start(*self.args, **self.kwargs).result()

  monkeypatch.setattr(
    orbax, "save_checkpointables_async", lambda *a, **k: Late(*a, **k)
  )
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(state_at(1, mesh), {"index": 3}, META)
    assert saved.meta() == META
    saved.save(state_at(2, mesh), {"index": 4}, META)
    _, data = saved.restore(abstract(state_at(1, mesh)))
  assert data == {"index": 4}


def test_mismatch_names_every_array(tmp_path):
  mesh = parallel.make_mesh(4)
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(state_at(1, mesh), {}, META)
    other = states.TrainState(
      step=jax.device_put(jnp.int32(0), parallel.replicated(mesh)),
      params={"layer": {"kernel": jnp.zeros((16, 4)), "bias": jnp.zeros(4)}},
      opt_state=({"mu": jnp.zeros((8, 4), jnp.bfloat16)}, ()),
    )
    with pytest.raises(ValueError) as caught:
      saved.restore(abstract(other))
  text = str(caught.value)
  assert "step 1 does not fit this model, 3 arrays differ" in text
  assert "params/layer/bias: wanted float32[4], not in the checkpoint" in text
  assert (
    "params/layer/kernel: wanted float32[16,4], the checkpoint has "
    "float32[8,4]" in text
  )
  assert (
    "opt_state/0/mu: wanted bfloat16[8,4], the checkpoint has float32[8,4]"
    in text
  )


def test_keeps_the_newest(tmp_path):
  mesh = parallel.make_mesh(1)
  with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
    for step in (1, 2, 3, 4):
      saved.save(state_at(step, mesh), {}, META | {"step": step})
  names = {p.name for p in tmp_path.iterdir() if p.name.isdigit()}
  assert names == {"3", "4"}


def test_a_save_cut_short_does_not_exist(tmp_path):
  mesh = parallel.make_mesh(1)
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(state_at(1, mesh), {}, META)
  # What a kill in the middle of a save leaves behind.
  cut = tmp_path / "2.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp"
  cut.mkdir(parents=True)
  (cut / "manifest.ocdbt").write_bytes(b"half")
  with checkpoint.Checkpoints(tmp_path, read_only=True) as saved:
    assert saved.latest == 1
  assert cut.exists()
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.latest == 1
    saved.save(state_at(2, mesh), {}, META)
  assert not cut.exists()
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.latest == 2


def test_a_failed_save_is_not_silent(tmp_path):
  mesh = parallel.make_mesh(1)
  with (
    pytest.raises(TypeError, match="JSON serializable"),
    checkpoint.Checkpoints(tmp_path) as saved,
  ):
    saved.save(state_at(1, mesh), {"no JSON": object()}, META)


def test_is_due_by_steps_and_by_the_clock(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
  with checkpoint.Checkpoints(tmp_path / "a", every_steps=5) as saved:
    due = [step for step in range(12) if saved.is_due(step)]
  assert due == [5, 10]
  with checkpoint.Checkpoints(tmp_path / "b", every_minutes=2) as saved:
    now[0] = 119.0
    assert not saved.is_due(3)
    now[0] = 120.0
    assert saved.is_due(3)
    saved.save(state_at(3, parallel.make_mesh(1)), {}, META)
    now[0] = 121.0
    assert not saved.is_due(4)


def test_missing_folders_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    checkpoint.Checkpoints(tmp_path / "no", read_only=True)
  (tmp_path / "empty").mkdir()
  with (
    checkpoint.Checkpoints(tmp_path / "empty", read_only=True) as saved,
    pytest.raises(FileNotFoundError, match="no complete checkpoint"),
  ):
    saved.meta()


def test_opens_a_run_folder_or_one_step(tmp_path):
  mesh = parallel.make_mesh(1)
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
    for step in (1, 2):
      saved.save(state_at(step, mesh), {}, META | {"step": step})
  with checkpoint.Checkpoints(tmp_path, read_only=True) as saved:
    assert saved.latest == 2
    first, second = saved.identity(1), saved.identity(2)
  assert first != second
  one = tmp_path / "checkpoints" / "1"
  with checkpoint.Checkpoints(one, read_only=True) as saved:
    assert saved.latest == 1
    assert saved.meta()["step"] == 1
    assert saved.identity() == first
