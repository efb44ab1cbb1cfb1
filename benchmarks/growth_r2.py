"""How well growth rates of synthetic subjects follow from what a model may see.

python -m benchmarks.growth_r2
"""

import math
from collections.abc import Sequence

import numpy as np
from sklearn import ensemble, linear_model, model_selection, pipeline
from sklearn import preprocessing as scaling

from data_prep.synthetic import series


def time_blind_r2(subjects: Sequence[series.Subject]) -> float:
  """Measures how well growth rates follow from everything but times.

  Given are the *true* size and texture contrast at every visit, which is more
  than a model can see in the pictures.
  """
  return _r2(subjects, [_course(subject) for subject in subjects])


def time_aware_r2(subjects: Sequence[series.Subject]) -> float:
  """Measures how well growth rates follow from sizes and times."""
  rows = []
  for subject in subjects:
    slope = np.polyfit(subject.times, subject.sizes, 1)[0]
    rows.append([*_course(subject), subject.times[-1], slope])
  return _r2(subjects, rows)


def _course(subject: series.Subject) -> list[float]:
  """Sizes and contrasts, at each visit and at ten places along the course."""
  sizes, contrasts = subject.sizes, subject.contrasts
  steps = np.diff(sizes)
  place = np.linspace(0, 1, len(sizes))
  even = np.linspace(0, 1, 10)
  grown = sizes[-1] - sizes[0]
  return [
    float(len(sizes)),
    sizes[0],
    sizes[-1],
    grown,
    math.log(grown),
    steps.min(),
    steps.max(),
    contrasts[-1] - contrasts[0],
    math.log(abs(contrasts[-1] - contrasts[0]) + 1e-3),
    *np.interp(even, place, sizes),
    *np.interp(even, place, contrasts),
  ]


def _r2(
  subjects: Sequence[series.Subject], rows: Sequence[Sequence[float]]
) -> float:
  x = np.array(rows)
  y = np.array([subject.rate for subject in subjects])
  folds = model_selection.KFold(5, shuffle=True, random_state=0)
  models = (
    ensemble.ExtraTreesRegressor(
      200, min_samples_leaf=3, random_state=0, n_jobs=1
    ),
    pipeline.make_pipeline(
      scaling.StandardScaler(), linear_model.RidgeCV(np.logspace(-4, 3, 15))
    ),
  )
  return max(
    float(model_selection.cross_val_score(m, x, y, cv=folds).mean())
    for m in models
  )


if __name__ == "__main__":
  drawn = series.make_subjects(800, seed=0)
  print(f"R2 from sizes and textures {time_blind_r2(drawn):.3f}")
  print(f"R2 from sizes and times {time_aware_r2(drawn):.3f}")
