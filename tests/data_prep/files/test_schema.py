import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import DIFFERENT, FILLED, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folds:
  k: Annotated[int, Range(2)] = 5
  share: Annotated[float, Range(0.01, 0.5)] = 0.2
  by: Literal["patient", "slide"] = "patient"
  seeds: Annotated[tuple[int, ...], Range(0), DIFFERENT, FILLED] = (0,)
  image_px: Annotated[tuple[int, int], Range(1)] = (2, 3)
  rate: Annotated[float | None, Range(above=0)] = None
  splits: Mapping[str, float] = dataclasses.field(default_factory=dict)
  column: str

  def __post_init__(self):
    if self.by == "slide" and self.k > 9:
      raise ValueError(f"config.folds.k = {self.k}: must be below 10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  folds: Folds
  is_final: bool = False


def problems(**folds) -> str:
  with pytest.raises(ValueError, match="bad config") as caught:
    schema.build(Config, {"folds": {"column": "c", **folds}})
  return str(caught.value)


def test_missing_keys_take_defaults_and_lists_become_tuples():
  block = {"column": "c", "image_px": [4, 5], "share": 0.5, "rate": 1}
  built = schema.build(Config, ConfigDict({"folds": block}))
  assert built.folds == Folds(column="c", image_px=(4, 5), share=0.5, rate=1.0)
  assert isinstance(built.folds.rate, float)


@pytest.mark.parametrize(
  ("key", "value", "wanted"),
  [
    ("k", 1, "a whole number, 2 or more"),
    ("k", True, "a whole number"),
    ("k", 2.0, "a whole number"),
    ("share", float("nan"), "a number, from 0.01 to 0.5"),
    ("rate", float("inf"), "a number or None, above 0"),
    ("rate", 0, "above 0"),
    ("by", "patent", "one of 'patient', 'slide'"),
    ("seeds", (), "not empty"),
    ("seeds", (1, 1), "all different"),
    ("image_px", (1,), "a tuple of 2, each a whole number, 1 or more"),
    ("image_px", (0, 1), "1 or more"),
    ("splits", {"a": "b"}, "a block of keys"),
    ("column", 3, "a string"),
  ],
)
def test_bad_value(key, value, wanted):
  text = problems(**{key: value})
  assert f"config.folds.{key} = {value!r}: must be" in text
  assert wanted in text


def test_all_problems_at_once():
  with pytest.raises(ValueError) as caught:
    schema.build(Config, {"folds": {"k": 1, "shaer": 0.1}, "is_final": 1})
  assert [
    line.split(":")[0].strip() for line in str(caught.value).split("\n")
  ] == [
    "bad config",
    "config.folds.k = 1",
    "config.folds.shaer = 0.1",
    "config.folds.column",
    "config.is_final = 1",
  ]
  assert "did you mean 'share'?" in str(caught.value)


def test_rules_between_fields_are_told_beside_others():
  assert "config.folds.k = 12: must be below 10" in problems(by="slide", k=12)


def test_a_missing_block_is_asked_for_its_keys():
  with pytest.raises(ValueError, match="config.folds.column: missing"):
    schema.build(Config, {})
  with pytest.raises(ValueError, match="config.folds = 3: must be a block"):
    schema.build(Config, {"folds": 3})
