"""The job `mil_predict`: trained models on other slides."""

import h5py
import numpy as np
import pytest

from tests.mil.small_job import folder_of, make, table
from wsiseq_jax.data import tile_features
from wsiseq_jax.mil import predict, synthetic


@pytest.fixture(scope="module")
def others(tmp_path_factory):
  """Other slides, of other cases; three of the twelve are failures."""
  features, path = synthetic.write(
    tmp_path_factory.mktemp("others"), cases=6, seed=1
  )
  lines = path.read_text().replace("case", "new", 0).splitlines()
  lines[1:] = [line.replace("case", "new") for line in lines[1:]]
  for file in sorted(features.glob("*.h5")):
    file.rename(file.with_name(file.name.replace("slide", "other")))
  text = "\n".join(line.replace("slide0", "other0") for line in lines)
  path.write_text(text.replace("slide1", "other1") + "\n")
  with h5py.File(features / "other03.h5", "r+") as file:
    file["features"][0, 0] = np.nan
  (features / "other04.h5").unlink()
  return features, path


def apply(workdir, models, data, label="label", **changes):
  config = make(workdir, data=data, **changes)
  config.data.label = label
  config.job = "mil_predict"
  config.predict.models = str(models)
  return predict.run(config), config


def test_models_on_other_slides(finished, others, tmp_path):
  models = folder_of(finished)
  # The model's shape comes from the workdir, whatever the config says.
  summary, _ = apply(tmp_path, models, others, model={"hidden": 7})
  of = {(r["of"], r["metric"]): r for r in summary}
  assert of["ensemble", "auroc"]["mean"] > 0.85
  assert of["model", "auroc"]["predictions"] == 4
  assert of["model", "auroc"]["slides"] == 12
  assert of["model", "auroc"]["failures"] == 3
  rows = table(tmp_path / "predictions_slide.csv")
  assert {r["models"] for r in rows} == {"4"}
  assert len(list((tmp_path / "maps").glob("*.npz"))) == 9
  # No tissue, NaN, no file: rows like all others, with what was known before.
  status = {r["slide_id"]: r["status"] for r in rows}
  failed = {"other00": "no_tissue", "other03": "error", "other04": "error"}
  assert status == dict.fromkeys(status, "ok") | failed and len(status) == 12
  prior = {r["p_tumour"] for r in rows if r["slide_id"] in failed}
  assert len(prior) == 1
  assert {r["scored"] for r in rows} == {"1"}
  every = table(tmp_path / "predictions.csv")
  assert len(every) == 4 * 12 and {r["scored"] for r in every} == {"1"}
  errors = {r["slide_id"]: r["code"] for r in table(tmp_path / "errors.csv")}
  assert errors == failed
  # Without a table: the same predictions, no scores.
  folder = tmp_path / "bare"
  summary, _ = apply(folder, models, (others[0], ""), maps={"write": False})
  assert summary == [] and not (folder / "summary.csv").exists()
  bare = table(folder / "predictions_slide.csv")
  # Of a slide that neither table nor folder names nothing is known.
  assert [(r["slide_id"], r["p_tumour"]) for r in bare] == [
    (r["slide_id"], r["p_tumour"]) for r in rows if r["slide_id"] != "other04"
  ]
  assert {(r["label"], r["scored"]) for r in bare} == {("", "0")}


def test_a_slide_is_read_once_for_all_models(
  finished, others, tmp_path, monkeypatch
):
  calls, plain = [], tile_features.read

  def read(path, *more):
    calls.append(path.stem)
    return plain(path, *more)

  monkeypatch.setattr(tile_features, "read", read)
  monkeypatch.setattr(predict, "CHUNK_SLIDES", 4)
  blocks = {"maps": {"write": False}}
  apply(tmp_path, folder_of(finished), others, **blocks)
  assert len(calls) == len(set(calls)) == 10  # one is empty, one is gone
  names = ("predictions.csv", "summary.csv", "errors.csv")
  before = {name: (tmp_path / name).read_bytes() for name in names}
  # Killed after the first chunk and in the second: the others are done again.
  calls.clear()
  chunks = sorted((tmp_path / "chunks").glob("*.json"))
  assert len(chunks) == 3
  chunks[2].unlink()
  apply(tmp_path, folder_of(finished), others, **blocks)
  assert 0 < len(calls) <= 4
  assert before == {name: (tmp_path / name).read_bytes() for name in names}


def test_slides_that_were_trained_on_are_not_scored(finished, data, tmp_path):
  summary, _ = apply(tmp_path, folder_of(finished), data, maps={"write": False})
  assert summary == []
  rows = table(tmp_path / "predictions_slide.csv")
  assert len(rows) == 32 and {r["scored"] for r in rows} == {"0"}
  assert {r["label"] for r in rows} == {"normal", "tumour"}


def test_models_that_cannot_be_applied(finished, others, data, tmp_path):
  models = folder_of(finished)
  with pytest.raises(ValueError, match="is not the workdir of a finished job"):
    apply(tmp_path, tmp_path, others)
  with pytest.raises(ValueError, match="is the workdir of the models"):
    apply(models, models, others)
  with pytest.raises(ValueError, match="know the classes .*'normal'.*also has"):
    apply(tmp_path, models, others, label="kind")
