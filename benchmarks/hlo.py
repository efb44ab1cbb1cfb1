"""The text of a compiled program, taken apart.

`compiled.as_text()` is the program after all optimisation, and says more than
any summary of it:

- a loop's condition holds its trip count;
- a shape says in which memory it lies: `bf16[8,160,768]{2,1,0:T(8,128)S(1)}`
  is in memory space 1, the vector memory beside the arithmetic units. Without
  `S(...)` it is in main memory (HBM). The tile `T(8,128)` says that the last
  two axes are padded to multiples of 8 and 128, and the padding is stored too;
- operands and results of a custom kernel are shapes like any others.

The text of a program for a sharded mesh is that of one device, so all numbers
are per device. `hlo_costs.py` adds them up.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_OPCODE = re.compile(r"^\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
  """One array of a program.

  Attributes:
    dtype: Element type, `bf16`.
    sizes: Its axes.
    layout: Axes from minor to major; empty for the default (last is minor).
    tile: What the minor axes are padded to, minor last; empty for no padding.
    space: Memory space; 0 is main memory.
  """

  dtype: str
  sizes: tuple[int, ...]
  layout: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def item_bytes(self) -> float:
    """Bytes of an element."""
    if self.dtype == "pred":
      return 1.0
    bits = _BITS.search(self.dtype)
    return int(bits.group()) / 8 if bits else 0.0

  @property
  def elements(self) -> int:
    """Elements without padding."""
    return math.prod(self.sizes)

  @property
  def stored_elements(self) -> int:
    """Elements with the padding of the tile."""
    order = self.layout or tuple(reversed(range(len(self.sizes))))
    sizes = [self.sizes[axis] for axis in order]
    for i, tile in enumerate(reversed(self.tile)):
      if i < len(sizes):
        sizes[i] = -(-sizes[i] // tile) * tile
    return math.prod(sizes)

  @property
  def stored_bytes(self) -> float:
    """Bytes with the padding of the tile."""
    return self.stored_elements * self.item_bytes

  @property
  def hbm_bytes(self) -> float:
    """Bytes in main memory: none if the array lies elsewhere."""
    return self.stored_bytes if self.space == 0 else 0.0


def parse_shapes(text: str) -> tuple[ArrayShape, ...]:
  """All arrays named in a shape, in order; a tuple has several.

  Example:
    >>> shape, = parse_shapes("bf16[8,160,64]{2,1,0:T(8,128)(2,1)S(1)}")
    >>> shape.sizes, shape.space, shape.stored_elements
    ((8, 160, 64), 1, 163840)
    >>> [s.dtype for s in parse_shapes("(f32[3]{0}, u32[])")]
    ['f32', 'u32']
  """
  shapes = []
  for dtype, sizes, layout in _ARRAY.findall(text):
    order, _, rest = layout.partition(":")
    tile = re.search(r"T\(([\d,]*)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    shapes.append(
      ArrayShape(
        dtype,
        integers(sizes),
        integers(order),
        integers(tile.group(1)) if tile else (),
        int(space.group(1)) if space else 0,
      )
    )
  return tuple(shapes)


def integers(text: str) -> tuple[int, ...]:
  """Numbers with commas between them: `2,1,0`."""
  return tuple(int(v) for v in text.split(",") if v.strip().isdigit())


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: Its name.
    opcode: What it does: `fusion`, `dot`, `all-reduce` …
    shapes: Its results.
    operands: Names of its operands.
    arguments: The text between the brackets, for constants and parameters.
    attributes: The text behind them.
    is_root: Whether it is the result of its computation.
  """

  name: str
  opcode: str
  shapes: tuple[ArrayShape, ...]
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  def called(self, role: str) -> str | None:
    """The computation named by an attribute: `calls`, `body`, `condition`."""
    match = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
    return match.group(1) if match else None

  @property
  def collective(self) -> str | None:
    """The kind of collective this starts, if it is one."""
    kind = self.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None

  @property
  def target(self) -> str:
    """What a custom call calls."""
    match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
    return match.group(1) if match else ""


