"""Truth, tiles and scores for `mil_lymph_nodes.py`."""

import csv
import dataclasses

import cv2
import harness
import numpy as np
import tifffile
from sklearn import (
  linear_model,
  metrics,
  model_selection,
  pipeline,
  preprocessing,
)

from data_prep.synthetic import slides as synthetic
from data_prep.synthetic.lymph import truth as truths
from data_prep.wsi import annotations
from wsiseq_jax.data import tile_features
from wsiseq_jax.maps import detections
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.metrics import froc
from wsiseq_jax.metrics import lesions as lesion_masks

RADIUS_UM = 170.0  # between detections; lesions are as far apart
LEAST_TUMOUR = 0.25  # of a tumour tile
TOP = 5  # tiles that make a slide, where tiles are told
KINDS = ("macro", "micro", "itc")


def describe_tiles(work, like):
  """Mean colour and texture of the tiles of another encoder's files.

  Writes mean colour as feature files, and texture as an npz for the probe.
  """
  colour, texture = work / "raw" / "colour" / "features", work / "texture"
  for folder in (colour, texture):
    folder.mkdir(parents=True, exist_ok=True)
  filters = np.random.default_rng(0).standard_normal((32, 7, 7))
  filters -= filters.mean((1, 2), keepdims=True)
  filters /= np.sqrt((filters**2).sum((1, 2), keepdims=True))
  for name, path in tile_features.find(like).items():
    if (texture / f"{name}.npy").exists():
      continue
    tiles = tile_features.read(path)
    picture = tifffile.imread(work / "slides" / f"{name}.tiff", key=0)
    side = round(tiles.tile_size)
    means, found = [], []
    for x, y in np.round(tiles.xy).astype(int).tolist():
      tile = picture[y : y + side, x : x + side]
      means.append(tile.reshape(-1, 3).mean(0))
      found.append(_texture(tile, filters))
    tile_features.write(
      colour / f"{name}.h5",
      dataclasses.replace(
        tiles, features=np.array(means, np.float32), encoder="mean colour"
      ),
    )
    np.save(texture / f"{name}.npy", np.array(found, np.float32))
  return colour, texture


def _texture(tile, filters):
  grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
  grey = cv2.resize(grey, (94, 94), interpolation=cv2.INTER_AREA)
  grey = (grey - grey.mean()) / (grey.std() + 1.0)
  found = []
  for one in filters:
    answer = cv2.filter2D(grey, -1, one)
    found += [np.abs(answer).mean(), answer.std()]
  slope = np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1))
  return found + list(np.histogram(slope, 12, (0, 6))[0] / grey.size)


@dataclasses.dataclass
class Known:
  """The truth of a slide: its row, lesions, and the share of given tiles."""

  row: dict
  truth: synthetic.Truth
  lesions: lesion_masks.Lesions

  def share(self, tiles):
    """Share of tumour of tiles of a map or a feature file."""
    return truths.tumour_share(self.truth, tiles.xy, tiles.tile_size)


def read_truth(work):
  """What is known of every slide."""
  found = {}
  with open(work / "slides" / "slides.csv") as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    name, slides = row["slide_id"], work / "slides"
    truth = synthetic.Truth.load(slides / "truth" / f"{name}.npz")
    with tifffile.TiffFile(slides / row["filename"]) as file:
      height, width = file.pages[0].shape[:2]
    tumour = annotations.draw(
      annotations.read(slides / "annotations" / f"{name}.xml"),
      (width, height),
      truth.downsample,
    )
    lesions = lesion_masks.find_lesions(
      tumour, level0_mpp=truth.mpp, downsample=truth.downsample
    )
    found[name] = Known(row, truth, lesions)
  return found


def probe_tiles(known, folders, texture):
  """AUROC of tumour tiles for regressions that are told which they are.

  Args:
    known: the truth by slide.
    folders: feature files by name; 'mean colour' is also tried with squares.
    texture: folder of what `describe_tiles` wrote.
  """
  found = {}
  for name, folder in folders.items():
    x, labels, patients = [], [], []
    described = []
    for slide, path in tile_features.find(folder).items():
      tiles = tile_features.read(path)
      share = known[slide].share(tiles)
      use = (share == 0) | (share >= LEAST_TUMOUR)
      labels.append(share[use] > 0)
      patients += [known[slide].row["patient_id"]] * int(use.sum())
      x.append(tiles.features[use])
      if name == "mean colour":
        described.append(np.load(texture / f"{slide}.npy")[use])
    x, labels = np.concatenate(x), np.concatenate(labels)
    found[name] = _probe(x, labels, patients)
    if described:
      squares = preprocessing.PolynomialFeatures(2, include_bias=False)
      squares = squares.fit_transform(x.astype(np.float64))
      found[f"{name} and squares"] = _probe(squares, labels, patients)
      found["texture"] = _probe(np.concatenate(described), labels, patients)
      found["tiles"], found["tumour_tiles"] = len(labels), int(labels.sum())
  return found


def _regression():
  return pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(
      C=0.1, max_iter=500, class_weight="balanced"
    ),
  )


