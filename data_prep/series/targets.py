"""Label columns of a table of series: classes, numbers, and what is missing.

A column whose values are words is a class; its class list, sorted, goes into
the metadata, and what is stored is the index into it. A column of numbers is a
number, unless 0 and 1 are all there is: then it is a class too.
`config.targets` overrides this for each column. Whatever is missing is stored
as NaN.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

# "none" is not here: it may be a grade.
MISSING = ("", "nan", "na", "n/a", "null")
# More different words than this are names or remarks, not classes.
MOST_CLASSES = 50


@dataclasses.dataclass(frozen=True)
class Target:
  """One label.

  Attributes:
    name: the column.
    classes: class names in the order of their numbers; () = it is a number.
  """

  name: str
  classes: tuple[str, ...] = ()


def number(text: str) -> float | None:
  """Reads a finite number.

  Args:
    text: a cell.

  Returns:
    The number, None if it is none.

  Example:
    >>> number(" 1e3 "), number("inf"), number("abc")
    (1000.0, None, None)
  """
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def is_missing(text: str) -> bool:
  """Says whether a cell states no value.

  Args:
    text: a cell.

  Returns:
    Whether it is empty or one of the words for nothing.

  Example:
    >>> is_missing(" NaN"), is_missing("0")
    (True, False)
  """
  return text.strip().lower() in MISSING


def resolve(
  cells: Mapping[str, Iterable[str]], wanted: Sequence[str]
) -> list[Target]:
  """Says what each label column is.

  Args:
    cells: the cells of each column that may be a label.
    wanted: `config.targets`: `name`, `name:number`, `name:class` or
      `name:class=first|second`; empty = all columns, kinds by their values.

  Returns:
    The targets, in the order wanted or of the columns.

  Raises:
    ValueError: no such column, an unknown kind, or a column that is neither
      number nor class.

  Example:
    >>> cells = {"sick": ["1", "0", ""], "size": ["2.5"], "eye": ["b", "a"]}
    >>> [(t.name, t.classes) for t in resolve(cells, ())]
    [('sick', ('0', '1')), ('size', ()), ('eye', ('a', 'b'))]
    >>> resolve(cells, ("sick:number",))
    [Target(name='sick', classes=())]
  """
  targets = []
  for item in wanted or cells:
    name, kind = item, ""
    # A column's own name may have a colon; a kind is one only after a column.
    if wanted and item not in cells and ":" in item:
      name, kind = item.rsplit(":", 1)
    if name not in cells:
      raise ValueError(
        f"config.targets has {item!r}: no such column; there are {list(cells)}"
      )
    values = [v.strip() for v in cells[name] if not is_missing(v)]
    targets.append(_target(name, kind, values))
  return targets


def _target(name: str, kind: str, values: Sequence[str]) -> Target:
  words = sorted({_class_name(v) for v in values}, key=_class_order)
  if kind == "number":
    return Target(name)
  if kind == "class":
    return Target(name, _not_too_many(name, words))
  if kind.startswith("class="):
    classes = tuple(kind.removeprefix("class=").split("|"))
    return Target(name, tuple(_class_name(c) for c in classes))
  if kind:
    raise ValueError(
      f"config.targets: {name!r} is {kind!r}, allowed: 'number', 'class', "
      "'class=first|second'"
    )
  numbers = [number(v) for v in values]
  if None not in numbers:
    is_flag = set(numbers) == {0.0, 1.0}
    return Target(name, tuple(words) if is_flag else ())
  wrong = [v for v, n in zip(values, numbers, strict=True) if n is None]
  if 2 * len(wrong) <= len(values):
    raise ValueError(
      f"column {name!r} mixes numbers with {wrong[0]!r}: say which it is by "
      f"config.targets=({name + ':number'!r},) or {name + ':class'!r}"
    )
  return Target(name, _not_too_many(name, words))


def _not_too_many(name: str, words: Sequence[str]) -> tuple[str, ...]:
  if len(words) > MOST_CLASSES:
    raise ValueError(
      f"column {name!r} has {len(words)} different values, such as "
      f"{words[0]!r}: no class; name the label columns in config.targets"
    )
  return tuple(words)


def _class_name(text: str) -> str:
  # pandas writes 1 as 1.0 as soon as the column has a gap.
  value = number(text)
  return text.strip() if value is None else f"{value:g}"


def _class_order(name: str) -> tuple[float, str]:
  value = number(name)
  return (math.inf if value is None else value, name)


def encode(target: Target, text: str) -> float:
  """Returns the number that is stored for a cell.

  Args:
    target: the label.
    text: the cell.

  Returns:
    The class's index or the number; NaN where the cell states no value.

  Raises:
    ValueError: the cell is no number, or no class of this label.

  Example:
    >>> encode(Target("eye", ("left", "right")), "right")
    1.0
  """
  if is_missing(text):
    return math.nan
  if target.classes:
    name = _class_name(text)
    if name not in target.classes:
      raise ValueError(
        f"{target.name} is {name!r}, its classes are {list(target.classes)}"
      )
    return float(target.classes.index(name))
  value = number(text)
  if value is None:
    raise ValueError(f"{target.name} is {text.strip()!r}, want a number")
  return value
