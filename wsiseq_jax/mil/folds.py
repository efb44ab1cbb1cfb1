"""Splits of a cohort by case: k folds, repeats, validation inside training.

A case is never in two splits: two slides of one patient are near duplicates,
and a model that was trained on one has seen the other. Where the table gives
splits there is one fold, the given one; validation is drawn from its training
slides if none is given.

Splits are drawn once and kept in `splits.csv`. A second start reads them, so
they may also be written by hand or brought from another project; what is read
is checked as strictly as what was drawn.
"""

import csv
import io
import pathlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from sklearn import model_selection

from data_prep import splits
from data_prep.files import atomic
from wsiseq_jax.mil.cohort import Cohort

COLUMNS = ("repeat", "fold", "slide_id", "case_id", "split")
# Numbers and times are stratified by so many equal parts.
_PARTS = 4

# (repeat, fold) → {'train', 'val', 'test'} → rows of the cohort.
Folds = Mapping[tuple[int, int], Mapping[str, Int[np.ndarray, " n"]]]


def strata(cohort: Cohort) -> np.ndarray:
  """What each slide is stratified by: a class, labels together, a quarter.

  Returns:
    One number a slide: its class; all its labels as one; the quarter its number
    lies in; for survival the half of times, apart for events.
  """
  values = cohort.labels
  if cohort.head in ("binary", "multiclass"):
    return values[:, 0].astype(int)
  if cohort.head == "multilabel":
    known = np.nan_to_num(values, nan=2.0)
    return np.unique(known, axis=0, return_inverse=True)[1].reshape(-1)
  if cohort.head == "survival":
    late = values[:, 0] > np.median(values[:, 0])
    return (2 * values[:, 1] + late).astype(int)
  cuts = np.quantile(values[:, 0], np.arange(1, _PARTS) / _PARTS)
  return np.searchsorted(cuts, values[:, 0], side="right")


def draw(
  cohort: Cohort,
  k: int,
  repeats: int,
  val_share: float,
  stratify: bool,
  seed: int,
) -> Folds:
  """Draws the splits of a cohort.

  Args:
    cohort: the slides; splits that they are given come first.
    k: folds; each slide is in the test split of one. Of no use where splits are
      given.
    repeats: how often everything is drawn anew.
    val_share: share of the training slides that validates, up to 1/2.
    stratify: keep the shares of classes (or quarters) alike in all splits.
    seed: of the draw.

  Returns:
    Rows of each split by (repeat, fold).

  Raises:
    ValueError: fewer cases than folds, in all or of a class; given splits
      without training or test slides, or with nothing left to draw anew.
  """
  given = [slide.split for slide in cohort.slides]
  parts = max(2, round(1 / val_share))
  everything = np.arange(len(given))
  found = {}
  if any(given):
    place = np.array(given)
    empty = [name for name in ("train", "test") if name not in given]
    if empty:
      raise ValueError(f"config.data.split_column: no slide is in {empty}")
    rows = {name: np.flatnonzero(place == name) for name in splits.NAMES}
    if len(rows["val"]) and repeats > 1:
      raise ValueError(
        f"config.folds.repeats = {repeats}: all splits are given, there is "
        "nothing to draw anew; set it to 1"
      )
    for repeat in range(repeats):
      found[repeat, 0] = rows
      if not len(rows["val"]):
        key = np.random.SeedSequence([seed, repeat]).generate_state(1)[0]
        train, val = _parts(cohort, rows["train"], parts, stratify, key)[0]
        found[repeat, 0] = {"train": train, "val": val, "test": rows["test"]}
    check(cohort, found)
    return found
  _check_counts(cohort, k, stratify)
  for repeat in range(repeats):
    keys = np.random.SeedSequence([seed, repeat]).generate_state(k + 1)
    halves = _parts(cohort, everything, k, stratify, keys[k])
    for fold, (rest, test) in enumerate(halves):
      train, val = _parts(cohort, rest, parts, stratify, keys[fold])[0]
      found[repeat, fold] = {"train": train, "val": val, "test": test}
  check(cohort, found)
  return found


def _check_counts(cohort: Cohort, k: int, stratify: bool) -> None:
  cases = len(set(cohort.cases.tolist()))
  if cases < 2 * k:
    raise ValueError(
      f"config.folds.k = {k}: {cases} cases are too few, need two a fold or "
      "more"
    )
  if not stratify or cohort.head not in ("binary", "multiclass"):
    return
  for number, name in enumerate(cohort.classes):
    mine = len(set(cohort.cases[cohort.labels[:, 0] == number].tolist()))
    if mine < k:
      raise ValueError(
        f"config.folds.k = {k}: only {mine} cases are of class {name!r}; take "
        "fewer folds, or switch config.folds.stratify off"
      )


def _parts(cohort, rows, parts, stratify, seed) -> list[tuple]:
  """Cuts rows into parts by case: (all others, the part) of each."""
  cases = cohort.cases[rows]
  if len(set(cases.tolist())) < parts:
    parts = len(set(cases.tolist()))
  if parts < 2:
    raise ValueError(
      "config.folds.val_share: one training case cannot be parted into "
      "training and validation"
    )
  kind = model_selection.GroupKFold
  if stratify:
    kind = model_selection.StratifiedGroupKFold
  cut = kind(parts, shuffle=True, random_state=int(seed) % 2**31)
  labels = strata(cohort)[rows]
  # A stratum smaller than the parts is spread as far as it goes.
  if stratify and np.bincount(labels).max() < parts:
    labels = np.zeros_like(labels)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    found = list(cut.split(rows, labels, cases))
  return [(rows[others], rows[part]) for others, part in found]


