"""Tables of results as CSV files."""

import pytest

from data_prep.files import tables


def test_cells(tmp_path):
  path = tmp_path / "t.csv"
  tables.write(
    path,
    ("name", "value"),
    iter(
      [
        {"value": 1 / 3, "name": "a,b"},
        {"name": "c", "value": float("nan")},
        {"name": "d", "value": float("-inf")},
        {"value": 1234567},
      ]
    ),
  )
  assert path.read_bytes() == (
    b'name,value\n"a,b",0.333333\nc,\nd,\n,1234567\n'
  )


def test_a_table_is_there_whole_or_not_at_all(tmp_path):
  path = tmp_path / "t.csv"
  tables.write(path, ("name",), [{"name": "old"}])
  with pytest.raises(ValueError, match="other"):
    tables.write(path, ("name",), [{"name": "new"}, {"other": 1}])
  assert path.read_text() == "name\nold\n"
  assert list(tmp_path.iterdir()) == [path]


def test_an_empty_table_says_so(tmp_path):
  path = tmp_path / "t.csv"
  for content in ("", "\n\n", "\ufeff", "# remarks\n"):
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="t.csv: it is empty"):
      tables.read(path)
  path.write_text("slide,label\n")
  assert tables.read(path).rows == ()
