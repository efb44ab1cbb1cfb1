"""Whose cells are, when there is no slide."""

import pathlib

from wsiseq_jax.spatial import without_slides

CELLS = {name: pathlib.Path(f"{name}.csv") for name in ("S1", "S2", "S3")}


def test_a_table_in_any_spelling(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text(
    "Slide;Patient ID;Label\ns1.svs;7.0;NA\nS1;7;\nS2;8;1\nS2;8;2\n;;\n"
  )
  found, wrong = without_slides.entries(str(path), CELLS)
  assert {k: (v.patient_id, v.label) for k, v in found.items()} == {
    "S1": ("7", None),
    "S3": ("S3", None),
  }
  # The last row does not win in silence.
  (error,) = wrong
  assert (error.slide, error.error) == ("S2", "contradicting_rows")
  assert "row 4 of t.csv and row 5 of t.csv contradict" in error.message
