"""The jobs `mil` and `mil_predict` in two processes say what one says."""

import pytest

from tests.mil.small_job import folder_of, make, table
from tests.multiprocess import processes
from wsiseq_jax.mil import predict, synthetic

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def flags(workdir, features, *more):
  return (
    "--config=configs/mil.py:smoke",
    f"--config.workdir={workdir}",
    f"--config.data.features={features}",
    "--config.data.batch_size=3",
    *more,
  )


def same(found, wanted, name):
  """Two tables, numbers to four digits."""
  found, wanted = table(found / name), table(wanted / name)
  assert len(found) == len(wanted)
  for ours, other in zip(found, wanted, strict=True):
    for column, text in other.items():
      try:
        assert float(ours[column]) == pytest.approx(float(text), abs=1e-4)
      except ValueError:
        assert ours[column] == text


def test_models_are_shared_out(python, finished, data, tmp_path):
  features, labels = data
  more = flags(tmp_path / "two", features, f"--config.data.table={labels}")
  codes, said = processes.run(python, tmp_path / "logs", 2, *more)
  assert codes == [0, 0], said
  assert "4 models, 0 of them done, 2 processes share them" in said
  for name in ("predictions.csv", "summary.csv", "splits.csv", "errors.csv"):
    same(tmp_path / "two", folder_of(finished), name)
  maps = {p.name for p in (folder_of(finished) / "maps").glob("*.npz")}
  assert {p.name for p in (tmp_path / "two" / "maps").glob("*.npz")} == maps


def test_slides_to_predict_are_shared_out(python, finished, tmp_path):
  # More slides than a chunk has.
  features, _ = synthetic.write(tmp_path / "others", cases=40, seed=2)
  models = f"--config.predict.models={folder_of(finished)}"
  job = "--config.job=mil_predict"
  more = flags(tmp_path / "two", features, job, models)
  codes, said = processes.run(python, tmp_path / "logs", 2, *more)
  assert codes == [0, 0], said
  assert len(list((tmp_path / "two" / "chunks").glob("*.json"))) == 2
  config = make(tmp_path / "one", data=(features, ""))
  config.job = "mil_predict"
  config.predict.models = str(folder_of(finished))
  predict.run(config)
  same(tmp_path / "two", tmp_path / "one", "predictions_slide.csv")
