"""Settings: a frozen dataclass is the schema, `build` checks and builds it.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Folds:
      k: Annotated[int, Range(2)] = 5
      val_share: Annotated[float, Range(0.01, 0.5)] = 0.2
      by: Literal["patient", "slide"] = "patient"
      seeds: Annotated[tuple[int, ...], Range(0), DIFFERENT, FILLED] = (0,)
      column: str

      def __post_init__(self):  # rules between fields
        if self.by == "slide" and self.k > 9:
          raise ValueError(f"config.folds.k = {self.k}: must be below 10")

    folds = build(Folds, config.folds, "config.folds")

A field's type is bool, int, float, str, Any, a `Literal`, a tuple, a mapping, a
dataclass (a block of its own), or one of several (`float | None`). `Rule`s
beside it say what else must hold; those of a tuple hold for the tuple, a
`Range` for each of its numbers. A key that is not given takes the field's
default. Lists become tuples. Names that are computed: `Literal[tuple(NAMES)]`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Rule:
  """What must hold of a field's value, and how to say it: "must be ..."."""

  holds: Callable[[Any], bool]
  wanted: str


def Range(  # noqa: N802
  low: float | int = -math.inf,
  high: float | int = math.inf,
  above: float | int = -math.inf,
) -> Rule:
  """Numbers from `low` to `high`, both included, and larger than `above`."""

  def holds(value):
    numbers = value if isinstance(value, tuple) else (value,)
    return all(low <= v <= high and v > above for v in numbers)

  words = [f"above {above:g}"] if above > -math.inf else []
  if low > -math.inf:
    words.append(f"{low:g} or more" if high == math.inf else f"from {low:g}")
  if high < math.inf:
    words.append(f"to {high:g}" if low > -math.inf else f"up to {high:g}")
  return Rule(holds, " ".join(words))


FILLED = Rule(bool, "not empty")
DIFFERENT = Rule(lambda value: len(set(value)) == len(value), "all different")

AtLeast0 = Annotated[int, Range(0)]
AtLeast1 = Annotated[int, Range(1)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def did_you_mean(word: Any, known: Iterable[str]) -> str:
  """The end of a message about an unknown word; '' if nothing is like it.

  Example:
    >>> did_you_mean("trian", ["train", "embed"])
    "; did you mean 'train'?"
  """
  near = difflib.get_close_matches(str(word), list(known), n=3)
  return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def build(schema: type[_T], values: Any, key: str = "config") -> _T:
  """Builds a dataclass from a block of a config.

  Args:
    schema: The dataclass.
    values: A dictionary, a `ConfigDict`, or what JSON gave back.
    key: What the block is called in messages.

  Raises:
    ValueError: All that is wrong, one line a key: the value, what is wanted,
      and for an unknown key the nearest known ones.
  """
  problems = []
  built = _block(schema, values, key, problems)
  if problems:
    raise ValueError("bad config:\n  " + "\n  ".join(problems))
  return built


def _block(schema: type, values: Any, key: str, problems: list[str]) -> Any:
  hints = typing.get_type_hints(schema, include_extras=True)
  fields = {f.name: f for f in dataclasses.fields(schema) if f.init}
  count, built = len(problems), {}
  for name, value in values.items():
    if name in fields:
      built[name] = _read(hints[name], value, f"{key}.{name}", problems)
    else:
      hint = did_you_mean(name, fields)
      problems.append(f"{key}.{name} = {value!r}: unknown key{hint}")
  for name, field in fields.items():
    has_default = not (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    )
    if name in values or has_default:
      continue
    if dataclasses.is_dataclass(hints[name]):
      built[name] = _block(hints[name], {}, f"{key}.{name}", problems)
    else:
      problems.append(f"{key}.{name}: missing")
  if len(problems) > count:
    return None
  try:
    return schema(**built)
  except ValueError as error:
    problems += str(error).splitlines()


def _read(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
  if dataclasses.is_dataclass(hint) and hasattr(value, "items"):
    return _block(hint, value, key, problems)
  try:
    return _convert(hint, value)
  except ValueError:
    problems.append(f"{key} = {value!r}: must be {_wanted(hint)}")


def _convert(hint: Any, value: Any) -> Any:
  """The value as the type wants it; ValueError if it cannot be that."""
  kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
  if kind is typing.Annotated:
    value = _convert(args[0], value)
    if value is None or all(rule.holds(value) for rule in hint.__metadata__):
      return value
  elif kind in (typing.Union, types.UnionType):
    for arg in args:
      try:
        return _convert(arg, value)
      except ValueError:
        pass
  elif kind is typing.Literal:
    for arg in args:
      if arg == value and isinstance(value, type(arg)):
        return value
  elif kind is tuple and isinstance(value, tuple | list):
    items = args[:1] * len(value) if args[1:] == (...,) else args
    if len(items) == len(value):
      return tuple(map(_convert, items, value))
  elif kind in (dict, Mapping) and hasattr(value, "items"):
    item = args[1] if args else Any
    return {name: _convert(item, v) for name, v in value.items()}
  elif kind is float:
    if type(value) in (int, float) and math.isfinite(value):
      return float(value)
  elif kind is Any:
    return value
  elif isinstance(kind, type) and isinstance(value, kind):
    # True is an int, but not to whoever writes a config.
    if (kind is bool) == isinstance(value, bool):
      return value
  raise ValueError


_WORDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  str: "a string",
  types.NoneType: "None",
}


def _wanted(hint: Any) -> str:
  kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
  if kind is typing.Annotated:
    rules = (rule.wanted for rule in hint.__metadata__)
    return ", ".join((_wanted(args[0]), *rules))
  if kind in (typing.Union, types.UnionType):
    return " or ".join(map(_wanted, args))
  if kind is typing.Literal:
    return f"one of {', '.join(map(repr, args))}"
  if kind is tuple:
    count = "" if args[1:] == (...,) else f" of {len(args)}"
    return f"a tuple{count}, each {_wanted(args[0])}"
  return _WORDS.get(kind, "a block of keys")
