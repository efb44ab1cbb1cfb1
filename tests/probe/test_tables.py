import csv

import numpy as np
import pytest

from wsiseq_jax.probe import tables
from wsiseq_jax.probe.samples import ProbeTarget
from wsiseq_jax.probe.tables import ProbeResult

CLASS = ProbeTarget("grade", 0, ("low", "high"))
NUMBER = ProbeTarget("age", 1, ())


def result(target, seed, kind="linear", fraction=0.1, patients=10):
  rng = np.random.default_rng(seed)
  labels = np.arange(20) % 2
  prediction = labels * 0.5 + 0.8 * rng.random(20)
  if target.classes:
    prediction = np.stack([1 - prediction, prediction], axis=1)
  return ProbeResult(
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


def test_mean_and_std_over_seeds():
  rows = {
    (r["target"], r["probe"], r["metric"]): r
    for r in tables.summarise(RESULTS, 100)
  }
  each = [
    r.scores()["mae"][0]
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
  # One seed has no std: an empty cell, not 0 and not "nan".
  assert {r["std"] for r in single} == {""}
  text = (tmp_path / "probe.md").read_text()
  assert "| k-NN | 10 % |" in text and "| attentive | 100 % |" in text
  line = next(x for x in text.splitlines() if x.startswith("| attentive"))
  assert "±" not in line and line.count("[") == 2
  assert "20 test sequences of 10 patients" in text
  assert (tmp_path / "probe.png").read_bytes()[:4] == b"\x89PNG"
  assert not list(tmp_path.glob("*.tmp-*"))
