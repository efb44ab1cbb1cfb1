"""Which classes there are, and which of them a text names."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from data_prep.files import values

_YES = ("1", "yes", "y", "true", "+", "positive", "pos")
_NO = ("0", "no", "n", "false", "-", "negative", "neg")


@dataclasses.dataclass(frozen=True)
class Classes:
  """The foreground classes of a data set."""

  names: tuple[str, ...]  # class 1 first
  words: Mapping[str, int]  # other spellings, folded, to the number
  negatives: frozenset[str]  # folded words for none of them

  @classmethod
  def of(cls, items: Sequence[str], negatives: Iterable[str]) -> "Classes":
    """Reads `config.classes` and `config.negatives`.

    Raises:
      ValueError: a word names two classes, or a class and none.

    Example:
      >>> found = Classes.of(("tumour=malignant|_0", "stroma"), ("normal",))
      >>> found.names, found.number("Malignant"), found.number("normal")
      (('tumour', 'stroma'), 1, 0)
    """
    none = frozenset(_folded(word) for word in negatives)
    names, words = [], {}
    for number, item in enumerate(items, 1):
      name, _, others = item.partition("=")
      names.append(name.strip())
      for word in (name, *filter(None, others.split("|"))):
        if words.setdefault(_folded(word), number) != number:
          raise ValueError(f"config.classes: {word!r} names two classes")
        if _folded(word) in none:
          raise ValueError(
            f"config.classes: {word!r} is in config.negatives too"
          )
    return cls(tuple(names), words, none)

  def number(self, word: str) -> int:
    """The class that a word names, 0 for none of them.

    Raises:
      ValueError: it is no such word.
    """
    word = _folded(word)
    if word in self.negatives:
      return 0
    if word not in self.words:
      raise ValueError(
        f"{word!r} is none of the classes {list(self.names)}, nor in "
        "config.negatives"
      )
    return self.words[word]

  def labels(self, text: str) -> tuple[float, ...]:
    """What a cell of labels says of each class; NaN all over if nothing.

    Raises:
      ValueError: a word is unknown, or says none beside another.

    Example:
      >>> found = Classes.of(("a", "b"), ("none",))
      >>> found.labels("b; a"), found.labels("none"), found.labels("")
      ((1.0, 1.0), (0.0, 0.0), (nan, nan))
    """
    named = words_of(text)
    if not named:
      return (math.nan,) * len(self.names)
    numbers = {self.number(word) for word in named}
    if 0 in numbers and len(numbers) > 1:
      raise ValueError(f"{text!r} says none of the classes, and one")
    return tuple(float(n in numbers) for n in range(1, len(self.names) + 1))


def flag(text: str) -> float:
  """What a cell of a class's own column says: 1, 0, or NaN for nothing.

  Raises:
    ValueError: it is something else.

  Example:
    >>> flag("1.0"), flag("no"), flag("")
    (1.0, 0.0, nan)
  """
  word = _folded(text)
  if values.is_unknown(text) and word not in _NO:
    return math.nan
  if word in _YES or word in _NO:
    return float(word in _YES)
  raise ValueError(f"{text!r} is neither 1 nor 0")


def words_of(text: str) -> list[str]:
  """The labels in a cell, which may have `;`, `|` or `,` between."""
  return [word.strip() for word in re.split(r"[;|,]", text) if word.strip()]


def found_in(cells: Iterable[str], negatives: Iterable[str]) -> tuple[str, ...]:
  """The classes that the cells of a column of labels name, in order."""
  none = {_folded(word) for word in negatives}
  words = {word for cell in cells for word in words_of(cell)}
  return values.class_names(word for word in words if _folded(word) not in none)


def _folded(word: str) -> str:
  return values.class_name(word).casefold()
