"""How good predictions are: the sections with numbers of the cohort's page.

Numbers of the tables are shown as `summary.csv` has them; only what is in no
table (the band of the ROC, the confusion at the threshold) is computed here, of
the same slides.
"""

import math
import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from wsiseq_jax.metrics import bootstrap
from wsiseq_jax.mil import tables
from wsiseq_jax.reports import charts, page
from wsiseq_jax.reports.page import escape
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides import slide_page
from wsiseq_jax.reports.slides.data import Predictions, Row
from wsiseq_jax.reports.slides.slide_page import Context

# Single predictions whose ROC is drawn thin; more are a grey mass.
_CURVES = 30


def address(slide_id: str) -> str:
  """Of a slide's page, seen from the cohort's.

  Example:
    >>> address("a b#1")
    'slides/a%20b%231/index.html'
  """
  return f"slides/{urllib.parse.quote(slide_id)}/index.html"


def summary_row(
  found: Predictions, of: str, name: str, metric: str
) -> Mapping[str, str] | None:
  """A row of `summary.csv`: of 'model' or 'ensemble', class ('' = all)."""
  for row in found.summary:
    if (row["of"], row["class"], row["metric"]) == (of, name, metric):
      return row
  return None


def _number(text: str) -> str:
  return f"{float(text):.3f}" if text else "–"


def cell(row: Mapping[str, str]) -> str:
  """Mean and interval of a row of `summary.csv`."""
  return (
    f"{_number(row['mean'])} [{_number(row['low'])}, {_number(row['high'])}]"
  )


def metrics(context: Context) -> str:
  """The table of all scores, and what its numbers mean."""
  found = context.predictions
  first = found.summary[0]
  rows = []
  for row in found.summary:
    if row["of"] != "model":
      continue
    name = tables.METRIC_NAMES[row["metric"]]
    of_class = f", {row['class']}" if row["class"] else ""
    whole = summary_row(found, "ensemble", row["class"], row["metric"])
    rows.append(
      (
        name + of_class,
        _number(row["mean"]),
        f"± {_number(row['std'])}" if row["std"] else "–",
        f"{_number(row['low'])} to {_number(row['high'])}",
        _number(whole["mean"]),
        f"{_number(whole['low'])} to {_number(whole['high'])}",
      )
    )
  certain = ""
  if any(row["low"] and row["low"] == row["high"] for row in found.summary):
    certain = (
      " Where every slide is right, resampling gives an interval of no length: "
      "that is no certainty."
    )
  header = (
    "", "mean", "over seeds", "95 % interval", "ensemble", "its 95 % interval",
  )  # fmt: skip
  return (
    page.table(header, rows, stack=True)
    + f"<p>{first['slides']} slides of {first['patients']} cases, "
    f"{first['failures']} of them failures, scored by what the models knew "
    f"before. Mean and deviation (±) of {first['predictions']} whole "
    "predictions (seeds, repeats): how much the start of training matters. "
    "Intervals come from resampling cases, with all their slides: how much "
    "the choice of patients matters. The ensemble is the mean prediction of a "
    f"slide over models; all charts and pages below show it.{certain}</p>"
  )


def _questions(found) -> list[tuple[str, int]]:
  """Classes that are asked for with yes or no, and their columns."""
  if found.head == "binary":
    return [(found.classes[-1], len(found.classes) - 1)]
  return [(name, j) for j, name in enumerate(found.classes)]


def _asked(found, rows, column) -> tuple[list[Row], np.ndarray, np.ndarray]:
  """Slides whose answer is known, the answers, and their probability."""
  true = report_data.truth(found, rows)[:, column]
  score = report_data.values(found, rows)[:, column]
  known = np.isfinite(true)
  kept = [row for row, k in zip(rows, known, strict=True) if k]
  return kept, true[known], score[known]


