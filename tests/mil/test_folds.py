"""Splits by case: drawn, kept, read back, refused."""

import numpy as np
import pytest

from wsiseq_jax.mil import folds
from wsiseq_jax.mil.cohort import Cohort, CohortSlide

DRAW = {
  "k": 3,
  "repeats": 2,
  "val_share": 0.25,
  "stratify": True,
  "seed": 0,
}


def cohort(cases=24, slides=2, head="binary", given=None, labels=None):
  found, values = [], []
  for number in range(cases * slides):
    case = number // slides
    found.append(
      CohortSlide(
        f"s{number:02d}", f"c{case:02d}", "", given(case) if given else ""
      )
    )
    values.append([float(case % 4 == 0)])
  values = np.array(values) if labels is None else labels
  return Cohort(tuple(found), values, head, ("no", "yes"))


def cases_of(one, rows):
  return {one.slides[row].patient_id for row in rows}


def test_cases_stay_together_and_every_slide_is_tested_once_a_repeat():
  one = cohort()
  found = folds.draw(one, **DRAW)
  assert sorted(found) == [(r, f) for r in range(2) for f in range(3)]
  for repeat in range(2):
    tested = np.concatenate([found[repeat, f]["test"] for f in range(3)])
    assert sorted(tested.tolist()) == list(range(48))
  for parts in found.values():
    sets = [cases_of(one, parts[s]) for s in ("train", "val", "test")]
    assert sum(map(len, sets)) == 24 and len(set.union(*sets)) == 24
    assert [len(s) for s in sets] == [12, 4, 8]
    # A quarter of the cases is positive in every split.
    shares = [one.labels[parts[s], 0].mean() for s in ("train", "val", "test")]
    assert shares == pytest.approx([0.25] * 3, abs=0.01)
  assert set(found[0, 0]["test"]) != set(found[1, 0]["test"])


def test_same_seed_same_splits_and_another_seed_others():
  one, more = cohort(), {**DRAW, "repeats": 1}
  a, b = folds.draw(one, **more), folds.draw(one, **more)
  assert a[0, 1]["val"].tolist() == b[0, 1]["val"].tolist()
  c = folds.draw(one, **{**more, "seed": 1})
  assert a[0, 1]["test"].tolist() != c[0, 1]["test"].tolist()


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.3, 0.4, 0.45, 0.5])
def test_val_share_is_honoured(share):
  one = cohort(cases=80)
  parts = folds.draw(one, **{**DRAW, "repeats": 1, "val_share": share})
  for part in parts.values():
    count = {name: len(rows) for name, rows in part.items()}
    found = count["val"] / (count["train"] + count["val"])
    assert found == pytest.approx(share, abs=0.02)
    for name in ("train", "val"):
      positive = one.labels[part[name], 0].mean()
      assert positive == pytest.approx(0.25, abs=1 / len(part[name]) + 0.02)


def test_val_share_where_patients_have_many_slides():
  sizes = np.random.default_rng(0).integers(1, 9, 60)
  slides = tuple(
    CohortSlide(f"s{i}", f"p{patient}")
    for i, patient in enumerate(np.repeat(np.arange(60), sizes))
  )
  labels = (np.repeat(np.arange(60), sizes) % 3 == 0)[:, None].astype(float)
  one = Cohort(slides, labels, "binary", ("no", "yes"))
  for part in folds.draw(one, **{**DRAW, "val_share": 0.4}).values():
    count = {name: len(rows) for name, rows in part.items()}
    assert count["val"] / (count["train"] + count["val"]) == pytest.approx(
      0.4, abs=0.03
    )
    assert count["test"] / len(slides) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
  "cases, positive, k, slides",
  [
    (12, 3, 3, 1),
    (12, 3, 2, 1),
    (20, 4, 4, 1),
    (40, 5, 5, 1),
    (60, 3, 3, 1),
    (60, 3, 2, 1),
    (30, 3, 3, 2),
  ],
)
def test_few_patients_of_a_class(cases, positive, k, slides):
  """Every class is in every part where there are enough patients of it."""
  labels = np.zeros((cases * slides, 1))
  labels[-positive * slides :] = 1
  one = cohort(cases=cases, slides=slides, labels=labels)
  for seed in range(20):
    found = folds.draw(one, k, 1, 0.2, True, seed)
    for part in found.values():
      has = {n: one.labels[rows, 0].any() for n, rows in part.items()}
      tested = len(
        cases_of(one, part["test"][one.labels[part["test"], 0] == 1])
      )
      assert has["train"] and has["test"]
      assert has["val"] == (positive - tested > 1)


