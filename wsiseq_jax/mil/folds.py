"""Splits of a cohort by patient: k folds, repeats, validation inside training.

A patient is never in two splits: two slides of one patient are near duplicates.
Where the table gives splits there is one fold, the given one; validation is
drawn from its training slides if none is given.

Splits are drawn once and kept in `splits.csv`. A second start reads them, so
they may be written by hand or brought from another project; what is read is
checked as strictly as what was drawn.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from data_prep import splits
from data_prep.files import aliases, names, tables, values
from wsiseq_jax.mil.cohort import Cohort

COLUMNS = ("repeat", "fold", "slide_id", "patient_id", "split")
# Numbers are stratified by quarters.
_PARTS = 4
_BY_HAND = "give the splits in a column of the table (config.data.split_column)"

# (repeat, fold) → {'train', 'val', 'test'} → rows of the cohort.
Folds = Mapping[tuple[int, int], Mapping[str, Int[np.ndarray, " n"]]]


def strata(cohort: Cohort) -> Int[np.ndarray, " n"]:
  """What each slide is stratified by."""
  values = cohort.labels
  if cohort.target_type in ("binary", "multiclass"):
    return values[:, 0].astype(int)
  if cohort.target_type == "multilabel":
    known = np.nan_to_num(values, nan=2.0)
    return np.unique(known, axis=0, return_inverse=True)[1].reshape(-1)
  if cohort.target_type == "survival":
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
  """Draws the splits of a cohort."""
  given = np.array([slide.split for slide in cohort.slides])
  found, rows = {}, {}
  if given.any():
    empty = [name for name in ("train", "test") if name not in given]
    if empty:
      raise ValueError(f"config.data.split_column: no slide is in {empty}")
    rows = {name: np.flatnonzero(given == name) for name in splits.NAMES}
    if len(rows["val"]) and repeats > 1:
      raise ValueError(
        f"config.folds.repeats = {repeats}: all splits are given, there is "
        "nothing to draw anew; set it to 1"
      )
  else:
    _check_counts(cohort, k, stratify)
  for repeat in range(repeats):
    # Parts of a share of the slides, or else of the patients: one patient may
    # have as many slides as all others together.
    for by_slides in (True, False):
      rng = np.random.default_rng([seed, repeat])
      cut = functools.partial(
        _cut, cohort, stratify=stratify, rng=rng, by_slides=by_slides
      )
      try:
        drawn = {
          (repeat, fold): parts
          for fold, parts in enumerate(
            _parts(len(given), rows, cut, k, val_share)
          )
        }
        check(cohort, drawn)
        break
      except ValueError as error:
        if not by_slides:
          remedy = _remedy(cohort, k, stratify, bool(rows))
          raise ValueError(f"{error}: {remedy}") from error
    found |= drawn
  return found


def _parts(
  count: int,
  given: Mapping[str, Int[np.ndarray, " n"]],
  cut: Callable[..., list[Int[np.ndarray, " m"]]],
  k: int,
  val_share: float,
) -> Iterator[dict[str, Int[np.ndarray, " n"]]]:
  """The splits of one repeat, fold by fold; what is given is taken."""
  tests = [given["test"]] if given else cut(np.arange(count), [1 / k] * k)
  for test in tests:
    rest = given.get("train", np.setdiff1d(np.arange(count), test))
    val = given.get("val", ())
    if not len(val):
      rest, val = cut(rest, [1 - val_share, val_share])
    yield {"train": rest, "val": val, "test": test}


def _remedy(cohort: Cohort, k: int, stratify: bool, is_given: bool) -> str:
  """Why no splits could be drawn, and what helps."""
  if is_given:
    return "correct the column config.data.split_column, which says so"
  of_class = _patients_of_classes(cohort)
  patients = len(set(cohort.patients.tolist()))
  # One patient of each class trains, one more validates.
  need = len(of_class) + 1
  left = lambda count, k: count - math.ceil(count / k)  # noqa: E731
  if not of_class or left(patients, k) >= need:
    more = "" if stratify else "set config.folds.stratify = True, or "
    return f"{more}take another config.folds.seed, or {_BY_HAND}"
  enough = next(n for n in range(2 * k, k * need + 2) if left(n, k) >= need)
  return (
    f"{k} folds leave {left(patients, k)} of {patients} patients to train and "
    f"validate on, and {need - 1} classes need {need}: add patients ({enough} "
    f"are enough), or {_BY_HAND}"
  )


def _patients_of_classes(cohort: Cohort) -> dict[str, int]:
  """How many patients each class has; {} where nothing has classes."""
  if cohort.target_type not in ("binary", "multiclass"):
    return {}
  return {
    name: len(set(cohort.patients[cohort.labels[:, 0] == number].tolist()))
    for number, name in enumerate(cohort.classes)
  }


def _check_counts(cohort: Cohort, k: int, stratify: bool) -> None:
  patients = len(set(cohort.patients.tolist()))
  if patients < 2 * k:
    raise ValueError(
      f"config.folds.k = {k}: {patients} patients are too few, need two a fold "
      "or more"
    )
  for name, mine in _patients_of_classes(cohort).items():
    if mine == 1:
      raise ValueError(
        f"config.folds: only one patient is of class {name!r}, and cannot be "
        "trained on and tested: add patients of it, leave it out, or "
        f"{_BY_HAND}"
      )
    if stratify and mine < k:
      raise ValueError(
        f"config.folds.k = {k}: only {mine} patients are of class {name!r}; "
        "take fewer folds, or switch config.folds.stratify off"
      )


def _cut(
  cohort: Cohort,
  rows: Int[np.ndarray, " n"],
  shares: Sequence[float],
  stratify: bool,
  rng: np.random.Generator,
  by_slides: bool,
) -> list[Int[np.ndarray, " m"]]:
  """Cuts rows into parts of given shares, by patient.

  Iterative stratification (Sechidis et al., ECML 2011): patients of the rarest
  stratum first, each to the part that lacks most of that stratum. Before that,
  every part gets a patient of every class while it has room, the largest part
  first, and no part is left empty. Room is counted in slides or in patients.
  """
  patients, of_patient = np.unique(cohort.patients[rows], return_inverse=True)
  if len(patients) < len(shares):
    raise ValueError(
      f"config.folds: {len(patients)} patients cannot be parted into "
      f"{len(shares)}"
    )
  labels = strata(cohort)[rows] if stratify else np.zeros(len(rows), int)
  labels = np.unique(labels, return_inverse=True)[1]
  count = np.zeros((len(patients), labels.max() + 1), int)
  np.add.at(count, (of_patient, labels), 1)
  count = count if by_slides else np.minimum(count, 1)
  lacks = np.outer(shares, count.sum(axis=0))
  room = np.array(shares) * count.sum()
  part_of = np.full(len(patients), -1)
  has = np.zeros(lacks.shape, bool)
  left = rng.permutation(len(patients)).tolist()
  while left:
    waiting = (count[left] > 0).sum(axis=0)
    stratum = int(np.where(waiting, waiting, len(rows) + 1).argmin())
    # Patients of many slides first: those of few even out what is left.
    mine = [p for p in left if count[p, stratum]]
    patient = max(mine, key=lambda p: count[p].sum())
    empty = np.flatnonzero(~has.any(axis=1))
    size = count[patient].sum()
    parts = np.flatnonzero(room >= size / 2)
    if len(left) <= len(empty) or not len(parts):
      parts = empty if len(left) <= len(empty) else [int(room.argmax())]
    best = max(
      parts,
      key=lambda part: (
        not has[part, stratum],
        0 if has[part, stratum] else shares[part],
        lacks[part, stratum],
        room[part],
      ),
    )
    part_of[patient] = best
    has[best] |= count[patient] > 0
    lacks[best] -= count[patient]
    room[best] -= size
    left.remove(patient)
  return [rows[part_of[of_patient] == part] for part in range(len(shares))]


def check(cohort: Cohort, folds: Folds) -> None:
  """Raises if a patient is in two splits of a fold, a split or class lacks."""
  for (repeat, fold), parts in folds.items():
    where: dict[str, str] = {}
    name = f"splits: repeat {repeat}, fold {fold}"
    for split in splits.NAMES:
      rows = parts.get(split, ())
      if not len(rows):
        raise ValueError(f"{name} has no {split} slide")
      for row in rows:
        slide = cohort.slides[row]
        other = where.setdefault(slide.patient_id, split)
        if other != split:
          raise ValueError(
            f"{name}: patient {slide.patient_id!r} is in {other!r} and in "
            f"{split!r} (slide {slide.slide_id!r})"
          )
    if cohort.target_type in ("binary", "multiclass"):
      has = np.unique(cohort.labels[parts["train"], 0])
      missing = [c for i, c in enumerate(cohort.classes) if i not in has]
      if missing:
        raise ValueError(f"{name}: no training slide is of class {missing}")


def save(path: pathlib.Path, cohort: Cohort, folds: Folds) -> None:
  """Writes splits.csv, complete or not at all."""
  lines = []
  for (repeat, fold), parts in sorted(folds.items()):
    split_of = {row: split for split, rows in parts.items() for row in rows}
    for row in sorted(split_of):
      slide = cohort.slides[row]
      values = (repeat, fold, slide.slide_id, slide.patient_id, split_of[row])
      lines.append(dict(zip(COLUMNS, values, strict=True)))
  tables.write(path, COLUMNS, lines)


def load(path: pathlib.Path, cohort: Cohort) -> Folds:
  """Reads splits.csv and checks it against the cohort.

  Raises:
    ValueError: no such columns; a slide that the table does not have, or that
      the file lacks; a slide twice in a fold; what else `check` finds.
  """
  table = tables.read(path, log=lambda text: None)
  found = table.columns(("slide_id", "split"))
  column = {aliases.plain(name): name for name in table.heading}
  if not {"repeat", "fold"} <= set(column) or not all(found.values()):
    raise ValueError(f"{path}: expected the columns {list(COLUMNS)}")
  if table.bad:
    raise ValueError(f"{path}: {table.bad[0][1]}")
  row_of = {slide_id: row for row, slide_id in enumerate(cohort.ids)}
  known = names.match(
    {row.cells[found["slide_id"]] for row in table.rows}, row_of
  )
  gathered: dict[tuple[int, int], dict[str, list[int]]] = {}
  for line in table.rows:
    slide_id, word = (line.cells[found[k]] for k in ("slide_id", "split"))
    key = tuple(
      int(values.need_number(line.cells[column[k]], f"{line.where}: {k}"))
      for k in ("repeat", "fold")
    )
    if slide_id not in known:
      raise ValueError(
        f"{path} has slide {slide_id!r}, config.data.table has not (or not its "
        "label): use another workdir, or delete the file to draw anew"
      )
    if (split := splits.name_of(word)) is None:
      raise ValueError(f"{path}: split {word!r}: allowed are {splits.NAMES}")
    parts = gathered.setdefault(key, {name: [] for name in splits.NAMES})
    if any(known[slide_id] in rows for rows in parts.values()):
      raise ValueError(
        f"{path}: slide {slide_id!r} is twice in repeat {key[0]}, fold {key[1]}"
      )
    parts[split].append(known[slide_id])
  lacking = sorted(set(row_of) - {cohort.ids[row] for row in known.values()})
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
  """The splits in a file; drawn and written first where there is no file."""
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
  save(path, cohort, found)  # as it was understood
  return found
