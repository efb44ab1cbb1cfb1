r"""Does colour alone solve the drawn cohort of labelled pictures?

    python benchmarks/pictures_colour.py            (a minute)

600 pictures of `data_prep.synthetic.pictures`, read as training reads them.
Trained on the patients of `train`, tested on those of `test`:

- the label of a picture from the mean of R, G and B over its tissue, and from
  mean and standard deviation, by logistic regression: AUROC;
- tumour in a pixel of a positive picture from its smoothed R, G and B, by the
  same and by a threshold on haematoxylin that is best on `val`: AUROC and IoU;
- beside them the IoU of calling all tissue of a positive picture tumour.

Writes `benchmarks/results/pictures_colour.json`.
"""

import dataclasses
import json
import pathlib
import tempfile

import cv2
import harness
import numpy as np
from skimage import color
from sklearn import linear_model, metrics, pipeline, preprocessing

from data_prep.pictures import prepare
from data_prep.pictures.settings import PictureSettings
from data_prep.synthetic import pictures as synthetic
from wsiseq_jax.segment.pictures import LabelledPicture, Pictures

PICTURES, SEED = 600, 0
# Sigma of the blur before a pixel's colour is taken, in um: half a nucleus.
BLUR_UM = 4.0
_RESULT = harness.ROOT / "benchmarks/results/pictures_colour.json"


def load(folder: pathlib.Path) -> dict[str, list[LabelledPicture]]:
  """Draws and prepares the cohort; its pictures by split."""
  table = synthetic.make_cohort(folder / "drawn", PICTURES, seed=SEED)
  settings = PictureSettings(
    csv=str(table), out=str(folder / "out"), mpp=1.0, workers=0
  )
  prepare.prepare_pictures(dataclasses.asdict(settings))
  found = {}
  for split in ("train", "val", "test"):
    source = Pictures(folder / "out", split)
    found[split] = [source.picture(i) for i in range(len(source))]
  return found


def regression():
  return pipeline.make_pipeline(
    preprocessing.StandardScaler(), linear_model.LogisticRegression()
  )


def of_pictures(pictures, has_spread: bool) -> float:
  """AUROC of labels from the colour of whole pictures."""

  def features(split):
    rows = []
    for one in pictures[split]:
      inside = one.pixels[one.tissue > 0].astype(float)
      spread = inside.std(0) if has_spread else []
      rows.append(np.concatenate([inside.mean(0), spread]))
    return np.array(rows), np.array([p.labels[0] for p in pictures[split]])

  model = regression().fit(*features("train"))
  x, y = features("test")
  return metrics.roc_auc_score(y, model.decision_function(x))


def positives(pictures, split):
  return [one for one in pictures[split] if one.labels[0] == 1]


def of_pixels(pictures) -> float:
  """AUROC of tumour in pixels of positive pictures, from smoothed colour."""

  def samples(split):
    rng, x, y = np.random.default_rng(0), [], []
    for one in positives(pictures, split):
      smooth = cv2.GaussianBlur(one.pixels, (0, 0), BLUR_UM)
      inside = np.flatnonzero(one.tissue)
      chosen = rng.choice(inside, min(200, len(inside)), replace=False)
      x.append(smooth.reshape(-1, 3)[chosen])
      y.append(one.truth.ravel()[chosen])
    return np.concatenate(x).astype(float), np.concatenate(y)

  model = regression().fit(*samples("train"))
  x, y = samples("test")
  return metrics.roc_auc_score(y, model.decision_function(x))


def iou(pictures, split, guess) -> float:
  """IoU of tumour over all pixels of the positive pictures of a split."""
  both = either = 0
  for one in positives(pictures, split):
    found, truth = guess(one), one.truth == 1
    both += (found & truth).sum()
    either += (found | truth).sum()
  return float(both / either)


def haematoxylin(one: LabelledPicture) -> np.ndarray:
  stain = color.rgb2hed(one.pixels)[..., 0].astype(np.float32)
  return cv2.GaussianBlur(stain, (0, 0), BLUR_UM)


def by_threshold(limit):
  return lambda one: (haematoxylin(one) > limit) & (one.tissue > 0)


def main() -> None:
  with tempfile.TemporaryDirectory(prefix="pictures_colour_") as folder:
    pictures = load(pathlib.Path(folder))
  levels = np.quantile(
    np.concatenate([haematoxylin(p).ravel() for p in pictures["val"]]),
    np.linspace(0.02, 0.98, 25),
  )
  scores = [iou(pictures, "val", by_threshold(limit)) for limit in levels]
  limit = levels[int(np.argmax(scores))]
  found = [p.truth[p.tissue > 0].mean() for p in positives(pictures, "test")]
  result = {
    "pictures": {split: len(some) for split, some in pictures.items()},
    "label_auroc": {
      "mean_rgb": of_pictures(pictures, False),
      "mean_and_std_rgb": of_pictures(pictures, True),
    },
    "pixel_auroc_rgb": of_pixels(pictures),
    "iou": {
      "stain_threshold": iou(pictures, "test", by_threshold(limit)),
      "all_tissue": iou(pictures, "test", lambda one: one.tissue > 0),
    },
    "tumour_of_tissue_in_positives": {
      "quartiles": np.quantile(found, (0.25, 0.5, 0.75)).tolist(),
      "all_over": float(np.mean(np.array(found) > 0.98)),
    },
    "machine": harness.machine(),
  }
  _RESULT.write_text(json.dumps(result, indent=1) + "\n")
  print(json.dumps(result, indent=1))


if __name__ == "__main__":
  main()
