import csv

import numpy as np
import pytest

from wsiseq_jax.probe import label_table, tables
from wsiseq_jax.probe.samples import Target
from wsiseq_jax.probe.tables import Result

CLASS = Target("grade", 0, ("low", "high"))
NUMBER = Target("age", 1, ())


def result(target, seed, kind="linear", fraction=0.1, patients=10):
  rng = np.random.default_rng(seed)
  labels = np.arange(20) % 2
  prediction = labels * 0.5 + 0.8 * rng.random(20)
  if target.classes:
    prediction = np.stack([1 - prediction, prediction], axis=1)
  return Result(
    target, kind, fraction, seed, prediction, labels.astype(np.float32),
    np.arange(20) % patients, {"train_patients": 3 + seed, "chosen_k": 5.0},
  )  # fmt: skip


RESULTS = [
  result(target, seed, kind)
  for target in (CLASS, NUMBER)
  for kind in ("linear", "knn")
  for seed in range(3)
]


def read(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_mean_and_deviation_over_seeds():
  rows = {
    (r["target"], r["probe"], r["metric"]): r
    for r in tables.summarise(RESULTS, 100)
  }
  each = [
    tables.samples.scores(NUMBER, r.labels, r.prediction)["mae"][0]
    for r in RESULTS
    if r.target is NUMBER and r.kind == "knn"
  ]
  row = rows["age", "knn", "mae"]
  assert row["mean"] == pytest.approx(np.mean(each))
  assert row["std"] == pytest.approx(np.std(each, ddof=1)) and row["std"] > 0
  assert row["low"] < row["mean"] < row["high"]
  assert (row["seeds"], row["test_sequences"], row["test_patients"]) == (
    3, 20, 10,
  )  # fmt: skip


def test_fewer_patients_make_a_wider_interval():
  def width(patients):
    results = [result(NUMBER, 0, patients=patients)]
    rows = tables.summarise(results, 500)
    mae = next(r for r in rows if r["metric"] == "mae")
    return mae["high"] - mae["low"]

  assert width(20) != width(4)


def test_files(tmp_path):
  once = result(NUMBER, 0, "attentive", 1.0)
  tables.write(tmp_path, [*RESULTS, once], 50)
  rows = read(tmp_path / "probe.csv")
  # Four scores and two notes of a class, two and two of a number.
  assert len(rows) == 6 * 6 + 6 * 4 + 4
  row = next(r for r in rows if r["metric"] == "train_patients")
  assert (row["target"], row["seed"], row["value"]) == ("grade", "0", "3")
  summary = read(tmp_path / "probe_summary.csv")
  assert tuple(summary[0]) == tables.SUMMARY
  single = [r for r in summary if r["probe"] == "attentive"]
  # One seed has no deviation: an empty cell, not 0 and not "nan".
  assert {r["std"] for r in single} == {""}
  text = (tmp_path / "probe.md").read_text()
  assert "| k-NN | 10 % |" in text and "| attentive | 100 % |" in text
  line = next(x for x in text.splitlines() if x.startswith("| attentive"))
  assert "±" not in line and line.count("[") == 2
  assert "20 test sequences of 10 patients" in text
  assert (tmp_path / "probe.png").read_bytes()[:4] == b"\x89PNG"
  assert not list(tmp_path.glob("*.tmp-*"))


SPLITS = {
  # Columns: grade, age; -1 stands for unknown.
  "train": ([[0, 1], [1, 2], [1, -1]], "aab"),
  "val": ([[0, 1], [1, 5]], "cd"),
  "test": ([[0, 3], [-1, 3]], "ef"),
}


def labels():
  def table(rows):
    rows = np.array(rows, np.float32)
    return np.where(rows < 0, np.nan, rows)

  return {
    role: (table(rows), np.array(list(p))) for role, (rows, p) in SPLITS.items()
  }


def test_unknown_labels_are_counted_by_target_and_split(tmp_path):
  path = tmp_path / "labels.csv"
  label_table.write_counts(path, (CLASS, NUMBER), labels())
  found = {
    (r["target"], r["split"]): (r["sequences"], r["patients"], r["unknown"])
    for r in read(path)
  }
  assert found["grade", "train"] == ("3", "2", "0")
  assert found["age", "train"] == ("2", "1", "1")
  assert found["grade", "test"] == ("1", "1", "1")
  assert {r["kind"] for r in read(path)} == {"2 classes", "number"}


def test_targets_without_two_values_in_a_split():
  known = labels()
  with pytest.raises(
    ValueError, match="'grade' is the same .*, 'low' in the te"
  ):
    label_table.usable((CLASS,), known, must=True)
  with pytest.raises(ValueError, match="'age' is the same everywhere, 3"):
    label_table.usable((CLASS, NUMBER), known, must=False)
  known["test"][0][1] = [1, 7]
  assert label_table.usable((CLASS, NUMBER), known, False) == (CLASS, NUMBER)
  known["val"][0][:, 1] = np.nan
  with pytest.raises(ValueError, match="'age' is unknown .* in the val split"):
    label_table.usable((CLASS, NUMBER), known, must=True)


def test_what_cannot_be_probed_is_left_out_with_a_word(capsys):
  known = labels()
  known["test"][0][1, 0] = 1
  assert label_table.usable((CLASS, NUMBER), known, must=False) == (CLASS,)
  assert "left out: 'age' is the same everywhere, 3" in capsys.readouterr().err
