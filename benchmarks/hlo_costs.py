"""What a compiled program computes, reads, writes and sends.

Counted from its text (`hlo.py`), with loops as often as they run, because the
compiler's own summary, `compiled.cost_analysis()`, misleads in three ways: the
body of a loop counts once (our blocks are a loop over layers); values that the
compiler keeps on the chip count like those in main memory; and a custom kernel
counts as nothing.

Bytes are counted where instructions meet main memory: what each reads plus what
it writes, with a fusion as one instruction. An operand of which a fusion reads
only slices counts as those slices, a buffer updated in place as the update.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from benchmarks import hlo
from benchmarks.hlo import ArrayShape, Computation, Instruction, Program
from wsiseq_jax.models import attention_tpu
from wsiseq_jax.tpu import chips

# Instructions that only name, group or await what others compute.
_FREE = frozenset(
  (
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
  )
)
# Compiler bookkeeping that looks like calls of kernels.
_FREE_TARGETS = (
  "AllocateBuffer",
  "AssumeGatherIndicesInBound",
  "ConcatBitcast",
  "GatherScatterIndicesBitpacked",
  "Sharding",
)
_SLICES = ("dynamic-slice", "gather", "slice")
# bfloat16 products that make up one of higher precision.
_PASSES = {"default": 1, "high": 3, "highest": 6}
# A Pallas kernel for TPU.
KERNEL_TARGET = "tpu_custom_call"


def hbm_bytes(
  program: Program, computation: Computation, item: Instruction
) -> float:
  """What one run of an instruction reads from and writes to main memory."""
  opcode = item.opcode
  if opcode in _FREE or opcode.endswith("-done"):
    return 0.0
  if opcode in ("while", "call", "conditional", "async-start"):
    return 0.0
  if opcode == "custom-call" and item.target in _FREE_TARGETS:
    return 0.0
  if opcode == "copy-start":
    return math.fsum(shape.hbm_bytes for shape in item.shapes[:2])
  if opcode == "slice-start":
    # ((operand), slice, context): as much is read as is written.
    written, read = item.shapes[1], item.shapes[0]
    source = dataclasses.replace(written, space=read.space)
    return written.hbm_bytes + source.hbm_bytes
  if opcode == "fusion":
    return _fusion_bytes(program, computation, item)
  sources = program.operand_shapes(computation, item)
  if opcode in _SLICES and sources:
    source = dataclasses.replace(item.shapes[0], space=sources[0].space)
    return item.shapes[0].hbm_bytes + source.hbm_bytes
  if opcode == "dynamic-update-slice":
    update = sources[1]
    target = dataclasses.replace(update, space=item.shapes[0].space)
    return update.hbm_bytes + target.hbm_bytes
  results = item.shapes
  if item.collective and opcode.endswith("-start"):
    results = results[len(sources) : 2 * len(sources)] or results
  return math.fsum(shape.hbm_bytes for shape in (*results, *sources))


def _fusion_bytes(
  program: Program, computation: Computation, item: Instruction
) -> float:
  inner = program.computations[item.called("calls")]
  root = inner.root
  results = (
    [inner.instructions[name] for name in root.operands]
    if root.opcode == "tuple"
    else [root]
  )
  total = 0.0
  for result, shape in zip(results, item.shapes, strict=False):
    update = _update_of(program, inner, result)
    if update is not None:
      shape = dataclasses.replace(update, space=shape.space)
    total += shape.hbm_bytes
  for number, name in enumerate(item.operands):
    source = computation.instructions[name].shapes
    if len(source) != 1 or source[0].space:
      continue
    read = _read_elements(program, inner, number)
    part = min(read / max(math.prod(source[0].sizes), 1), 1.0)
    total += part * source[0].hbm_bytes
  return total


def _update_of(
  program: Program, inner: Computation, result: Instruction
) -> ArrayShape | None:
  """What a fusion writes into a buffer that it updates in place."""
  while result.opcode == "bitcast":
    result = inner.instructions[result.operands[0]]
  if result.opcode == "dynamic-update-slice":
    return inner.instructions[result.operands[1]].shapes[0]
  if result.opcode == "fusion":
    nested = program.computations[result.called("calls")]
    return _update_of(program, nested, nested.root)
  return None


def _read_elements(program: Program, inner: Computation, number: int) -> int:
  """Elements that a fusion reads of one of its operands."""
  parameter = inner.parameters[number]
  whole = math.prod(parameter.shapes[0].sizes)
  total, names = 0, [parameter.name]
  while names:
    name = names.pop()
    for user in inner.users[name]:
      if user.opcode == "bitcast":
        names.append(user.name)
      elif user.opcode in _SLICES and user.operands[0] == name:
        total += math.prod(user.shapes[0].sizes)
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        continue  # updated in place: nothing is read
      elif user.opcode == "fusion":
        nested = program.computations[user.called("calls")]
        total += sum(
          _read_elements(program, nested, i)
          for i, operand in enumerate(user.operands)
          if operand == name
        )
      else:
        return whole
  return min(total, whole)


def _collectives(
  program: Program, computation: Computation, item: Instruction
) -> Iterator[tuple[str, str, float]]:
  """Name, kind and bytes of the collectives in an instruction, fused or not.

  A collective that runs beside other work is written into several fusions, its
  start, the work, and its end: it goes by its channel and its size, which they
  share. (Collectives that the compiler has put together share a channel only.)
  """
  if item.collective:
    name = f"{computation.name}/{item.name}"
    yield name, item.collective, collective_bytes(program, computation, item)
  elif item.opcode == "fusion":
    inner = program.computations[item.called("calls")]
    for fused in inner.instructions.values():
      channel = re.search(r"channel_id=(\d+)", fused.attributes)
      for name, kind, sent in _collectives(program, inner, fused):
        yield f"{channel.group(1)}/{sent}" if channel else name, kind, sent


def collective_bytes(
  program: Program, computation: Computation, item: Instruction
) -> float:
  """Bytes of a collective's operands or results, whichever are more."""
  given = math.fsum(
    shape.elements * shape.item_bytes
    for shape in program.operand_shapes(computation, item)
  )
  made = math.fsum(shape.elements * shape.item_bytes for shape in item.shapes)
  # A start has its operands among its results.
  return max(given, made - given if item.opcode.endswith("-start") else made)


