"""Train, validation and test splits by patient, kept in a file.

Two slides of one patient never end up in different splits: near-duplicate
tissue on both sides makes any result look better than it is. The assignment is
saved; a later run with more slides extends it and never moves a patient, so a
test set stays a test set.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from data_prep.files import atomic
from data_prep.files.errors import SlideError

T = TypeVar("T")
NAMES = ("train", "val", "test")
_WORDS = {
  "train": ("train", "training", "trn"),
  "val": ("val", "valid", "validation", "dev"),
  "test": ("test", "testing", "tst"),
}


def name_of(text: str) -> str | None:
  """The split that a cell names; None if it is none.

  Example:
    >>> [name_of(text) for text in ("Train", "validation", "testing", "x")]
    ['train', 'val', 'test', None]
  """
  text = text.strip().casefold()
  return next((name for name in NAMES if text in _WORDS[name]), None)


def check_fractions(fractions: Mapping[str, float]) -> None:
  """Checks the shares of patients."""
  unknown = sorted(set(fractions) - set(NAMES))
  if unknown:
    raise ValueError(f"config.splits has {unknown}, allowed: {NAMES}")
  if min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
    raise ValueError(
      f"config.splits is {dict(fractions)}: shares must be 0 or more and add "
      "up to 1"
    )


def pinned(slides: Iterable[tuple[str, str, str | None]]) -> dict[str, str]:
  """Collects the splits that the user gave slide by slide.

  Example:
    >>> pinned([("a", "p1", "test"), ("b", "p1", None), ("c", "p2", None)])
    {'p1': 'test'}
  """
  given: dict[str, tuple[str, str]] = {}
  for slide_id, patient, split in slides:
    if split is None:
      continue
    if (name := name_of(split)) is None:
      raise ValueError(
        f"slide {slide_id!r}: column split is {split!r}, allowed: {NAMES}"
      )
    split = name
    other_split, other_slide = given.setdefault(patient, (split, slide_id))
    if other_split != split:
      raise ValueError(
        f"patient {patient!r} is in two splits by column split: slide "
        f"{other_slide!r} in {other_split!r}, slide {slide_id!r} in {split!r}"
      )
  return {patient: split for patient, (split, _) in given.items()}


def one_each(
  found: Iterable[T], id_of: Callable[[T], str], what: str
) -> tuple[list[T], list[SlideError]]:
  """Gives all that a patient has one split, where the table names it.

  Args:
    found: dataclasses with `patient_id` and `split`, None = not named.
    id_of: their ids.
    what: what they are called.

  Returns:
    Those whose patient is in one split or in none, and an error for each of
    the others.
  """
  found = list(found)
  given: dict[str, dict[str, str]] = {}
  for one in found:
    if one.split:
      of_patient = given.setdefault(one.patient_id, {})
      of_patient.setdefault(one.split, id_of(one))
  good, bad = [], []
  for one in found:
    of_patient = given.get(one.patient_id, {})
    if len(of_patient) < 2:
      split = next(iter(of_patient), None)
      good.append(dataclasses.replace(one, split=split))
      continue
    places = ", ".join(f"{s} ({what} {i!r})" for s, i in of_patient.items())
    bad.append(
      SlideError(
        f"patient {one.patient_id!r} is in the splits {places}: all {what} of "
        "the patient are left out",
        "split",
        "patient_in_two_splits",
        id_of(one),
      )
    )
  return good, bad


def assign(
  patients: Iterable[str],
  fractions: Mapping[str, float],
  seed: int,
  given: Mapping[str, str],
  existing: Mapping[str, str],
) -> dict[str, str]:
  """Gives every patient a split.

  Patients that have one keep it. The others, in an order drawn from the seed
  and their names, go one by one to the split that is furthest below its share.
  Splits asked for but empty are served first, train before val before test, so
  that three patients already fill three splits.

  Example:
    >>> share = {"train": 0.8, "val": 0.1, "test": 0.1}
    >>> sorted(assign(["a", "b", "c"], share, 0, {}, {}).values())
    ['test', 'train', 'val']
  """
  check_fractions(fractions)
  for patient, split in given.items():
    if existing.get(patient, split) != split:
      raise ValueError(
        f"patient {patient!r} is in split {existing[patient]!r} in "
        f"splits.json and in {split!r} by column split: change one of them"
      )
  everyone = sorted(set(patients) | set(existing))
  result = dict(existing)
  result.update({p: given[p] for p in everyone if p in given})
  new = sorted(
    (patient for patient in everyone if patient not in result),
    key=lambda p: hashlib.sha256(f"{seed}/{p}".encode()).digest(),
  )
  wanted = [split for split in NAMES if fractions.get(split, 0) > 0]
  count = {split: 0 for split in NAMES}
  for split in result.values():
    count[split] += 1
  for patient in new:
    empty = [split for split in wanted if count[split] == 0]
    choice = (
      empty[0]
      if empty
      else max(wanted, key=lambda s: fractions[s] * len(everyone) - count[s])
    )
    result[patient] = choice
    count[choice] += 1
  return result


def load(path: pathlib.Path) -> dict[str, str]:
  """Reads a saved assignment."""
  if not path.is_file():
    return {}
  try:
    patients = json.loads(path.read_text())["patients"]
    wrong = {p: s for p, s in patients.items() if s not in NAMES}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path} is not a splits file (want {{'patients': {{name: split}}}}): "
      f"{error!r}"
    ) from error
  if wrong:
    raise ValueError(f"{path}: {wrong} are no splits, allowed: {NAMES}")
  return patients


def save(
  path: pathlib.Path,
  assignment: Mapping[str, str],
  fractions: Mapping[str, float],
  seed: int,
) -> bool:
  """Writes an assignment."""
  content = {
    "seed": seed,
    "fractions": dict(fractions),
    "patients": dict(assignment),
  }
  text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
  return atomic.write_atomic(path, text + "\n")