def curves(context: Context) -> str:
  """ROC and calibration of each class that is asked for."""
  found, settings = context.predictions, context.settings
  parts = []
  for name, column in _questions(found):
    rows, true, score = _asked(found, found.scored, column)
    if len(np.unique(true)) < 2:
      parts.append(
        f"<p>{escape(name)}: all slides have the same label; there is no "
        "curve.</p>"
      )
      continue
    cases = np.array([row.patient_id for row in rows])
    others = []
    for one in found.single[:_CURVES]:
      have = [i for i, row in enumerate(rows) if row.slide_id in one]
      scores = np.array([one[rows[i].slide_id][column] for i in have])
      if len(np.unique(true[have])) > 1:
        others.append((true[have], scores))
    roc = charts.roc_chart(
      name, true, score, cases, others, settings["resamples"],
      _point(context, rows, true, score, name),
    )  # fmt: skip
    chart, bins = charts.reliability_chart(
      name, true, score, cases, settings["bins"]
    )
    auroc = _of_class(found, name, "auroc")
    ece = _of_class(found, name, "ece")
    parts.append(
      f'<div class="charts"><div><h3>ROC: {escape(name)}</h3>'
      + page.figure(
        roc,
        f"Thick: the ensemble{auroc}; band: 95 % interval at each point, from "
        f"resampling {len(set(cases.tolist()))} cases. Thin: "
        f"{len(others)} single predictions (seeds, repeats)."
        + _dot_words(found),
        "chart",
      )
      + f"</div><div><h3>Calibration: {escape(name)}</h3>"
      + page.figure(
        chart,
        f"Dots: slides in {settings['bins']} equally wide bins of predicted "
        f"probability; a larger dot has more of {len(rows)} slides. Bars: 95 % "
        "intervals (Wilson's) that count cases, not slides. On the dotted line "
        f"probabilities are what they say{ece}.",
        "chart",
      )
      + "</div></div>"
      + _bin_table(bins)
    )
  return "".join(parts)


def _dot_words(found) -> str:
  if found.head == "multiclass":
    return ""
  return " Dot: at the decision threshold."


def _of_class(found, name, metric) -> str:
  row = summary_row(found, "ensemble", name, metric)
  row = row or summary_row(found, "ensemble", "", metric)
  if not row or (found.head != "binary" and row["class"] != name):
    return ""
  return f", {tables.METRIC_NAMES[metric]} {cell(row)}"


def _bin_table(bins) -> str:
  rows = [
    (count, of, f"{p:.3f}", f"{o:.3f}", _interval((low, high)))
    for count, of, p, o, low, high in bins
  ]
  header = ("slides", "cases", "mean predicted", "share true", "95 % interval")
  return (
    "<details><summary>Calibration as a table</summary>"
    f"{page.table(header, rows)}</details>"
  )


def _interval(ends: tuple[float, float]) -> str:
  if not all(map(math.isfinite, ends)):
    return "–"
  return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _positive(context, rows, score, name) -> np.ndarray:
  cuts = [context.decisions.threshold_of(row, name) for row in rows]
  return score >= np.array(cuts)


def _point(context, rows, true, score, name):
  """Where the decision threshold lies on the ROC."""
  if context.predictions.head == "multiclass":
    return None
  said = _positive(context, rows, score, name)
  return said[true == 0].mean(), said[true == 1].mean()


# Decisions.


def decisions(context: Context) -> str:
  """Confusion at the threshold, slides by label, and wrong predictions."""
  found = context.predictions
  parts = [f"<p>{escape(slide_page.threshold_words(context))}</p>"]
  if found.head == "multiclass":
    parts.append(_confusion_of_classes(context))
  else:
    for name, column in _questions(found):
      parts.append(_confusion(context, name, column))
  groups = []
  if found.head == "binary":
    for label in found.classes:
      slides = [
        (row.slide_id, row.values[found.classes[-1]], address(row.slide_id))
        for row in found.scored
        if row.label == label
      ]
      groups.append((label, slides))
    cuts = [
      context.decisions.threshold_of(row, found.classes[-1])
      for row in found.scored
    ]
    same = max(cuts) - min(cuts) < 5e-4
    chart = charts.dots_chart(
      "Slides by label and probability", groups,
      f"probability of {found.classes[-1]}", float(np.mean(cuts)),
    )  # fmt: skip
    threshold = (
      f"Dashed: the decision threshold, {np.mean(cuts):.3f}."
      if same
      else f"Dashed: the mean of the thresholds, {np.mean(cuts):.3f}; they "
      f"differ by the models that tested a slide, {min(cuts):.3f} to "
      f"{max(cuts):.3f}."
    )
    parts.append("<h3>Slides by label</h3>")
    parts.append(
      page.figure(
        chart,
        f"Each dot is a slide and leads to its page. {threshold}",
        "chart small",
      )
    )
  wrong = [
    row
    for row in found.scored
    if context.decisions.is_right(found, row) is False
  ]
  parts.append("<h3>Predictions that differ from the label</h3>")
  if wrong:
    links = "".join(
      f'<li><a href="{address(row.slide_id)}">{escape(row.slide_id)}</a>: '
      f"{slide_page.verdict(row, context)}</li>"
      for row in sorted(wrong, key=lambda row: row.slide_id)
    )
    parts.append(f"<p>Labels can be wrong, too.</p><ul>{links}</ul>")
  else:
    parts.append("<p>None.</p>")
  return "".join(parts)


