"""The page of a large cohort, and names that would break a page."""

import dataclasses

import numpy as np

from data_prep.files import schema
from tests.reports.slides.report_pages import Page, configured
from wsiseq_jax.reports.slides import cohort, slide
from wsiseq_jax.reports.slides.data import Decisions, Predictions, SlideRow
from wsiseq_jax.reports.slides.draw import CARDS, SlideFigures
from wsiseq_jax.reports.slides.settings import Settings

HOSTILE = "<script>alert('s\"')</script>"


def context(rows, **changes):
  single = [{row.slide_id: tuple(row.values.values()) for row in rows}] * 5
  found = Predictions(
    "binary", ("normal", "tumour"), tuple(rows), tuple(single), (), True, ""
  )
  settings = schema.build(Settings, configured("work")).report
  rule = Decisions("given", 0.5)
  found = dataclasses.replace(found, **changes)
  return slide.Context(found, rule, settings)


def row_of(slide_id, p, label="tumour", **changes):
  values = {"normal": 1 - p, "tumour": p}
  spread = dict.fromkeys(values, 0.1)
  row = SlideRow(slide_id, f"P-{slide_id}", label, "ok", 5, values, spread,
            {"tumour": 0.5})  # fmt: skip
  return dataclasses.replace(row, **changes)


def test_five_thousand_slides(tmp_path):
  rng = np.random.default_rng(0)
  p = rng.random(5000)
  labels = np.where(rng.random(5000) < p, "tumour", "normal")
  rows = [
    row_of(f"TCGA-AB-{i:04d}-01Z-00-DX1", float(p[i]), str(labels[i]))
    for i in range(5000)
  ]
  cards = [cohort.Card(r, {name: (260, 195) for name in CARDS}) for r in rows]
  path = tmp_path / "index.html"
  cohort.write_page(path, cards, context(rows))
  assert path.stat().st_size < 5_000_000
  page = Page(path)
  assert len(page.images) == 10_000 and not page.open
  assert not any(image.startswith("data:") for image in page.images)
  # A card, a dot, and a line in the list of wrong predictions.
  wrong = [
    r for r in rows if (r.values["tumour"] >= 0.5) != (r.label[0] == "t")
  ]
  assert len(page.links) > 2 * 5000 + len(wrong)


def test_names_are_text(tmp_path):
  rows = [
    row_of(HOSTILE, 0.9, HOSTILE, status="error", reason=HOSTILE),
    row_of("b", 0.1, "normal", patient_id=HOSTILE),
  ]
  values = {"normal": 0.2, HOSTILE: 0.8}
  rows = [
    dataclasses.replace(r, values=values, threshold={HOSTILE: 0.5})
    for r in rows
  ]
  about = context(rows, classes=("normal", HOSTILE), notes=HOSTILE, single=())
  cards = [cohort.Card(row, {CARDS[0]: (26, 19)}, HOSTILE) for row in rows]
  cohort.write_page(tmp_path / "index.html", cards, about, HOSTILE)
  drawn = SlideFigures(notes=(HOSTILE,), slide_error=HOSTILE)
  slide.write_page(tmp_path / "slide.html", rows[0], drawn, about)
  slide.write_page(tmp_path / "other.html", rows[1], drawn, about)
  for path in tmp_path.iterdir():
    page = Page(path)
    assert page.tags.count("script") == 1 and not page.open, path
    assert "alert(" in page.text and HOSTILE not in path.read_text()
