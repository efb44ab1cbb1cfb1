import pytest

from data_prep import splits

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def count(assignment):
  values = list(assignment.values())
  return {name: values.count(name) for name in splits.NAMES}


def test_shares_are_met():
  patients = [f"p{i}" for i in range(100)]
  assert count(splits.assign(patients, SHARES, 0, {}, {})) == {
    "train": 80,
    "val": 10,
    "test": 10,
  }


def test_seed_decides_and_order_does_not():
  patients = [f"p{i}" for i in range(30)]
  first = splits.assign(patients, SHARES, 0, {}, {})
  assert splits.assign(patients[::-1], SHARES, 0, {}, {}) == first
  assert splits.assign(patients, SHARES, 1, {}, {}) != first


@pytest.mark.parametrize(
  ("patients", "want"),
  [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (6, (4, 1, 1))],
)
def test_few_patients_fill_the_splits(patients, want):
  names = [f"p{i}" for i in range(patients)]
  got = count(splits.assign(names, SHARES, 0, {}, {}))
  assert tuple(got[name] for name in splits.NAMES) == want


def test_a_split_not_asked_for_stays_empty():
  got = splits.assign("abcdef", {"train": 0.5, "val": 0.5}, 0, {}, {})
  assert count(got) == {"train": 3, "val": 3, "test": 0}


def test_more_patients_extend_and_never_move():
  first = splits.assign([f"p{i}" for i in range(10)], SHARES, 0, {}, {})
  more = [f"p{i}" for i in range(5, 60)]
  second = splits.assign(more, SHARES, 0, {}, first)
  assert {p: second[p] for p in first} == first
  assert count(second) == {"train": 48, "val": 6, "test": 6}


def test_given_wins_and_counts():
  given = {"p0": "test", "p1": "test"}
  got = splits.assign([f"p{i}" for i in range(10)], SHARES, 0, given, {})
  assert got["p0"] == got["p1"] == "test"
  assert count(got)["test"] == 2


def test_a_patient_in_two_splits_is_named():
  slides = [("s1", "jane", "train"), ("s2", "jane", "test")]
  with pytest.raises(ValueError, match="'jane'.*'s1'.*'s2'"):
    splits.pinned(slides)
  with pytest.raises(ValueError, match="'jane'.*splits.json"):
    splits.assign(["jane"], SHARES, 0, {"jane": "test"}, {"jane": "train"})


def test_unknown_splits_and_shares_are_refused():
  with pytest.raises(ValueError, match="'s1'.*'tset'"):
    splits.pinned([("s1", "p", "tset")])
  assert splits.pinned([("s1", "p", "Validation")]) == {"p": "val"}
  with pytest.raises(ValueError, match="config.splits"):
    splits.check_fractions({"train": 0.8, "val": 0.1})
  with pytest.raises(ValueError, match="holdout"):
    splits.check_fractions({"train": 0.5, "holdout": 0.5})


def test_file_round_trip_and_damage(tmp_path):
  path = tmp_path / "splits.json"
  assert splits.load(path) == {}
  assert splits.save(path, {"p": "val"}, SHARES, 0)
  assert splits.load(path) == {"p": "val"}
  assert not splits.save(path, {"p": "val"}, SHARES, 0)
  path.write_text('["p"]')
  with pytest.raises(ValueError, match="splits file"):
    splits.load(path)