def _probe(x, labels, patients):
  answer = model_selection.cross_val_predict(
    _regression(), x.astype(np.float64), labels, groups=patients,
    cv=model_selection.GroupKFold(5), method="decision_function",
  )  # fmt: skip
  return round(float(metrics.roc_auc_score(labels, answer)), 4)


def score(known, probability, tile_maps):
  """Scores of one seed: probability by slide, maps by slide."""
  names = sorted(known)
  label = np.array([known[n].row["label"] == "tumor" for n in names])
  kind = np.array([known[n].row["metastasis"] for n in names])
  value = np.array([probability[n] for n in names])
  found = {"slide_auroc": metrics.roc_auc_score(label, value)}
  for one in KINDS:
    use = ~label | (kind == one)
    if (kind == one).any():
      found[f"{one}_auroc"] = metrics.roc_auc_score(label[use], value[use])
  hits, shares, said = [], [], []
  for name in names:
    points, xy = np.zeros(0), np.zeros((0, 2))
    if name in tile_maps:
      one = tile_maps[name]
      found_points = detections.detect(one, threshold=0.0, radius_um=RADIUS_UM)
      points, xy = found_points.probability, found_points.xy
      shares.append(known[name].share(one.in_level0()))
      said.append(one.probability)
    case = known[name].row["patient_id"]
    hits.append(froc.hits(name, case, points, xy, known[name].lesions))
  curve = froc.froc(hits)
  found["froc"] = curve.score
  found["froc_note"] = curve.note()
  shares, said = np.concatenate(shares), np.concatenate(said)
  use = (shares == 0) | (shares >= LEAST_TUMOUR)
  found["tile_auroc"] = metrics.roc_auc_score(shares[use] > 0, said[use])
  return found


def oracle(known, like):
  """Scores of the truth about tiles, the most that can be had."""
  shares = {
    slide: known[slide].share(tile_features.read(path))
    for slide, path in tile_features.find(like).items()
  }
  best = {slide: float(share.max()) for slide, share in shares.items()}
  return score(known, best, _maps(known, like, shares))


def chance(known, like, seed):
  """Scores of one who draws a number for each tile."""
  rng = np.random.default_rng(seed)
  said = {
    slide: rng.random(tile_features.header(path).tiles)
    for slide, path in tile_features.find(like).items()
  }
  best = {slide: float(p.max()) for slide, p in said.items()}
  return score(known, best, _maps(known, like, said))


def told_every_tile(known, folder):
  """Scores of a logistic regression that learns from the labels of tiles.

  What the features hold, where labels of slides are not the limit. Patients
  are left out in five parts; a slide is the mean of its `TOP` highest tiles.

  Args:
    known: the truth by slide.
    folder: feature files.
  """
  slides, x, shares, patients = [], [], [], []
  for slide, path in tile_features.find(folder).items():
    tiles = tile_features.read(path)
    slides += [slide] * len(tiles.features)
    x.append(tiles.features)
    shares.append(known[slide].share(tiles))
    patients += [known[slide].row["patient_id"]] * len(tiles.features)
  slides, x = np.array(slides), np.concatenate(x).astype(np.float64)
  shares = np.concatenate(shares)
  clear = (shares == 0) | (shares >= LEAST_TUMOUR)
  answer = np.zeros(len(x))
  folds = model_selection.GroupKFold(5).split(x, groups=patients)
  for train, test in folds:
    train = train[clear[train]]
    model = _regression().fit(x[train], shares[train] > 0)
    answer[test] = model.predict_proba(x[test])[:, 1]
  said = {slide: answer[slides == slide] for slide in np.unique(slides)}
  best = {slide: np.sort(p)[-TOP:].mean() for slide, p in said.items()}
  return score(known, best, _maps(known, folder, said))


def _maps(known, folder, said):
  """Maps of what is said of each tile, by slide."""
  found = {}
  for slide, path in tile_features.find(folder).items():
    tiles, values = tile_features.read(path), said[slide]
    found[slide] = TileMap(
      slide_id=slide,
      patient_id=known[slide].row["patient_id"],
      xy=tiles.xy,
      tile_size=tiles.tile_size,
      unit=tiles.unit,
      level0_mpp=tiles.level0_mpp,
      level0_size=tiles.level0_size,
      attention=values,
      probability=values,
      contribution=values,
      class_name="tumor",
      slide_probability=float(values.max()),
      threshold=0.0,
      label=known[slide].row["label"],
    )
  return found


def summarise(scores):
  """Mean and deviation over seeds of every score."""
  found = {}
  for key in scores[0]:
    values = [s[key] for s in scores]
    if isinstance(values[0], str):
      found[key] = values[0]
      continue
    found[key] = harness.mean_std(values, digits=4)
  return found


def table(rows):
  """The result in Markdown."""
  columns = (
    "slide_auroc",
    *(f"{k}_auroc" for k in KINDS),
    "froc",
    "tile_auroc",
  )
  lines = [
    "| features | model | slide AUROC | macro | micro | itc | FROC "
    "| tile AUROC |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    cells = []
    for column in columns:
      value = row["scores"].get(column)
      cells.append(harness.show(value) if value else "-")
    lines.append(
      f"| {row['features']} | {row['model']} | {' | '.join(cells)} |"
    )
  return "\n".join(lines) + "\n"