def matrix_flops(
  program: Program,
  computation: Computation,
  item: Instruction,
  count_passes: bool = False,
) -> int:
  """FLOPs of one run of an instruction in matrix products, fused or not."""
  if item.opcode == "fusion":
    inner = program.computations[item.called("calls")]
    return sum(
      matrix_flops(program, inner, i, count_passes)
      for i in inner.instructions.values()
    )
  if item.opcode not in ("dot", "convolution"):
    return 0
  passes = 1
  if count_passes:
    precision = re.search(r"operand_precision=\{(\w+)", item.attributes)
    passes = _PASSES[precision.group(1)] if precision else 1
  return passes * _product_flops(program, computation, item)


def _product_flops(
  program: Program, computation: Computation, item: Instruction
) -> int:
  if item.opcode == "dot":
    left = computation.instructions[item.operands[0]].shapes[0].sizes
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", item.attributes)
    contracted = hlo.integers(axes.group(1)) if axes else ()
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(item.shapes[0].sizes) * depth
  left, right = (
    computation.instructions[name].shapes[0].sizes for name in item.operands[:2]
  )
  return _convolution_flops(item, left, right)


def _convolution_flops(
  item: Instruction, left: Sequence[int], right: Sequence[int]
) -> int:
  """Multiplications by padding or between dilated elements are not counted.

  XLA for TPU writes batched matrix products as convolutions, with windows that
  meet one true element for each output: counting whole windows would multiply
  the work by the number of heads.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.attributes)
  lhs, rhs, out = labels.groups()
  result = item.shapes[0].sizes
  window = dict(
    part.split("=", 1)
    for part in re.search(r"window=\{([^}]*)\}", item.attributes)
    .group(1)
    .split()
  ) if "window={" in item.attributes else {}  # fmt: skip
  spatial = sorted(c for c in lhs if c.isdigit())

  def of(key: str, default: str) -> list[str]:
    return window[key].split("x") if key in window else [default] * len(spatial)

  strides, dilations = of("stride", "1"), of("lhs_dilate", "1")
  kernel_dilations, pads = of("rhs_dilate", "1"), of("pad", "0_0")
  pairs = 1
  for i, axis in enumerate(spatial):
    pairs *= _valid_pairs(
      left[lhs.index(axis)],
      right[rhs.index(axis)],
      result[out.index(axis)],
      int(strides[i]),
      int(dilations[i]),
      int(kernel_dilations[i]),
      int(pads[i].split("_")[0]),
    )
  # `f` of the left operand over the groups is `i` of the right one.
  depth = right[rhs.index("i")]
  outer = result[out.index("b")] * result[out.index("f")]
  return 2 * outer * depth * pairs


@functools.lru_cache(maxsize=4096)
def _valid_pairs(
  size: int,
  kernel: int,
  outputs: int,
  stride: int,
  dilation: int,
  kernel_dilation: int,
  pad: int,
) -> int:
  """Pairs of output and kernel position, along an axis, that meet an element.

  Example:
    >>> _valid_pairs(5, 3, 5, 1, 1, 1, 1)  # both ends lose one of 15
    13
  """
  count = 0
  for output in range(outputs):
    for k in range(kernel):
      place = output * stride + k * kernel_dilation - pad
      if place % dilation == 0 and 0 <= place // dilation < size:
        count += 1
  return count


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A custom kernel of a program.

  Attributes:
    name: Its name in the source.
    times: How often it runs.
    hbm_bytes: Operands and results of one run that lie in main memory.
    operands: Shapes of its operands.
  """

  name: str
  times: int
  hbm_bytes: float
  operands: tuple[ArrayShape, ...]