@pytest.mark.parametrize("k", [2, 3])
def test_a_patient_of_many_slides_leaves_room_for_the_others(k):
  """One patient has more slides than all others together."""
  many, cases = {0: 40}, 8
  slides, labels = [], []
  for case in range(cases):
    for number in range(many.get(case, 1)):
      slides.append(CohortSlide(f"s{case}-{number}", f"c{case}"))
      labels.append([float(case % 2)])
  one = Cohort(tuple(slides), np.array(labels), "binary", ("no", "yes"))
  for seed in range(20):
    found = folds.draw(one, k, 1, 0.2, True, seed)
    tested = [
      c for parts in found.values() for c in cases_of(one, parts["test"])
    ]
    assert sorted(tested) == [f"c{case}" for case in range(cases)]
    for parts in found.values():
      assert set(one.labels[parts["train"], 0]) == {0, 1}
      assert len(parts["val"])


@pytest.mark.parametrize("patients, wanted", [
  (4, "no training slide is of class .*: 2 folds leave 2 of 4 patients to "
   "train and validate on, and 2 classes need 3: add patients .6 are enough"),
  (5, "2 folds leave 2 of 5 patients .*: add patients .6 are enough"),
])  # fmt: skip
def test_too_few_patients_to_train_and_validate_say_how_many_do(
  patients, wanted
):
  """Three slides a patient, half of the patients positive."""
  labels = np.repeat(np.arange(patients) % 2, 3)[:, None].astype(float)
  one = cohort(cases=patients, slides=3, labels=labels)
  with pytest.raises(ValueError, match=wanted):
    folds.draw(one, 2, 1, 0.2, True, 0)
  labels = np.repeat(np.arange(6) % 2, 3)[:, None].astype(float)
  folds.draw(cohort(cases=6, slides=3, labels=labels), 2, 1, 0.2, True, 0)


def test_a_class_of_one_patient_names_the_remedy():
  labels = np.zeros((12, 1))
  labels[0] = 1
  one = cohort(cases=12, slides=1, labels=labels)
  for stratify in (False, True):
    with pytest.raises(ValueError, match="only one patient is of class 'yes'"):
      folds.draw(one, **{**DRAW, "stratify": stratify})


def test_written_and_read_back(tmp_path):
  one, path = cohort(), tmp_path / "splits.csv"
  found = folds.obtain(path, one, DRAW)
  lines = path.read_text().splitlines()
  assert lines[0] == "repeat,fold,slide_id,patient_id,split"
  assert len(lines) == 1 + 6 * 48
  again = folds.obtain(path, one, {**DRAW, "seed": 99})
  for key, parts in found.items():
    for split, rows in parts.items():
      assert rows.tolist() == again[key][split].tolist()


def test_a_file_that_was_written_by_hand(tmp_path):
  """In a spreadsheet, with words and names in another spelling."""
  one, path = cohort(), tmp_path / "splits.csv"
  found = folds.obtain(path, one, DRAW)
  written = path.read_bytes()
  words = {"train": "Training", "val": "validation", "test": "TEST"}
  lines = ["Fold;Repeat;Slide ID;Split"]
  for (repeat, fold), parts in found.items():
    for split, rows in parts.items():
      for row in rows:
        name = one.ids[row].upper() + ".svs"
        lines.append(f"{fold};{repeat};{name};{words[split]}")
  path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
  again = folds.obtain(path, one, DRAW)
  for key, parts in found.items():
    for split, rows in parts.items():
      assert rows.tolist() == again[key][split].tolist()
  # Whoever asks later which patients were trained on finds them.
  assert path.read_bytes() == written


