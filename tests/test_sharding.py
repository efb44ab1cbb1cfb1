"""What the compiler makes of one device's program: collectives, and sums.

A step on several devices may exchange gradients, metrics and, with fsdp,
parameters. It must never exchange activations: that is what `x[rows, idx]` in
place of `take_along_axis` would bring, and nothing but the compiled program
tells (results stay right, only slow). So: compile, and look.
"""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import hlo
from tests import small_run
from wsiseq_jax import evaluate, launch, parallel, train
from wsiseq_jax import run as train_setup
from wsiseq_jax.data import augment, loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import attention, masking, tokens
from wsiseq_jax.tasks.videomae import losses

# Five records a device: no parameter has an axis that 5 divides, so activations
# are told from parameters by their shape.
BATCH = 40
GRID, PATCH = (4, 4, 4), (2, 8, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.shards(tmp_path_factory.mktemp("sharding_data"))


@pytest.fixture(autouse=True)
def cut_small_parameters(monkeypatch):
  # Small enough that this model's parameters are cut at all.
  monkeypatch.setattr(parallel, "FSDP_MIN_ELEMENTS", 256)


def make_run(data, fsdp, devices=8, parts=1):
  config = small_run.small_config(data / "none", data)
  config.mesh.fsdp = fsdp
  config.data.batch_size = BATCH
  # One of everything: both kinds of randomness, V2's masks, two clips each.
  config.data.repeats = 2
  config.mask.decoder = "running_cell"
  config.optim.accumulate_steps = parts
  source = sources.RecordSource(config.data.path, "train")
  return train_setup.build(config, source, None, jax.devices()[:devices])


def abstract_batch(run):
  row = loader.load(run.source, 0)
  sharding = parallel.batch_sharding(run.mesh)
  return {
    name: jax.ShapeDtypeStruct(
      (BATCH, *np.shape(array)), np.asarray(array).dtype, sharding=sharding
    )
    for name, array in row.items()
  }


def text_of(function, *arguments):
  """The compiled program."""
  return function.lower(*arguments).compile().as_text()


def compile_train_step(run):
  step = train.make_train_step(run)
  return text_of(step, run.abstract, abstract_batch(run))


def collectives(text):
  """{kind: [sizes of each array exchanged]}, as often as loops repeat it."""
  found = collections.defaultdict(list)
  for _, instruction, times in hlo.Program(text).walk():
    if instruction.collective:
      arrays = [shape.sizes for shape in instruction.shapes]
      found[instruction.collective] += arrays * times
  return dict(found)


def counts(text):
  """{kind: number of collectives in the program}, loops counted once."""
  kinds = (i.collective for _, i, _ in hlo.Program(text).walk())
  return collections.Counter(kind for kind in kinds if kind)


def parameter_shapes(run):
  """Sizes of parameters and of single layers, whole and cut, axes sorted."""
  shapes = set()
  fsdp = run.mesh.shape["fsdp"]
  for path, leaf in jax.tree.leaves_with_path(run.abstract.params):
    wholes = [leaf.shape]
    if parallel.is_stacked(parallel.path_name(path)):
      wholes.append(leaf.shape[1:])
    for whole in wholes:
      shapes.add(whole)
      for axis in range(len(whole)):
        cut = list(whole)
        cut[axis] //= fsdp
        shapes.add(tuple(cut))
  return {tuple(sorted(n for n in shape if n > 1)) for shape in shapes}


def activations(arrays, run):
  """Of arrays exchanged, those that are neither parameters nor sums."""
  known = parameter_shapes(run)
  known.add(())
  return [
    a for a in arrays if tuple(sorted(n for n in a if n > 1)) not in known
  ]


def test_data_parallel_step_reduces_gradients_and_nothing_else(data):
  run = make_run(data, fsdp=1)
  text = compile_train_step(run)
  found = collectives(text)
  assert set(found) == {"all-reduce"}
  assert not activations(found["all-reduce"], run)
  # Every gradient crosses the network once. Beyond them only sums: the loss
  # and its weight, and weights of the batch.
  sizes = [int(np.prod(shape)) for shape in found["all-reduce"]]
  parameters = sum(x.size for x in jax.tree.leaves(run.abstract.params))
  assert parameters <= sum(sizes) <= parameters + 8
  assert counts(text)["all-reduce"] <= 4


def test_accumulating_gradients_exchanges_nothing_else(data):
  run = make_run(data, fsdp=1, parts=5)
  found = collectives(compile_train_step(run))
  assert set(found) == {"all-reduce"}
  assert not activations(found["all-reduce"], run)


@pytest.mark.parametrize("fsdp", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_fsdp_step_gathers_parameters_and_nothing_else(data, fsdp):
  run = make_run(data, fsdp)
  text = compile_train_step(run)
  found = collectives(text)
  assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
  for kind, arrays in found.items():
    assert not activations(arrays, run), kind
  # Each cut parameter is fetched in the forward pass, those of layers again in
  # the backward pass; never more often.
  cut = [
    parallel.path_name(path)
    for path, sharding in jax.tree.leaves_with_path(run.shardings.params)
    if not sharding.is_fully_replicated
  ]
  stacked = sum(map(parallel.is_stacked, cut))
  assert len(cut) <= counts(text)["all-gather"] <= len(cut) + stacked


@pytest.mark.parametrize("fsdp", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_evaluation_and_embedding_exchange_no_activations(data, fsdp):
  run = make_run(data, fsdp)
  batch = abstract_batch(run)
  step = evaluate.make_eval_step(run.task.evaluate, run.mesh)
  embed = jax.jit(
    parallel.with_mesh(run.mesh, run.task.embed),
    out_shardings=parallel.batch_sharding(run.mesh),
  )
  params = run.abstract.params
  for function, *arguments in ((step, params, {}), (embed, params)):
    text = text_of(function, *arguments, batch)
    for kind, arrays in collectives(text).items():
      assert kind in ("all-gather", "all-reduce"), kind
      assert not activations(arrays, run), kind
      assert kind != "all-gather" or fsdp > 1


def take_by_rows(x, index):
  """What take_tokens must not be; the result is the same."""
  return x[jnp.arange(x.shape[0])[:, None], index]


@pytest.mark.slow
def test_a_gather_by_rows_would_be_caught(data, monkeypatch):
  monkeypatch.setattr(tokens, "take_tokens", take_by_rows)
  run = make_run(data, fsdp=1)
  found = collectives(compile_train_step(run))
  exchanged = [a for arrays in found.values() for a in arrays]
  assert activations(exchanged, run)


# Our own operations, one by one, on a batch of 16.


def masks(kind, decoder):
  spec = masking.MaskSpec(GRID, PATCH, kind=kind, ratio=0.75, decoder=decoder)
  return lambda shift_px, panel: masking.make_mask(
    jax.random.key(0), shift_px, panel, spec
  )


def slope(function, *which):
  """Gradient of the sum of the result."""
  return jax.grad(lambda *args: function(*args).sum(), which or (0,))


def f32(*shape):
  return jax.ShapeDtypeStruct((16, *shape), jnp.float32)


def i32(*shape):
  return jax.ShapeDtypeStruct((16, *shape), jnp.int32)


CLIPS = augment.ClipSpec(8, 1, (32, 32), (40, 40), repeats=2)
RECORDS = {
  "panels": jax.ShapeDtypeStruct((16, 1, 40, 84, 3), jnp.uint8),
  "frame_panel": i32(12),
  "frame_box": f32(12, 4),
  "time": f32(12),
  "frame_level0_xy": f32(12, 2),
  "frame_mask": f32(12),
}
QKV = (f32(300, 2, 16),) * 3
KERNELS = {
  kernel: lambda q, k, v, kernel=kernel: attention.attend(q, k, v, kernel)
  for kernel in ("chunked", "xla")
}
OPERATIONS = {
  "patchify": (lambda x: tokens.patchify(x, PATCH), f32(8, 32, 32, 3)),
  "patchify for TPU": (
    lambda x: tokens.patchify_in_lanes(x, PATCH),
    f32(8, 32, 32, 3),
  ),
  "unpatchify": (lambda x: tokens.unpatchify(x, PATCH, GRID), f32(64, 384)),
  "take_tokens": (tokens.take_tokens, f32(64, 32), i32(8)),
  "take_tokens backward": (slope(tokens.take_tokens), f32(64, 32), i32(8)),
  "pool_features": (tokens.pool_features, f32(64, 32)),
  **{f"attention {name}": (kernel, *QKV) for name, kernel in KERNELS.items()},
  **{
    f"attention {name} backward": (slope(kernel, 0, 1, 2), *QKV)
    for name, kernel in KERNELS.items()
  },
  **{
    f"mask {kind} {decoder}": (masks(kind, decoder), f32(8, 2), i32(8))
    for kind, decoder in itertools.product(masking.KINDS, masking.DECODERS)
  },
  "random clips": (
    lambda batch: augment.sample_clips(batch, jax.random.key(0), CLIPS),
    RECORDS,
  ),
  "middle clips": (lambda batch: augment.centre_clips(batch, CLIPS), RECORDS),
  "target": (losses.normalised_patch_target, f32(8, 384)),
  "loss": (losses.masked_mse, f32(8, 384), f32(8, 384), f32(8)),
}
# The compiled program judges these alone. Explicit axes have no rule for a
# reshape that splits several axes at once (`patchify`) and none for a table
# looked up by two nested axes, one of them sharded (`sample_clips`).
NOT_UNDER_EXPLICIT = ("patchify", "patchify for TPU", "unpatchify")
NOT_UNDER_EXPLICIT += ("random clips",)


def compiled_alone(function, arguments):
  mesh = parallel.make_mesh()
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=parallel.batch_sharding(mesh)
    ),
    arguments,
  )
  return text_of(jax.jit(parallel.with_mesh(mesh, function)), *arguments)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_of_ours_talks_to_other_devices(name):
  function, *arguments = OPERATIONS[name]
  found = collectives(compiled_alone(function, arguments))
  if name == "loss":
    # The sum and the weight, over all devices.
    assert found.pop("all-reduce") == [(), ()]
  assert not found


def test_an_operation_that_talks_is_seen():
  text = compiled_alone(take_by_rows, [f32(64, 32), i32(8)])
  assert counts(text).total() > 0


def traced_explicitly(monkeypatch, function, arguments):
  """Shardings of the results, as JAX's types have them; raises in doubt."""
  mesh = jax.make_mesh((8,), ("data",), (AxisType.Explicit,))

  def sharded(x):
    spec = PartitionSpec("data", *[None] * (len(x.shape) - 1))
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  split = jax.random.split

  def split_over_batch(key, num=2):
    # Keys of a batch are made whole on every device, and each takes its own.
    # The compiler sees to that; here it must be said.
    keys = split(key, num)
    if keys.shape[0] != 16:
      return keys
    return jax.reshard(keys, PartitionSpec("data"))

  monkeypatch.setattr(jax.random, "split", split_over_batch)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    results = jax.eval_shape(function, *jax.tree.map(sharded, arguments))
  return [x.sharding.spec for x in jax.tree.leaves(results)]


@pytest.mark.parametrize(
  "name", [name for name in OPERATIONS if name not in NOT_UNDER_EXPLICIT]
)
def test_shardings_are_never_in_doubt(monkeypatch, name):
  function, *arguments = OPERATIONS[name]
  specs = traced_explicitly(monkeypatch, function, arguments)
  wanted = "data" if name != "loss" else None
  assert all(next(iter(spec), None) == wanted for spec in specs)


def test_a_sharding_in_doubt_raises(monkeypatch):
  with pytest.raises(Exception, match="could not be resolved unambiguously"):
    traced_explicitly(monkeypatch, take_by_rows, [f32(64, 32), i32(8)])


# One device and many: the same numbers.


def gradients(data, fsdp, devices):
  run = make_run(data, fsdp, devices)
  return small_run.loss_and_gradients(run, progress=0.0)


@pytest.fixture(scope="module")
def alone(data):
  return gradients(data, 1, 1)


@pytest.mark.parametrize(
  "fsdp",
  [
    1,
    pytest.param(2, marks=pytest.mark.slow),
    pytest.param(4, marks=pytest.mark.slow),
    8,
  ],
)
def test_loss_and_gradients_do_not_depend_on_the_devices(data, alone, fsdp):
  value, grads = gradients(data, fsdp, 8)
  # Float32 sums in another order.
  assert value == pytest.approx(alone[0], rel=1e-6)
  for found, wanted in zip(
    jax.tree.leaves(grads), jax.tree.leaves(alone[1]), strict=True
  ):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6 * scale)


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_four_to_one(
  data, tmp_path, monkeypatch
):
  def run(workdir, devices, fsdp, stop=None):
    config = small_run.small_config(workdir, data)
    config.mesh.fsdp = fsdp
    with monkeypatch.context() as patch:
      devices = jax.devices()[:devices]
      patch.setattr(jax, "devices", lambda *_: devices)
      if not stop:
        return train.run(config)
      stopping = small_run.StopAt(stop)
      patch.setattr(launch, "Preemption", lambda: stopping)
      with pytest.raises(launch.Stopped):
        train.run(config)

  moved = tmp_path / "moved"
  run(moved, 8, fsdp=4, stop=2)
  run(moved, 4, fsdp=4, stop=2)
  assert (moved / "checkpoints" / "4").is_dir()
  state, wanted = run(moved, 1, 1), run(tmp_path / "still", 1, 1)
  assert int(state.step) == int(wanted.step) == 6
  # Six Adam steps of 1e-3 on gradients that differ in the last digits.
  for a, b in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(wanted.params), strict=True
  ):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=2e-5)