def _closing(text: str, start: int) -> int:
  """Index behind the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if depth == 0:
      return i + 1
  raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _parse_instruction(line: str) -> Instruction | None:
  match = _INSTRUCTION.match(line)
  if not match:
    return None
  root, name, rest = match.groups()
  end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
  opcode = _OPCODE.match(rest[end:])
  if not opcode:
    return None
  start = end + opcode.end() - 1
  stop = _closing(rest, start)
  arguments = rest[start + 1 : stop - 1]
  return Instruction(
    name=name,
    opcode=opcode.group(1),
    shapes=parse_shapes(rest[:end]),
    operands=tuple(_NAME.findall(arguments)),
    arguments=arguments,
    attributes=rest[stop:],
    is_root=bool(root),
  )


class Computation:
  """A list of instructions, by name, with their uses."""

  def __init__(self, name: str, instructions: Sequence[Instruction]):
    self.name = name
    self.instructions = {i.name: i for i in instructions}
    self.users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in instructions:
      for operand in instruction.operands:
        self.users[operand].append(instruction)

  @property
  def root(self) -> Instruction:
    """The result."""
    return next(i for i in self.instructions.values() if i.is_root)

  def behind_copies(self, name: str) -> Instruction:
    """The instruction of this name, or what it is a copy of."""
    instruction = self.instructions[name]
    while instruction.opcode in ("bitcast", "copy", "copy-done", "copy-start"):
      instruction = self.instructions[instruction.operands[0]]
    return instruction

  def constant(self, name: str) -> int:
    """The value of an integer constant.

    Raises:
      ValueError: It is none.
    """
    instruction = self.behind_copies(name)
    if instruction.opcode != "constant":
      raise ValueError(f"{name} is no constant")
    return int(instruction.arguments)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """Parameters by number."""
    return {
      int(i.arguments): i
      for i in self.instructions.values()
      if i.opcode == "parameter"
    }


class Program:
  """A parsed program.

  Args:
    text: `compiled.as_text()`.

  Raises:
    ValueError: The text has no entry computation.
  """

  def __init__(self, text: str):
    self.computations: dict[str, Computation] = {}
    self.entry = ""
    name, lines = "", []
    for line in text.splitlines():
      header = _COMPUTATION.match(line)
      if header and " = " not in line.split("(")[0]:
        name, lines = header.group(2), []
        if header.group(1):
          self.entry = name
      elif line.startswith("}") and name:
        self.computations[name] = Computation(name, lines)
        name = ""
      elif name and (instruction := _parse_instruction(line)):
        lines.append(instruction)
    if self.entry not in self.computations:
      raise ValueError(f"no entry computation in {text[:60]!r}")

  def trip_count(self, loop: Instruction, computation: Computation) -> int:
    """How often the body of a `while` runs.

    Loops here count an integer of their state from one constant to another. The
    limit stands in the condition, the step in the body (more than 1 where the
    compiler does two rounds at once), the start where the loop is entered.

    Args:
      loop: The instruction.
      computation: Where it stands.

    Raises:
      ValueError: The loop is of another form.
    """
    noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
      return int(noted.group(1))
    condition = self.computations[loop.called("condition")]
    body = self.computations[loop.called("body")]
    test = condition.root
    try:
      if test.opcode != "compare" or "direction=LT" not in test.attributes:
        raise ValueError(test.opcode)
      counter, limit = (condition.instructions[name] for name in test.operands)
      place = int(re.search(r"index=(\d+)", counter.attributes).group(1))
      entry = computation.instructions[loop.operands[0]]
      start = computation.constant(entry.operands[place])
      add = body.behind_copies(body.root.operands[place])
      if add.opcode != "add":
        raise ValueError(add.opcode)
      step = body.constant(add.operands[1])
      return -(-(condition.constant(limit.name) - start) // step)
    except (AttributeError, IndexError, KeyError, ValueError) as error:
      raise ValueError(
        f"loop {loop.name}: cannot read how often it runs ({error})"
      ) from error

  def walk(self) -> Iterator[tuple[Computation, Instruction, int]]:
    """Every instruction that is scheduled, and how often it runs.

    The inside of fusions is not visited: a fusion is one instruction.
    """
    stack = [(self.entry, 1)]
    while stack:
      name, times = stack.pop()
      computation = self.computations[name]
      for instruction in computation.instructions.values():
        yield computation, instruction, times
        if instruction.opcode == "while":
          trips = self.trip_count(instruction, computation)
          stack.append((instruction.called("body"), times * trips))
        elif instruction.opcode in ("call", "async-start"):
          callee = instruction.called("to_apply") or instruction.called("calls")
          stack.append((callee, times))
        elif instruction.opcode == "conditional":
          # One branch runs; both are charged, as which one is not known.
          branches = re.search(
            r"branch_computations=\{([^}]*)\}", instruction.attributes
          )
          names = _NAME.findall(branches.group(1)) if branches else [
            instruction.called("true_computation"),
            instruction.called("false_computation"),
          ]  # fmt: skip
          stack += [(branch, times) for branch in names]

  def operand_shapes(
    self, computation: Computation, item: Instruction
  ) -> tuple[ArrayShape, ...]:
    """Shapes of all operands of an instruction."""
    return tuple(
      shape
      for name in item.operands
      if name in computation.instructions
      for shape in computation.instructions[name].shapes
    )


def count_collectives(text: str) -> dict[str, int]:
  """Collective instructions of a compiled program, by kind.

  For tests: how many there are in the text, wherever they stand. One inside a
  loop over layers counts once; several arrays reduced together count once.

  Args:
    text: `compiled.as_text()`.

  Returns:
    {kind: instructions}, only kinds that occur.

  Example:
    >>> count_collectives("  %a = f32[2] all-reduce(%x), to_apply=%add")
    {'all-reduce': 1}
  """
  kinds = "|".join(COLLECTIVES)
  found = re.findall(rf" ({kinds})(?:-start)?\(", text)
  return dict(sorted(collections.Counter(found).items()))
