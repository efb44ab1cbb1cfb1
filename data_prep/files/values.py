"""What a cell of somebody's table says: nothing, a number, or a class."""

import math
import re
from collections.abc import Collection, Iterable, Sequence

# Words for "not known", of pandas, R, SQL, Excel, SAS, TCGA and people.
UNKNOWN = frozenset(
  (
    *("", "na", "n/a", "n.a.", "<na>", "nan", "-nan", "nat", "none", "null"),
    *("nil", "#n/a", "#na", "-", "--", "---", "'--", "–", "—", "?", "."),
    *("#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!"),
    *("(null)", "<null>", "\\n", "(none)", "missing", "n.d."),
    *("unknown", "[unknown]", "not available", "[not available]", "undefined"),
    *("not reported", "[not applicable]", "[not evaluated]"),
  )
)
_MONTH = "jan|feb|mar|mär|mrz|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez"
# Ids as Excel writes them: 1/2 is a day, a long number is rounded.
_BY_EXCEL = re.compile(
  rf"\d{{1,4}}[-. /]+({_MONTH})\w*\.?([-. /]+\d+)?"
  rf"|({_MONTH})[-. /]+\d+"
  r"|\d{4}-\d\d-\d\d 00:00:00|\d[.,]\d+e\+\d+",
  re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def is_unknown(text: str) -> bool:
  """Whether a cell states no value.

  Example:
    >>> is_unknown(" NaN"), is_unknown("n/a"), is_unknown("0")
    (True, True, False)
  """
  return text.strip().casefold() in UNKNOWN


def number(text: str) -> float | None:
  """A finite number; None if it is none.

  A comma may be the decimal sign, unless it may part thousands.

  Example:
    >>> number(" 1e3 "), number("0,25"), number("1,000"), number("inf")
    (1000.0, 0.25, None, None)
  """
  text = text.strip()
  if re.fullmatch(r"[+-]?(0,\d+|\d+,(\d\d?|\d{4,}))", text):
    text = text.replace(",", ".")
  if not _NUMBER.fullmatch(text):
    return None
  value = float(text)
  return value if math.isfinite(value) else None


def need_number(text: str, what: str) -> float:
  """A finite number.

  Args:
    text: the cell.
    what: its column and row, for the message.

  Raises:
    ValueError: it is none.
  """
  value = number(text)
  if value is None:
    raise ValueError(f"{what} is {text!r}: must be a number")
  return value


def class_name(text: str) -> str:
  """The name of a class: pandas writes 1 as 1.0 once a column has a gap.

  Example:
    >>> class_name("1.0"), class_name(" 01"), class_name("G 2")
    ('1', '1', 'G 2')
  """
  value = number(text)
  if value is None:
    return " ".join(text.split())
  return str(int(value)) if value.is_integer() else repr(value)


def id_of(text: str) -> str:
  """An id: pandas writes 7 as 7.0 once a column has a gap.

  Example:
    >>> id_of("7.0"), id_of("007"), id_of("1.5")
    ('7', '007', '1.5')
  """
  return re.sub(r"^(\d+)\.0+$", r"\1", text)


def odd_ids(ids: Iterable[str]) -> list[str]:
  """Sentences on ids that may be one spelled in two ways, or are by Excel.

  Example:
    >>> odd_ids(["P1", "p01", "P2"])
    ["'P1' and 'p01' may be one patient: write them alike"]
  """
  ids = sorted({one for one in ids if one})
  said, first = [], {}
  for one in ids:
    key = re.sub(r"0*(\d+)", r"\1", one.casefold())
    key = re.sub(r"[\W_]+", " ", key).strip()
    if (other := first.setdefault(key, one)) != one:
      said.append(f"{other!r} and {one!r}")
  found = []
  if said:
    more = f" (and {len(said) - 1} pairs more)" if len(said) > 1 else ""
    found.append(f"{said[0]}{more} may be one patient: write them alike")
  if odd := [one for one in ids if _BY_EXCEL.fullmatch(one)]:
    found.append(
      f"{odd[0]!r} ({len(odd)} of {len(ids)} patients) looks like what Excel "
      "makes of an id: keep the column as text"
    )
  return found


def class_names(
  texts: Iterable[str], given: Sequence[str] = (), key: str = "labels"
) -> tuple[str, ...]:
  """The classes of a column in the order of their numbers.

  Args:
    texts: cells whose label is known.
    given: the classes wanted, in order; () takes those that are there, numbers
      by value before words by name.
    key: config key of `given`.

  Raises:
    ValueError: a cell is none of the given classes, or two classes differ in
      upper and lower case alone.

  Example:
    >>> class_names(["10", "2.0", "2"]), class_names(["no"], ["yes", "no"])
    (('2', '10'), ('yes', 'no'))
  """
  found = {class_name(text) for text in texts}
  if given:
    names = tuple(class_name(name) for name in given)
    if other := sorted(found - set(names)):
      raise ValueError(
        f"config.{key} = {tuple(given)}: the table also has {other}"
      )
    return names
  folded: dict[str, str] = {}
  for name in sorted(found):
    if (other := folded.setdefault(name.casefold(), name)) != name:
      raise ValueError(
        f"the classes {other!r} and {name!r} differ in upper and lower case "
        f"alone: spell them alike, or name both in config.{key}"
      )
  return tuple(sorted(found, key=_class_order))


def class_number(classes: Sequence[str], text: str) -> float:
  """The number of a cell's class; NaN if the cell says nothing.

  Raises:
    ValueError: no such class.
  """
  name = class_name(text)
  if name in classes:
    return float(classes.index(name))
  if is_unknown(text):
    return math.nan
  raise ValueError(f"{name!r} is none of the classes {list(classes)}")


def without_unknown(
  texts: Sequence[str], keep: Collection[str] = ()
) -> list[str]:
  """A column with '' for every word that says nothing."""
  words = {word.strip().casefold() for word in keep}
  words |= {"-"} if any(text.strip() == "+" for text in texts) else set()
  return [
    text
    if not is_unknown(text) or (text and text.strip().casefold() in words)
    else ""
    for text in texts
  ]


def _class_order(name: str) -> tuple[float, str]:
  value = number(name)
  return (math.inf if value is None else value, name)
