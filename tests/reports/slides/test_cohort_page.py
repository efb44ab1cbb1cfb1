"""The page of the cohort, from made-up predictions."""

import shutil

import numpy as np

from data_prep.files import tables as files_tables
from tests.reports.slides.report_pages import (
  FAILED,
  Page,
  configured,
  rows_of,
  slide_folder,
  write_report,
)
from wsiseq_jax.mil import cohort as cohorts
from wsiseq_jax.mil import results, tables
from wsiseq_jax.reports.slides import data as report_data


def test_numbers_are_those_of_the_tables(made, written):
  page = Page(written.page)
  for row in rows_of(made / "predictions_slide.csv"):
    assert f"p(tumour) = {float(row['p_tumour']):.3f}" in page.text
    text = Page(slide_folder(written, row["slide_id"]) / "index.html").text
    if row["status"] == "ok":
      assert f"Probability of tumour: {float(row['p_tumour']):.3f}" in text
      assert f"{float(row['threshold']):.3f}" in text
  for row in rows_of(made / "summary.csv"):
    assert f"{float(row['mean']):.3f}" in page.text
    if row["low"]:
      assert f"{float(row['low']):.3f} to {float(row['high']):.3f}" in page.text
    if row["std"]:
      assert f"± {float(row['std']):.3f}" in page.text


def test_confusion_at_the_threshold(made, written):
  found = report_data.read(made)
  assert found.target_type == "binary" and len(found.scored) == 4
  assert len(found.single) == 2
  hits = [(r.label, r.values["tumour"] >= 0.45) for r in found.scored]
  wanted = [
    sum(hit == (label, said) for hit in hits)
    for label in ("normal", "tumour")
    for said in (False, True)
  ]
  text = written.page.read_text(encoding="utf-8")
  table = text[text.index('class="confusion"') :]
  cells = table[: table.index("</table>")].split('<td class="num">')[1:]
  assert [int(cell.split("<")[0]) for cell in cells] == wanted


def test_slides_are_in_order_and_failures_last(made, written):
  text = written.page.read_text(encoding="utf-8")
  names = [
    part.split("/", 1)[0] for part in text.split('<figure><a href="slides/')[1:]
  ]
  p = {
    row["slide_id"]: float(row["p_tumour"])
    for row in rows_of(made / "predictions_slide.csv")
  }
  assert names[-1] == FAILED
  assert names[:-1] == sorted(set(p) - {FAILED}, key=lambda name: -p[name])


ODD = "s<b>1&"


def other_head(workdir, head, classes, labels, texts, values, threshold):
  """Tables of four slides, as the job writes them; no maps."""
  slides = tuple(
    cohorts.CohortSlide(name, f"case{i}", text)
    for i, (name, text) in enumerate(
      zip((ODD, "t", "u", "v"), texts, strict=True)
    )
  )
  cohort = cohorts.Cohort(slides, np.array(labels, float), head, classes)
  found = [
    results.Result(
      results.FoldRun(0, 0, seed), 1, ((1.0, 1.0),), (0.0, 1.0),
      np.zeros(len(threshold)),
      np.array(threshold, float), True,
      {"test": results.Predicted(
        tuple(cohort.ids), np.array(values, float), ("ok",) * 4)},
    )
    for seed in range(2)
  ]  # fmt: skip
  workdir.mkdir()
  tables.write(
    workdir, cohort, dict.fromkeys(cohort.ids, "ok"), found, 10, 4, False
  )
  return Page(write_report(configured(workdir)).page)


def test_several_classes(tmp_path):
  page = other_head(
    tmp_path / "mil", "multiclass", ("a", "b", "c"), [[0], [1], [2], [2]],
    "abcc", [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7],
             [0.5, 0.1, 0.4]], [np.nan] * 3,
  )  # fmt: skip
  assert "predicted c" in page.text and "p(b) = 0.800" in page.text
  assert "ROC: c" in page.text and "no threshold" in page.text
  wrong = page.text[page.text.index("differ from the label") :]
  assert wrong.index("v: Probability of a: 0.500") < wrong.index("Slides")
  # A name is text, never HTML, and can be followed.
  assert ODD in page.text
  text = Page(tmp_path / "mil/report/slides" / ODD / "index.html").text
  assert "There is no map of this slide" in text


