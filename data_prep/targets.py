"""Labels: what each column is, and the table that training joins them from.

A column whose values are words is a class; what counts is the index into its
class list, sorted. A column of numbers is a number, unless 0 and 1 are all
there is: then it is a class too. `config.targets` overrides this for each
column. Whatever is missing is NaN.

The numbers are in `shards/targets.json`, not in the records: a corrected label
or a new class rewrites this one file.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_prep.files import values

FILE = "targets.json"
# More different words than this are names or remarks, not classes.
MOST_CLASSES = 50


@dataclasses.dataclass(frozen=True)
class Target:
  """One label."""

  name: str  # the column
  # Class names in the order of their numbers; () = it is a number.
  classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TargetTable:
  """The labels of a data set."""

  targets: tuple[Target, ...]  # the columns
  # One number a column, NaN = unknown, for each slide or series; for each visit
  # (`<series>/n3`) where visits have labels of their own.
  rows: Mapping[str, tuple[float, ...]]

  def of(self, sequence_id: str) -> Float[np.ndarray, " y"]:
    """Returns the labels of a sequence, [y] float32.

    Its row is that of the longest name it starts with, up to a '/': sequence
    `a/n3/f0` has the row `a/n3`, or else that of `a`.
    """
    name = sequence_id
    while name not in self.rows:
      if "/" not in name:
        raise ValueError(
          f"{FILE} has no row for sequence {sequence_id!r}: run "
          "`python -m data_prep` again"
        )
      name = name.rpartition("/")[0]
    return np.array(self.rows[name], np.float32)

  def to_json(self) -> str:
    """Returns the content of `targets.json`; unknown is null."""
    content = {
      "targets": [dataclasses.asdict(target) for target in self.targets],
      "rows": {
        name: [None if math.isnan(number) else number for number in row]
        for name, row in self.rows.items()
      },
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False)

  @classmethod
  def from_json(cls, text: str) -> "TargetTable":
    """Reads what `to_json` wrote.

    Raises:
      ValueError: it is something else, or was changed by hand into it.
    """
    try:
      content = json.loads(text)
      columns = tuple(
        Target(str(one["name"]), tuple(map(str, one["classes"])))
        for one in content["targets"]
      )
      rows = {
        str(name): tuple(
          _stored(target, number)
          for target, number in zip(columns, row, strict=True)
        )
        for name, row in content["rows"].items()
      }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise ValueError(
        f"{FILE} is damaged: {error!r}; run `python -m data_prep` again"
      ) from error
    return cls(columns, rows)


def _stored(target: Target, number: Any) -> float:
  """A number of `targets.json`: of a class, finite, or NaN."""
  if number is None:
    return math.nan
  is_class = not target.classes or number in range(len(target.classes))
  if not (is_class and math.isfinite(number)):
    raise ValueError(f"{target.name} is {number}")
  return float(number)


def resolve(
  cells: Mapping[str, Iterable[str]], wanted: Sequence[str]
) -> list[Target]:
  """Says what each label column is.

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
    known = [cell for cell in cells[name] if not values.is_unknown(cell)]
    targets.append(_target(name, kind, known))
  return targets


def _target(name: str, kind: str, cells: Sequence[str]) -> Target:
  if kind == "number":
    return Target(name)
  if kind.startswith("class="):
    classes = tuple(kind.removeprefix("class=").split("|"))
    return Target(name, values.class_names((), classes))
  if kind not in ("", "class"):
    raise ValueError(
      f"config.targets: {name!r} is {kind!r}, allowed: 'number', 'class', "
      "'class=first|second'"
    )
  wrong = [cell for cell in cells if values.number(cell) is None]
  if not kind and not wrong:
    is_flag = {values.number(cell) for cell in cells} == {0.0, 1.0}
    return Target(name, ("0", "1") if is_flag else ())
  if not kind and 2 * len(wrong) <= len(cells):
    raise ValueError(
      f"column {name!r} mixes numbers with {wrong[0]!r}: say which it is by "
      f"config.targets=({name + ':number'!r},) or {name + ':class'!r}"
    )
  return Target(name, _not_too_many(name, values.class_names(cells)))


def _not_too_many(name: str, words: Sequence[str]) -> tuple[str, ...]:
  if len(words) > MOST_CLASSES:
    raise ValueError(
      f"column {name!r} has {len(words)} different values, such as "
      f"{words[0]!r}: no class; name the label columns in config.targets"
    )
  return tuple(words)


def encode(target: Target, text: str) -> float:
  """Returns the number that is stored for a cell.

  Example:
    >>> encode(Target("eye", ("left", "right")), "right")
    1.0
  """
  if target.classes:
    try:
      return values.class_number(target.classes, text)
    except ValueError as error:
      raise ValueError(f"{target.name}: {error}") from error
  if values.is_unknown(text):
    return math.nan
  return values.need_number(text, target.name)
