"""A chain of stages: what is done, what is done again, what is kept."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from tests.segment import small_job
from wsiseq_jax import launch
from wsiseq_jax.segment import job, stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writes:
  """Notes that it ran, and stops if its folder says so."""

  name: ClassVar[str] = "writes"
  readings: ClassVar[tuple] = ()
  value: int = 1

  def run(self, context):
    folder = context.folder(self.name)
    (folder / "half.txt").write_text("done")
    if not (folder / "other.txt").exists() and self.value < 0:
      (folder / "other.txt").write_text("second time")
      raise launch.Stopped("stopped")
    context.log.append((self.name, self.value))
    return {"value": self.value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reads:
  """Reads the facts of the stage before."""

  name: ClassVar[str] = "reads"
  readings: ClassVar[tuple] = ()

  def run(self, context):
    before = context.before(self.name)
    context.log.append((self.name, context.facts(before)["value"]))
    return {}


@pytest.fixture
def context(tmp_path):
  found = job.prepare(small_job.config(tmp_path, "cam,smoke"))
  found = dataclasses.replace(found, chain=("writes", "reads"))
  object.__setattr__(found, "log", [])
  return found


def chain(value=1):
  return (Writes(value=value), Reads())


def test_what_is_done_is_not_done_again(context):
  for _ in range(2):
    stage.run_chain(chain(), context, {"data": 1})
  assert context.log == [("writes", 1), ("reads", 1)]


@pytest.mark.parametrize(
  ("value", "data", "again"),
  [(2, 1, ["writes", "reads"]), (1, 2, ["writes", "reads"])],
)
def test_another_setting_or_data_empties_folders(context, value, data, again):
  stage.run_chain(chain(), context, {"data": 1})
  old = context.folder("reads") / "old.txt"
  old.write_text("of the first run")
  context.log.clear()
  stage.run_chain(chain(value), context, {"data": data})
  assert [name for name, _ in context.log] == again and not old.exists()


def test_a_stage_that_was_stopped_finds_what_it_wrote(context):
  with pytest.raises(launch.Stopped):
    stage.run_chain(chain(-1), context, {})
  assert context.log == []
  stage.run_chain(chain(-1), context, {})
  assert context.log == [("writes", -1), ("reads", -1)]
  assert (context.folder("writes") / "other.txt").exists()


def test_the_stage_before(context):
  assert context.before("reads") == "writes" and context.before("writes") == ""


def test_parameters_come_back_whatever_layers_are_called(context):
  params = {
    "backbone": {"layer1/0/conv1": {"kernel": np.ones((1, 2), np.float32)}},
    "head": {"out": {"bias": np.zeros(3, np.float32)}},
  }
  assert not context.has_params("writes")
  context.save_params("writes", params)
  found = context.params("writes")
  np.testing.assert_array_equal(
    found["backbone"]["layer1/0/conv1"]["kernel"], np.ones((1, 2))
  )
  # A backbone that does not learn has none.
  context.save_params("writes", {"backbone": {}, "head": params["head"]})
  assert context.params("writes")["backbone"] == {}
  assert set(context.params("writes")["head"]) == {"out"}


def test_facts_of_a_stage_that_is_not_done(context):
  with pytest.raises(ValueError, match="not the mark of a stage"):
    context.facts("reads")