def test_several_labels(tmp_path):
  page = other_head(
    tmp_path / "mil", "multilabel", ("er", "pr"),
    [[1, 0], [0, np.nan], [1, 1], [0, 0]], ("1;0", "0;", "1;1", "0;0"),
    [[0.9, 0.2], [0.3, 0.5], [0.2, 0.7], [0.1, 0.6]], [0.5, 0.65],
  )  # fmt: skip
  found = report_data.read(tmp_path / "mil")
  rule = report_data.Decisions()
  said = {r.slide_id: rule.predicted(found, r) for r in found.rows}
  assert said == {ODD: "er", "t": "", "u": "pr", "v": ""}
  # Of an unknown label nothing is right or wrong.
  right = [rule.is_right(found, row) for row in found.rows]
  assert dict(zip(said, right, strict=True)) == {
    ODD: True, "t": True, "u": False, "v": True,
  }  # fmt: skip
  assert "ROC: pr" in page.text and "predicted not er" in page.text


def test_numbers(tmp_path):
  page = other_head(
    tmp_path / "mil", "regression", ("amount",), [[1], [2], [3], [4]],
    ("1", "2", "3", "4"), [[1.5], [2.0], [2.5], [4.5]], [np.nan],
  )  # fmt: skip
  assert "4 slides, each dot leads to its page" in page.text
  assert "R²" in page.text
  # One link of its dot, one of its card.
  assert page.links.count("slides/v/index.html") == 2


def test_slides_that_were_not_scored_are_in_no_chart(made, tmp_path):
  workdir = tmp_path / "mil"
  shutil.copytree(made, workdir, ignore=shutil.ignore_patterns("slides", "r*"))
  path = workdir / "predictions_slide.csv"
  rows = rows_of(path)
  assert [row["scored"] for row in rows] == ["1"] * 4
  files_tables.write(path, list(rows[0]), [rows[0] | {"scored": 0}, *rows[1:]])
  written = write_report(configured(workdir))
  page = Page(written.page)
  assert "4 slides have a label, 3 of them are scored" in page.text
  cells = written.page.read_text().split('class="confusion"')[1]
  cells = cells[: cells.index("</table>")].split('<td class="num">')[1:]
  assert sum(int(cell.split("<")[0]) for cell in cells) == 3
  # The failure counts like all others, the slide that was trained on does not.
  assert rows[3]["slide_id"] == FAILED and rows[3]["status"] == "no_tissue"
  text = Page(slide_folder(written, rows[0]["slide_id"]) / "index.html").text
  assert "Not scored: the models were trained on this patient" in text


def test_folds_are_one_prediction_and_applied_models_several():
  def line(slide_id, fold, split="test"):
    return {
      "slide_id": slide_id, "repeat": "0", "fold": fold, "seed": "0",
      "split": split, "p_yes": "0.5",
    }  # fmt: skip

  lines = [line("a", "0"), line("b", "1"), line("a", "1", "val")]
  read = report_data.whole_predictions
  assert [set(one) for one in read(lines, ["p_yes"])] == [{*"ab"}]
  lines.append(line("a", "1"))
  assert len(read(lines, ["p_yes"])) == 2


def test_sequence_report_beside(made, tmp_path):
  beside = tmp_path / "run" / "report"
  beside.mkdir(parents=True)
  (beside / "index.html").write_text("<html></html>")
  (beside / "report.json").write_text('{"kind": "report"}')
  workdir = tmp_path / "mil"
  shutil.copytree(
    made, workdir, ignore=shutil.ignore_patterns("slides", "maps")
  )
  shutil.rmtree(workdir / "report", ignore_errors=True)
  page = Page(write_report(configured(workdir)).page)
  assert "../../run/report/index.html" in page.links
