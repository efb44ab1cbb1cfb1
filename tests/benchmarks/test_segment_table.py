"""The table of segmentation: names, runs, paired differences by hand."""

import argparse
import importlib
import sys

import pytest

from configs import segment as segment_config
from wsiseq_jax.segment import settings
from wsiseq_jax.segment.methods import METHODS


@pytest.fixture(scope="module")
def table(repo_root):
  sys.path.insert(0, str(repo_root / "benchmarks"))
  yield importlib.import_module("segment_table")
  sys.path.remove(str(repo_root / "benchmarks"))


def test_differences_are_of_the_same_seed(table):
  rows = [
    {"seed": s, "scores": {table.ALL_TISSUE: {"miou": a}, "x/s/": {"miou": b}}}
    for s, a, b in ((0, 0.1, 0.3), (1, 0.5, 0.9), (2, 0.2, 0.5))
  ]
  rows += [{"seed": 7, "scores": {"x/s/": {"miou": 0.7}}}]
  found = table.summary(rows)
  assert found["results"]["x/s/"]["miou"]["n"] == 4
  gap = found["differences"][table.ALL_TISSUE]["x/s/"]["miou"]
  assert gap["n"] == 3 and gap["mean"] == pytest.approx(0.3)
  # 4.303 is Student's t of two degrees of freedom, 0.1 the deviation.
  half = 4.303 * 0.1 / 3**0.5
  assert gap["interval"] == pytest.approx([0.3 - half, 0.3 + half], abs=1e-3)
  assert all(one == {} for one in found["hypotheses"].values())


def test_intervals_that_do_not_overlap(table):
  def of(low, high):
    return {"miou": {"mean": 0.5, "interval": [low, high]}}

  results = {
    "bar": of(0.1, 0.4),
    "touches": of(0.4, 0.6),
    "above": of(0.41, 0.6),
    "one seed": {"miou": {"mean": 0.9}},
  }
  assert table.clearly_better(results, "bar") == ["above"]
  assert table.clearly_better(results, "one seed") == []
  assert table.clearly_better(results, "not run") == []


def test_a_gain_is_a_difference_of_differences(table):
  name = next(n for n in table.HYPOTHESES if n.startswith("6"))
  added, taken = table.HYPOTHESES[name]
  values = dict(zip((*added, *taken), (0.9, 0.4, 0.5, 0.3), strict=True))
  scores = {key: {"miou": value} for key, value in values.items()}
  found = table.summary([{"seed": 0, "scores": scores}])
  assert found["hypotheses"][name]["miou"]["mean"] == pytest.approx(0.5)


def test_every_variant_is_a_config_and_every_row_is_made(table):
  args = argparse.Namespace(weights="resnet50.pth", px=128)
  made = {table.ALL_TISSUE, table.STAIN}
  for name, variant in table.VARIANTS.items():
    assert variant.method in METHODS
    config = segment_config.get_config(f"{variant.method},demo").unlock()
    config.update({"workdir": "out"})
    config.data.path = "data"
    for key, value in table.settings_of(args, name, 3).items():
      *blocks, last = key.split(".")
      block = config
      for one in blocks:
        block = block[one]
      was = block[last]
      block[last] = eval(value) if isinstance(was, tuple) else value
    for stage in settings.read(config).chain():
      for reading in stage.readings:
        made.add(table.key_of(name, f"{stage.name}/{reading.name}"))
  wanted = {k for sides in table.HYPOTHESES.values() for s in sides for k in s}
  assert {*wanted, *table.BARS} <= made
