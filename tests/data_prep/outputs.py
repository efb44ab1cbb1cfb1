"""What a run of preparation left, for tests."""

import csv
import pathlib

from wsiseq_jax.data import source


def rows(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def errors_of(out):
  """Rows of errors.csv as (slide or series, stage, error), sorted."""
  found = rows(out / "errors.csv")
  assert all(row["message"] for row in found)
  return sorted((r["slide_id"], r["stage"], r["code"]) for r in found)


def contents(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(pathlib.Path(folder).rglob("*"))
    if p.is_file()
  }


def records_of(out):
  """All records of a data set by sequence id, and the split of each."""
  found, split_of = {}, {}
  for split in source.split_names(out):
    reader = source.RecordSource(out, split)
    for index in range(len(reader)):
      record = reader.record(index)
      found[record.sequence_id] = record
      split_of[record.sequence_id] = split
  return found, split_of