def check(cohort: Cohort, folds: Folds) -> None:
  """Raises if a case is in two splits of a fold, or a split is empty."""
  for (repeat, fold), parts in folds.items():
    where: dict[str, str] = {}
    for split in splits.NAMES:
      rows = parts.get(split, ())
      if not len(rows):
        raise ValueError(
          f"splits: repeat {repeat}, fold {fold} has no {split} slide"
        )
      for row in rows:
        slide = cohort.slides[row]
        other = where.setdefault(slide.case_id, split)
        if other != split:
          raise ValueError(
            f"splits: repeat {repeat}, fold {fold}: case {slide.case_id!r} is "
            f"in {other!r} and in {split!r} (slide {slide.slide_id!r})"
          )
    if cohort.head in ("binary", "multiclass"):
      has = np.unique(cohort.labels[parts["train"], 0])
      if len(has) < len(cohort.classes):
        missing = [
          name for i, name in enumerate(cohort.classes) if i not in has
        ]
        raise ValueError(
          f"splits: repeat {repeat}, fold {fold}: no training slide is of "
          f"class {missing}"
        )


def save(path: pathlib.Path, cohort: Cohort, folds: Folds) -> None:
  """Writes splits.csv, complete or not at all."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(COLUMNS)
  for (repeat, fold), parts in sorted(folds.items()):
    split_of = {row: split for split, rows in parts.items() for row in rows}
    for row in sorted(split_of):
      slide = cohort.slides[row]
      writer.writerow(
        [repeat, fold, slide.slide_id, slide.case_id, split_of[row]]
      )
  atomic.write_atomic(path, text.getvalue())


def load(path: pathlib.Path, cohort: Cohort) -> Folds:
  """Reads splits.csv and checks it against the cohort.

  Raises:
    ValueError: no such columns; a slide that the table has not, or lacks; a
      slide twice in a fold; a case in two splits; what else `check` finds.
  """
  with path.open(newline="") as file:
    lines = list(csv.DictReader(file))
  if not lines or not set(COLUMNS) <= set(lines[0]):
    raise ValueError(f"{path}: expected the columns {list(COLUMNS)}")
  row_of = {slide_id: row for row, slide_id in enumerate(cohort.ids)}
  gathered: dict[tuple[int, int], dict[str, list[int]]] = {}
  seen = set()
  for line in lines:
    key = (int(line["repeat"]), int(line["fold"]))
    slide_id, split = line["slide_id"], line["split"]
    if slide_id not in row_of:
      raise ValueError(
        f"{path} has slide {slide_id!r}, config.data.table has not (or not its "
        "label): use another workdir, or delete the file to draw anew"
      )
    if split not in splits.NAMES:
      raise ValueError(f"{path}: split {split!r}: allowed are {splits.NAMES}")
    if (key, slide_id) in seen:
      raise ValueError(
        f"{path}: slide {slide_id!r} is twice in repeat {key[0]}, fold {key[1]}"
      )
    seen.add((key, slide_id))
    parts = gathered.setdefault(key, {name: [] for name in splits.NAMES})
    parts[split].append(row_of[slide_id])
  lacking = sorted(set(row_of) - {line["slide_id"] for line in lines})
  if lacking:
    raise ValueError(
      f"{path} lacks {len(lacking)} slides of config.data.table, the first is "
      f"{lacking[0]!r}: use another workdir, or delete the file to draw anew"
    )
  found = {
    key: {name: np.array(sorted(rows), int) for name, rows in parts.items()}
    for key, parts in gathered.items()
  }
  check(cohort, found)
  return found


def obtain(
  path: pathlib.Path, cohort: Cohort, settings: Mapping[str, object]
) -> Folds:
  """The splits in a file; drawn and written first where there is no file.

  Args:
    path: splits.csv.
    cohort: the slides.
    settings: arguments of `draw`, `config.folds`.

  Raises:
    ValueError: the file has other numbers of repeats and folds than asked for.
  """
  if not path.exists():
    save(path, cohort, draw(cohort, **settings))
  found = load(path, cohort)
  is_given = any(slide.split for slide in cohort.slides)
  k = 1 if is_given else settings["k"]
  wanted = [(r, f) for r in range(settings["repeats"]) for f in range(k)]
  if sorted(found) != wanted:
    raise ValueError(
      f"{path} has {len(found)} (repeat, fold) pairs, config.folds asks for "
      f"{settings['repeats']} repeats of {k}: use another workdir, or delete "
      "the file to draw anew"
    )
  return found


def rows_of(cohort: Cohort, ids: Sequence[str]) -> Int[np.ndarray, " n"]:
  """Rows of slides by their ids."""
  row = {slide_id: i for i, slide_id in enumerate(cohort.ids)}
  return np.array([row[i] for i in ids], int)
