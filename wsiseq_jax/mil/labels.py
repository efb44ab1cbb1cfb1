"""Labels of slides: from the cells of a table to numbers.

What the cells of each target type hold is said in `cohort.py`. A slide's cells
are one text here, with ';' between them, empty where a label is unknown.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from data_prep.files import values as cells


def to_learn(
  texts: Mapping[str, str],
  target_type: str,
  names: Sequence[str],
  classes: tuple[str, ...],
) -> tuple[Float[np.ndarray, "n k"], tuple[str, ...]]:
  """Labels to train on, all known (of several labels at least one).

  Example:
    >>> to_learn({"a": "yes", "b": "no"}, "binary", ["label"], ())
    (array([[1.],
           [0.]]), ('no', 'yes'))
  """
  if target_type in ("binary", "multiclass"):
    return _class_numbers(list(texts.values()), target_type, classes)
  if classes and classes != tuple(names):
    raise ValueError(
      f"config.data.classes = {classes}: of use for config.target_type = "
      f"'binary' and 'multiclass'; leave it () for {target_type!r}"
    )
  values = _numbers(texts, names)
  ids = list(texts)
  if target_type == "multilabel":
    _only_01(ids, values, names)
    return values, tuple(names)
  if target_type == "survival":
    _only_01(ids, values[:, 1:], names[1:])
    early = np.flatnonzero(values[:, 0] <= 0)
    if len(early):
      raise ValueError(
        f"config.data.label: slide {ids[early[0]]!r} has {names[0]} = "
        f"{values[early[0], 0]:g}: times must be above 0"
      )
    if not values[:, 1].any():
      raise ValueError(f"config.data.label: {names[1]} is 0 for all slides")
    return values, ("risk",)
  if values.min() == values.max():
    raise ValueError(
      f"config.data.label: {names[0]} is {values[0, 0]:g} for all slides"
    )
  return values, tuple(names)


def to_score(
  texts: Mapping[str, str],
  target_type: str,
  names: Sequence[str],
  classes: tuple[str, ...],
) -> Float[np.ndarray, "n k"]:
  """Labels that the predictions of trained models are compared with."""
  if target_type in ("binary", "multiclass"):
    other = sorted(set(texts.values()) - set(classes))
    if other:
      raise ValueError(
        f"config.data.label: the models know the classes {classes}, the table "
        f"also has {other}"
      )
    number = {name: i for i, name in enumerate(classes)}
    return np.array([[number[text]] for text in texts.values()], np.float64)
  if target_type == "multilabel" and tuple(names) != classes:
    raise ValueError(
      f"config.data.label names {tuple(names)}, the models know {classes}"
    )
  values = _numbers(texts, names)
  if target_type == "multilabel":
    _only_01(list(texts), values, names)
  elif target_type == "survival":
    _only_01(list(texts), values[:, 1:], names[1:])
  return values


def _class_numbers(
  texts, target_type, classes
) -> tuple[np.ndarray, tuple[str, ...]]:
  found = set(texts)
  names = cells.class_names(texts, classes, "data.classes")
  missing = sorted(set(names) - set(found))
  if missing:
    raise ValueError(f"config.data.classes: no slide is of class {missing}")
  if target_type == "binary" and len(names) != 2 or len(names) < 2:
    wanted = "two classes" if target_type == "binary" else "two classes or more"
    hint = ""
    if target_type == "binary" and len(names) > 2:
      hint = "; did you mean config.target_type = 'multiclass'?"
    raise ValueError(
      f"config.target_type = {target_type!r} wants {wanted}, config.data.label "
      f"has {len(names)}: {list(names)[:10]}{hint}"
    )
  numbers = [[cells.class_number(names, text)] for text in texts]
  return np.array(numbers), names


def _numbers(texts: Mapping[str, str], names: Sequence[str]) -> np.ndarray:
  """Numbers of slides and columns; NaN where a cell is empty."""

  def number(slide_id: str, name: str, cell: str) -> float:
    if not cell:
      return math.nan
    what = f"config.data.label: slide {slide_id!r}, column {name}"
    return cells.need_number(cell, what)

  return np.array(
    [
      [number(i, n, c) for n, c in zip(names, text.split(";"), strict=True)]
      for i, text in texts.items()
    ]
  )


def _only_01(ids, values, names) -> None:
  bad = np.argwhere(np.isfinite(values) & (values != 0) & (values != 1))
  if len(bad):
    row, column = bad[0]
    raise ValueError(
      f"config.data.label: slide {ids[row]!r} has {names[column]} = "
      f"{values[row, column]:g}: must be 0 or 1"
    )
