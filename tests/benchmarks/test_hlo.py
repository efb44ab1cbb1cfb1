"""Programs as text: parsed, and their work added up by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from benchmarks import hlo, hlo_costs
from wsiseq_jax import parallel

# Runs its body 4 times (0 to 8 by 2): a product of 8 x 16 by 16 x 16, an update
# of one of 8 rows, and a kernel. `%table` and the state lie in main memory, the
# product's result in memory space 1.
LOOP = """HloModule step, is_scheduled=true

%fused (p0: f32[8,8,128], p1: s32[], p2: f32[8,128]) -> f32[8,8,128] {
  %p0 = f32[8,8,128]{2,1,0:T(8,128)} parameter(0)
  %p2 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %row = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%p2)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %update = f32[8,8,128]{2,1,0} dynamic-update-slice(%p0, %row, %p1, %zero)
}

%body (state: (s32[], f32[8,8,128], f32[16,16])) -> (s32[], f32[8,8,128]) {
  %state = (s32[], f32[8,8,128]{2,1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %table = f32[8,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %weight = f32[16,16]{1,0:T(8,128)} get-tuple-element(%state), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %left = f32[8,16]{1,0:T(8,128)S(1)} broadcast(%two), dimensions={}
  %product = f32[8,16]{1,0:T(8,128)S(1)} dot(%left, %weight), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={high,high}
  %new = f32[8,128]{1,0:T(8,128)} custom-call(%product), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/my_kernel/pallas_call"}
  %updated = f32[8,8,128]{2,1,0:T(8,128)} fusion(%table, %i, %new), kind=kLoop, calls=%fused
  %sum = f32[8,128]{1,0:T(8,128)} all-reduce(%new), to_apply=%add
  ROOT %out = (s32[], f32[8,8,128]{2,1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)}) tuple(%next, %updated, %weight)
}

%condition (state.1: (s32[], f32[8,8,128], f32[16,16])) -> pred[] {
  %limit = s32[] constant(8)
  %state.1 = (s32[], f32[8,8,128]{2,1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (table: f32[8,8,128], weight: f32[16,16]) -> f32[8,8,128] {
  %table.2 = f32[8,8,128]{2,1,0:T(8,128)} parameter(0)
  %weight.2 = f32[16,16]{1,0:T(8,128)} parameter(1)
  %start = s32[] constant(0)
  %begin = (s32[], f32[8,8,128]{2,1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)}) tuple(%start, %table.2, %weight.2)
  %loop = (s32[], f32[8,8,128]{2,1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)}) while(%begin), condition=%condition, body=%body
  ROOT %result = f32[8,8,128]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_shape_with_padding():
  (shape,) = hlo.parse_shapes("bf16[3,5,100]{1,2,0:T(8,128)(2,1)}")
  # Axis 1 is minor: 5 becomes 128; axis 2 stands on sublanes: 100 becomes 104.
  assert shape.stored_elements == 3 * 104 * 128
  assert shape.stored_bytes == 2 * 3 * 104 * 128
  assert shape.elements == 1500


def test_work_of_a_loop_by_hand():
  costs = hlo_costs.costs(LOOP)
  trips = 4
  assert costs.matrix_flops == trips * 2 * 8 * 16 * 16
  assert costs.mxu_flops == 3 * costs.matrix_flops
  row = 8 * 128 * 4
  # Read: the weight (16 x 16, stored as 16 x 128). Written by the kernel: a
  # row. By the fusion: a row read and a row written, not the table; and the
  # counter read. All-reduce: a row read and one written. The add of counters
  # reads two integers and writes one; the broadcast reads one.
  weight = 16 * 128 * 4
  expected = weight + row + (2 * row + 4) + 2 * row + 3 * 4 + 4
  assert costs.hbm_bytes == trips * expected
  assert costs.collectives == {"all-reduce": (trips, trips * row)}
  (kernel,) = costs.kernels
  assert (kernel.times, kernel.hbm_bytes) == (trips, row)
  assert kernel.name == "jit(f)/my_kernel/pallas_call"
  assert kernel.operands[0].sizes == (8, 16)


def test_loop_without_constant_limit_is_an_error():
  text = LOOP.replace("constant(8)", "rng()")
  with pytest.raises(ValueError, match="loop loop: cannot read how often"):
    hlo_costs.costs(text)


def test_collective_in_a_fusion_is_counted():
  text = LOOP.replace(
    "%zero = s32[] constant(0)",
    "%zero = s32[] constant(0)\n"
    "  %g = f32[16,128]{1,0} all-gather(%p2), dimensions={0}",
  )
  collectives = hlo_costs.costs(text).collectives
  assert collectives["all-gather"] == (4, 4 * 16 * 128 * 4)


def test_collective_beside_other_work_is_counted_once():
  """The compiler writes it into the fusions that start, run and end it."""
  gather = "%g = f32[16,128]{1,0} all-gather(%p2), channel_id=7, dimensions={0}"
  text = LOOP.replace(
    "%zero = s32[] constant(0)", f"%zero = s32[] constant(0)\n  {gather}"
  )
  fused = text[text.index("%fused") : text.index("%body")]
  call = "  %updated = f32[8,8,128]{2,1,0:T(8,128)} fusion(%table, %i, %new), "
  call += "kind=kLoop, calls=%fused\n"
  assert call in text
  ends = {"%fused": "%ending", "%updated": "%ended"}
  for part in (fused, call):
    second = part
    for old, new in ends.items():
      second = second.replace(old, new)
    text = text.replace(part, part + second)
  collectives = hlo_costs.costs(text).collectives
  assert collectives["all-gather"] == (4, 4 * 16 * 128 * 4)
  # Another channel is another collective.
  two = text.replace("channel_id=7", "channel_id=8", 1)
  assert hlo_costs.costs(two).collectives["all-gather"][0] == 8


def test_batched_product_as_convolution():
  """A window of 12 with dilation 12 meets one element: heads are a batch."""
  text = """
ENTRY %main (a: bf16[8,12,160,64], b: bf16[8,12,160,64]) -> bf16[8,12,160,160] {
  %a = bf16[8,12,160,64]{3,2,1,0} parameter(0)
  %b = bf16[8,12,160,64]{3,2,1,0} parameter(1)
  ROOT %c = bf16[8,12,160,160]{3,2,1,0} convolution(%a, %b), window={size=8x12 stride=7x11 lhs_dilate=8x12}, dim_labels=01bf_01oi->01bf
}
"""  # noqa: E501
  costs = hlo_costs.costs(text)
  assert costs.matrix_flops == 2 * 8 * 12 * 160 * 160 * 64
  assert costs.hbm_bytes == 2 * 8 * 12 * (2 * 160 * 64 + 160 * 160)


def test_real_scan_counts_every_layer():
  def run(x, weights):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

  x, w = jnp.zeros((4, 8)), jnp.zeros((5, 8, 8))
  compiled = jax.jit(run).lower(x, w).compile()
  assert hlo_costs.costs(compiled.as_text()).matrix_flops == 5 * 2 * 4 * 8 * 8


def test_without_loops_flops_agree_with_the_compiler():
  def run(x, w):
    return (x @ w) @ w.T

  shape = jnp.zeros((32, 64)), jnp.zeros((64, 128))
  compiled = jax.jit(run).lower(*shape).compile()
  ours = hlo_costs.costs(compiled.as_text()).matrix_flops
  assert ours == compiled.cost_analysis()["flops"]


def test_count_collectives_of_a_sharded_program():
  mesh = parallel.make_mesh()
  rows = parallel.batch_sharding(mesh)
  x = jax.device_put(np.ones((8, 4), np.float32), rows)

  def spread(x):
    total = jax.lax.psum(x.sum(), parallel.BATCH_AXES)
    everything = jax.lax.all_gather(x, parallel.BATCH_AXES, tiled=True)
    return x * total + everything.sum()

  spec = PartitionSpec(parallel.BATCH_AXES)
  mapped = jax.shard_map(spread, mesh=mesh, in_specs=spec, out_specs=spec)
  text = jax.jit(mapped).lower(x).compile().as_text()
  assert hlo.count_collectives(text) == {"all-gather": 1, "all-reduce": 1}
  alone = jax.jit(lambda x: x * 2).lower(x).compile().as_text()
  assert hlo.count_collectives(alone) == {}


def test_kernel_without_a_formula_is_an_error():
  shape = hlo.ArrayShape("bf16", (2, 10, 64))
  kernel = hlo_costs.Kernel("jit(f)/attention_forward/pallas_call", 3, 0.0,
                            (shape,) * 3)  # fmt: skip
  assert hlo_costs.kernel_flops(kernel) == 3 * 2 * 2 * (2 * 10 * 10 * 64)
  other = dataclasses.replace(kernel, name="jit(f)/other/pallas_call")
  with pytest.raises(ValueError, match="no formula for its FLOPs"):
    hlo_costs.kernel_flops(other)