@dataclasses.dataclass(frozen=True)
class Costs:
  """What one run of a program takes, on one device.

  Attributes:
    matrix_flops: FLOPs of matrix products, without custom kernels.
    mxu_flops: The same in bfloat16 passes through a matrix unit: a product
      asked for with `high` precision takes 3, with `highest` 6.
    hbm_bytes: Bytes to and from main memory; custom kernels with their
      operands and results once.
    collectives: {kind: (times run, bytes)}, of operands or results, whichever
      are more.
    kernels: The custom kernels.
  """

  matrix_flops: int
  mxu_flops: int
  hbm_bytes: float
  collectives: Mapping[str, tuple[int, float]]
  kernels: tuple[Kernel, ...]


def costs(text: str) -> Costs:
  """Counts the work of a compiled program, loops as often as they run.

  Args:
    text: `compiled.as_text()`.

  Returns:
    The counts.

  Raises:
    ValueError: A loop whose number of runs cannot be read.
  """
  program = Program(text)
  flops, mxu, moved = 0, 0, 0.0
  once: dict[tuple[str, str], tuple[int, float]] = {}
  kernels = []
  for computation, item, times in program.walk():
    flops += times * matrix_flops(program, computation, item)
    mxu += times * matrix_flops(program, computation, item, count_passes=True)
    size = hbm_bytes(program, computation, item)
    moved += times * size
    for name, kind, sent in _collectives(program, computation, item):
      before = once.get((kind, name), (0, 0.0))
      once[kind, name] = max(before, (times, sent))
    if item.opcode == "custom-call" and item.target == KERNEL_TARGET:
      operands = program.operand_shapes(computation, item)
      kernels.append(Kernel(_kernel_name(item), times, size, operands))
  collectives: dict[str, tuple[int, float]] = {}
  for (kind, _), (times, sent) in once.items():
    count, total = collectives.get(kind, (0, 0.0))
    collectives[kind] = (count + times, total + times * sent)
  return Costs(flops, mxu, moved, collectives, tuple(kernels))


def _kernel_name(item: Instruction) -> str:
  match = re.search(r'op_name="([^"]*)"', item.attributes)
  return match.group(1) if match else item.name


def kernel_flops(kernel: Kernel) -> int:
  """FLOPs of all runs of a kernel, by hand."""
  for name, one in attention_tpu.KERNEL_FLOPS.items():
    if name in kernel.name.split("/"):
      query, key = kernel.operands[:2]
      b, n, width = query.sizes
      return kernel.times * one(b, n, key.sizes[1], width)
  raise ValueError(f"kernel {kernel.name!r}: no formula for its FLOPs")


def roofline(report, compiled) -> dict:
  """What the program's text counts, and the slowest of three bounds.

      seconds >= max(FLOPs / peak, bytes / memory rate, bytes sent / link rate)

  The compiler's own summary counts a loop over layers once, hence the text.
  """
  chip = chips.find(report.topology)
  found = costs(compiled.as_text())
  flops = found.mxu_flops + sum(map(kernel_flops, found.kernels))
  # An all-reduce is a reduce-scatter and an all-gather: all leaves twice.
  sent = sum(
    size * (2 if kind == "all-reduce" else 1)
    for kind, (_, size) in found.collectives.items()
  )
  bounds = {
    "compute": flops / chip.flops,
    "memory": found.hbm_bytes / chip.hbm_rate,
    "network": sent / chip.ici_rate,
  }
  limit = max(bounds, key=bounds.get)
  return {
    "flops": flops,
    "hbm_bytes": found.hbm_bytes,
    "collectives": found.collectives,
    **{f"{name}_seconds": value for name, value in bounds.items()},
    "intensity": flops / found.hbm_bytes,
    "limit": limit,
    "step_seconds": bounds[limit],
    "clips_per_second": report.clips * report.chips / bounds[limit],
  }
