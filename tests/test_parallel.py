import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from wsiseq_jax import parallel


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_mesh_axes():
  mesh = parallel.make_mesh(4)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
  assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
  with pytest.raises(ValueError, match="config.mesh.fsdp = 3.*8 devices"):
    parallel.make_mesh(3)


def test_batch_must_divide_over_devices():
  mesh = parallel.make_mesh()
  parallel.check_batch_size(16, mesh)
  with pytest.raises(ValueError, match="config.data.batch_size = 12"):
    parallel.check_batch_size(12, mesh)


@pytest.mark.parametrize(
  ("name", "dims", "fsdp", "spec"),
  [
    ("a/kernel", (512, 512), 4, (None, "fsdp")),  # equal axes: the last
    ("a/kernel", (1024, 512), 4, ("fsdp",)),  # the largest
    ("a/kernel", (511, 512), 4, ()),  # 261,632 < 2^18 elements
    ("a/kernel", (513, 514), 4, ()),  # large, but 4 divides neither
    ("a/kernel", (1001, 512), 4, (None, "fsdp")),  # 4 does not divide 1001
    ("a/blocks/kernel", (4096, 8, 16), 4, (None, None, "fsdp")),  # not layers
    ("a/blockss/kernel", (4096, 8, 16), 4, ("fsdp",)),
    ("a/kernel", (512, 512), 1, ()),
  ],
)
def test_the_one_rule(name, dims, fsdp, spec):
  assert parallel.fsdp_spec(name, dims, fsdp) == PartitionSpec(*spec)


def test_overrides_first_match_wins():
  mesh = parallel.make_mesh(2)
  params = {"a": {"kernel": shape(8, 6), "bias": shape(6)}}
  rules = (("a/kernel", ("data", None)), ("kernel|bias", ("fsdp",)))
  placed = parallel.param_shardings(params, mesh, rules)
  assert placed["a"]["kernel"].spec == PartitionSpec("data", None)
  assert placed["a"]["bias"].spec == PartitionSpec("fsdp")


def test_override_that_matches_nothing_is_an_error():
  mesh = parallel.make_mesh(2)
  with pytest.raises(ValueError, match=r"no parameter is left.*'kernal'.*a"):
    parallel.param_shardings({"a": shape(8)}, mesh, (("kernal", ("fsdp",)),))


def test_override_that_does_not_fit_is_an_error():
  mesh = parallel.make_mesh(2)
  with pytest.raises(ValueError, match="fsdp = 2 does not divide 7"):
    parallel.param_shardings({"a": shape(7)}, mesh, (("a", ("fsdp",)),))
  with pytest.raises(ValueError, match="more axes"):
    parallel.param_shardings({"a": shape(8)}, mesh, (("a", (None, "fsdp")),))


def test_optimiser_slots_lie_like_their_parameters():
  mesh = parallel.make_mesh(2)
  params = {"a": {"w": shape(512, 1024)}, "b": {"w": shape(1024, 512)}}
  shardings = parallel.param_shardings(params, mesh)
  slots = ({"mu": params, "count": shape()}, shape(512, 1024))
  placed = parallel.shardings_like(slots, params, shardings, mesh)
  assert placed[0]["mu"]["a"]["w"].spec == PartitionSpec(None, "fsdp")
  assert placed[0]["mu"]["b"]["w"].spec == PartitionSpec("fsdp")
  assert placed[0]["count"].spec == PartitionSpec()
  # The shape alone makes no slot of it.
  assert placed[1].spec == PartitionSpec()


def test_one_process_holds_every_row():
  mesh = parallel.make_mesh(4)
  np.testing.assert_array_equal(parallel.local_rows(mesh, 16), np.arange(16))


def test_prefetch_keeps_order_and_values():
  mesh = parallel.make_mesh()
  batches = [{"x": np.full((8, 2), i, np.float32)} for i in range(5)]
  got = list(parallel.prefetch(iter(batches), mesh))
  assert [int(b["x"][0, 0]) for b in got] == [0, 1, 2, 3, 4]
  assert got[0]["x"].sharding.spec == PartitionSpec(("data", "fsdp"))
  assert parallel.fetch(got[3])["x"].shape == (8, 2)
