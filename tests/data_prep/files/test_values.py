"""Cells of tables: nothing, a number, a class, an id."""

import pytest

from data_prep.files import values


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("0,25", 0.25), ("1,5", 1.5), ("-0,5", -0.5), ("2.5e-1", 0.25),
    # A comma, or a dot and a comma, may part thousands.
    ("1,000", None), ("1.000,5", None), ("1,000.5", None),
    ("0.25 um", None), ("=0.25", None), ("1e999", None),
  ],
)  # fmt: skip
def test_numbers(text, expected):
  assert values.number(text) == expected


@pytest.mark.parametrize(
  "word",
  ["N/A", "#REF!", "#DIV/0!", "\\N", "(null)", "Missing", "n.d.", "NaT"],
)
def test_words_for_unknown(word):
  assert values.is_unknown(word)
  assert values.without_unknown([word, "x"]) == ["", "x"]
  assert values.without_unknown([word], keep=[word]) == [word]


@pytest.mark.parametrize(
  "ids",
  [
    ["7", "007"], ["P1", "p1"], ["P-1", "P_1"], ["A 01 2", "a-1-2"],
    ["1. Feb", "x"], ["Mai 12", "x"], ["12-Dec-2024", "x"],
    ["2024-02-01 00:00:00", "x"], ["1.23E+11", "x"], ["1,23E+11", "x"],
  ],
)  # fmt: skip
def test_ids_that_a_spreadsheet_spoiled(ids):
  (text,) = values.odd_ids([*ids, "", "other"])
  assert repr(ids[0]) in text


@pytest.mark.parametrize(
  "ids",
  [
    ["7", "70"], ["P1", "P11"], ["1-11", "11-1"], ["TCGA-A1-A0SB", "A0SB"],
    ["2024-02-01", "2024-02-10"], ["maria 1", "december"], ["1E5", "12"],
  ],
)  # fmt: skip
def test_ids_that_are_fine(ids):
  assert values.odd_ids(ids) == []