def rates(
  true: Float[np.ndarray, " n"],
  said: Float[np.ndarray, " n"],
  weights: Float[np.ndarray, "r n"],
) -> dict[str, Float[np.ndarray, " r"]]:
  """Sensitivity, specificity and predictive values of yes-or-no answers.

  Args:
    true: 0 or 1.
    said: 0 or 1.
    weights: one row a resample.

  Returns:
    One value for each row of weights, NaN where it has none.

  Example:
    >>> found = rates(np.array([1., 1, 0, 0]), np.array([1., 0, 0, 0]),
    ...               np.ones((1, 4)))
    >>> {name: value.round(2).tolist() for name, value in found.items()}
    {'sensitivity': [0.5], 'specificity': [1.0], 'PPV': [1.0], 'NPV': [0.67]}
  """

  def share(right, of) -> np.ndarray:
    total = weights @ of
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.where(total > 0, weights @ (right * of) / total, np.nan)

  return {
    "sensitivity": share(said, true),
    "specificity": share(1 - said, 1 - true),
    "PPV": share(true, said),
    "NPV": share(1 - true, 1 - said),
  }


def _confusion(context: Context, name: str, column: int) -> str:
  found = context.predictions
  rows, true, score = _asked(found, found.scored, column)
  said = _positive(context, rows, score, name).astype(float)
  count = {
    (t, s): int(((true == t) & (said == s)).sum())
    for t in (0, 1)
    for s in (0, 1)
  }
  other = f"not {name}" if found.head == "multilabel" else found.classes[0]
  table = _matrix(
    (other, name), [[count[t, s] for s in (0, 1)] for t in (0, 1)]
  )
  cases = np.array([row.patient_id for row in rows])
  ends = bootstrap.intervals(
    lambda weights: rates(true, said, weights),
    cases,
    context.settings["resamples"],
  )
  plain = rates(true, said, np.ones((1, len(true))))
  lines = [
    (
      rate,
      f"{value[0]:.3f}" if math.isfinite(value[0]) else "–",
      _interval(ends[rate]),
    )
    for rate, value in plain.items()
  ]
  share = true.mean() if len(true) else math.nan
  return (
    f'<h3>{escape(name)}</h3><div class="charts"><div>{table}</div><div>'
    + page.table(("", "ensemble", "95 % interval"), lines)
    + '</div></div><p class="soft">PPV and NPV hold where as many slides are '
    f"{escape(name)} as here, {share:.0%}; that is rarely so elsewhere.</p>"
  )


def _confusion_of_classes(context: Context) -> str:
  found = context.predictions
  names = found.classes
  number = {name: i for i, name in enumerate(names)}
  counts = np.zeros((len(names), len(names)), int)
  for row in found.scored:
    predicted = context.decisions.predicted(found, row)
    counts[number[row.label], number[predicted]] += 1
  return _matrix(names, counts.tolist())


def _matrix(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
  head = "".join(f"<th>predicted {escape(name)}</th>" for name in names)
  body = "".join(
    f"<tr><th>label {escape(name)}</th>"
    + "".join(f'<td class="num">{count}</td>' for count in line)
    + "</tr>"
    for name, line in zip(names, counts, strict=True)
  )
  return (
    '<div class="scroll"><table class="confusion"><thead><tr><th></th>'
    f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
  )


def numbers(context: Context) -> str:
  """True against predicted numbers."""
  found = context.predictions
  true = report_data.truth(found, found.scored)[:, 0]
  said = report_data.values(found, found.scored)[:, 0]
  known = np.isfinite(true)
  if not known.any():
    return (
      "<p>Labels are times and events: there is no number to compare the "
      "predicted risk with. See the concordance above.</p>"
    )
  chart = charts.scatter_chart(true[known], said[known])
  return page.figure(
    chart,
    f"{known.sum()} slides; the dotted line is where both are the same.",
    "chart",
  )