def test_given_splits(tmp_path):
  place = lambda case: ("train", "val", "test")[case % 3]  # noqa: E731
  one = cohort(given=place)
  found = folds.draw(one, **{**DRAW, "repeats": 1})
  assert list(found) == [(0, 0)]
  assert cases_of(one, found[0, 0]["val"]) == {
    f"c{case:02d}" for case in range(1, 24, 3)
  }
  with pytest.raises(ValueError, match="folds.repeats = 2: all splits are"):
    folds.draw(one, **DRAW)
  # Without validation it is drawn from training, anew in each repeat.
  one = cohort(given=lambda case: "test" if case < 6 else "train")
  found = folds.draw(one, **DRAW)
  assert sorted(found) == [(0, 0), (1, 0)]
  assert found[0, 0]["test"].tolist() == found[1, 0]["test"].tolist()
  assert found[0, 0]["val"].tolist() != found[1, 0]["val"].tolist()
  assert not cases_of(one, found[0, 0]["val"]) & cases_of(
    one, found[0, 0]["train"]
  )
  with pytest.raises(ValueError, match=r"no slide is in \['test'\]"):
    folds.draw(cohort(given=lambda case: "train"), **DRAW)


def test_too_few_cases():
  with pytest.raises(ValueError, match="folds.k = 3: 5 patients are too few"):
    folds.draw(cohort(cases=5), **DRAW)
  # 8 cases, of which 0 and 4 are positive.
  with pytest.raises(ValueError, match="only 2 patients are of class 'yes'"):
    folds.draw(cohort(cases=8), **DRAW)


def test_strata_of_other_heads():
  numbers = np.arange(8.0)[:, None]
  one = cohort(cases=8, slides=1, head="regression", labels=numbers)
  assert folds.strata(one).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
  survival = np.array([[1.0, 1], [2, 0], [8, 1], [9, 0]])
  one = cohort(cases=4, slides=1, head="survival", labels=survival)
  assert folds.strata(one).tolist() == [2, 0, 3, 1]
  marks = np.array([[0.0, 1], [0, np.nan], [0, 1], [1, 1]])
  one = cohort(cases=4, slides=1, head="multilabel", labels=marks)
  a, b, c, d = folds.strata(one)
  assert a == c and len({a, b, d}) == 3


def edited(tmp_path, change):
  path = tmp_path / "splits.csv"
  folds.obtain(path, cohort(), DRAW)
  path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
  return path


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda t: [t[0].replace("split", "part"), *t[1:]], "expected the columns"),
    (lambda t: [*t, t[-1]], "is twice in repeat 1, fold 2"),
    (lambda t: [*t, "0,0,sX,cX,train"], "has slide 'sX'"),
    (lambda t: [x for x in t if ",s03," not in x], "lacks 1 slides.*'s03'"),
    (lambda t: [t[0], t[1].rsplit(",", 1)[0] + ",tain", *t[2:]], "'tain'"),
    (lambda t: [x for x in t if x[:2] != "1,"], "asks for 2 repeats of 3"),
  ],
)
def test_a_file_that_does_not_fit(tmp_path, change, words):
  path = edited(tmp_path, change)
  with pytest.raises(ValueError, match=words):
    folds.obtain(path, cohort(), DRAW)


def test_a_case_in_two_splits_of_the_file(tmp_path):
  def change(lines):
    # s00 and s01 are of case c00.
    first = lines[1].rsplit(",", 1)
    other = {"train": "test", "val": "train", "test": "train"}[first[1]]
    return [lines[0], f"{first[0]},{other}", *lines[2:]]

  path = edited(tmp_path, change)
  with pytest.raises(ValueError, match="fold 0: patient 'c00' is in"):
    folds.obtain(path, cohort(), DRAW)
