"""The job `report`: collects what the page shows, and writes it.

Needs what preparation, training and `embed` left behind. The pictures of
hidden patches are made here, with the checkpoint's own model.
"""

import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from data_prep import records
from data_prep.files import done
from wsiseq_jax import config as configs
from wsiseq_jax import evaluate, launch
from wsiseq_jax.data import loader
from wsiseq_jax.data.source import Records
from wsiseq_jax.reports import page
from wsiseq_jax.reports.sequences import comparison, sections, text
from wsiseq_jax.tasks.videomae.reconstruction import Reconstruction

# Sequences whose hidden patches are rebuilt, from different regions.
_REBUILT = 2
# Files that the page shows, of the preparation and of the run.
_OF_PREP = ("slides.csv", "series.csv", "errors.csv", "shards/metadata.json")
_OF_RUN = ("metrics.jsonl", "evaluation.json")
# Changes when pages of an older version must be written again; templates and
# style say so themselves (`page.design`).
_VERSION = 1


def run(config: ConfigDict) -> pathlib.Path:
  """Writes `<report.out>/index.html`, unless it is there and still true.

  Args:
    config: the run's config; uses `report.*`, `workdir`, `data.path`.

  Returns:
    The page.

  Raises:
    ValueError: the run was not embedded, or with another checkpoint.
  """
  loaded = evaluate.load(config)
  workdir = pathlib.Path(config.workdir)
  prep = pathlib.Path(config.report.prep or config.data.path)
  if not config.report.prep and prep.name == "shards":
    prep = prep.parent
  out = pathlib.Path(config.report.out or workdir / "report")
  index = out / "index.html"
  arrays, opened = read_embeddings(loaded, workdir)
  shown = [prep / name for name in _OF_PREP]
  shown += [workdir / name for name in _OF_RUN]
  shown += sorted((workdir / "embeddings").glob("*.npz"))
  stage = done.Done(
    out / "report.json",
    {
      "version": [_VERSION, page.design()],
      "step": loaded.step,
      "fingerprint": loaded.spec.fingerprint,
      "report": configs.to_dict(config)["report"],
      "files": {
        path.name: done.file_digest(path, whole=True)
        for path in shown
        if path.is_file()
      },
    },
  )
  if launch.agree(stage.read() is not None):
    launch.log(f"report: {index} is up to date, nothing to do")
    return index
  # The model may be spread over processes: all of them take part.
  rebuilt = _reconstructions(loaded, opened, arrays)
  compared = comparison.compare(loaded, opened, arrays)
  if not launch.is_main():
    return index
  stage.clear()
  about = text.of(loaded.config)
  sections.write_page(
    prep,
    workdir,
    out,
    arrays,
    _frames_of(opened),
    rebuilt,
    model={
      **about.facts,
      "step": f"{loaded.step} of {loaded.meta['total_steps']}",
      "code revision": (loaded.meta["revision"] or "unknown")[:10],
    },
    measures=_measures(about, workdir),
    compared=compared,
    curve=about.curve,
    settings=sections.ReportSettings(
      clusters=min(config.report.clusters, len(arrays["features"])),
      queries=config.report.queries,
    ),
    config_text=configs.to_json(loaded.config),
  )
  stage.write({"kind": "report"}, [index])
  launch.log(f"report: wrote {index}")
  return index


def read_embeddings(
  run: evaluate.Loaded, workdir: pathlib.Path
) -> tuple[dict[str, np.ndarray], list[tuple[Records, int]]]:
  """All splits' embeddings under one running index, and where records lie.

  Args:
    run: the trained model.
    workdir: where `embed` has left its files.

  Returns:
    {name: values, [n, ...]}, and the source and index in it of each row.

  Raises:
    ValueError: a split is not embedded, or was by another checkpoint.
  """
  parts, opened = [], []
  data = evaluate.find_data(run.config)
  for split in data.splits:
    file = workdir / "embeddings" / f"{split}.npz"
    if not file.is_file():
      raise ValueError(
        f"no {file}: run the same command with --config.job=embed first"
      )
    try:
      with np.load(file) as stored:
        part = {name: stored[name] for name in stored.files}
    except Exception as error:  # NumPy and zipfile raise whatever they like
      raise ValueError(
        f"{file} is damaged: {error}; run --config.job=embed again"
      ) from error
    if int(part["checkpoint_step"]) != run.step:
      raise ValueError(
        f"{file} is of step {int(part['checkpoint_step'])}, the newest "
        f"checkpoint of step {run.step}: run --config.job=embed again"
      )
    parts.append(part)
    source = data.open(split, "data.path")
    opened += [(source, int(i)) for i in part["index"]]
  names = [name for name in parts[0] if parts[0][name].ndim]
  arrays = {name: np.concatenate([p[name] for p in parts]) for name in names}
  arrays["index"] = np.arange(len(opened))
  return arrays, opened


def _frames_of(
  opened: list[tuple[Records, int]],
) -> Callable[[int, int], UInt8[np.ndarray, "n h w 3"]]:
  """(running index, n) -> n frames of the record, cut from its panels."""

  def frames_of(index: int, n: int) -> UInt8[np.ndarray, "n h w 3"]:
    source, local = opened[int(index)]
    record = source.record(local)
    panels = records.decode_panels(record)
    stored = len(record.frame_box)
    chosen = np.linspace(0, stored - 1, min(n, stored)).round().astype(int)
    cut = []
    for t in chosen:
      x, y, w, h = np.round(record.frame_box[t]).astype(int)
      cut.append(panels[record.frame_panel[t], y : y + h, x : x + w])
    return np.stack(cut)

  return frames_of


def _reconstructions(
  run: evaluate.Loaded,
  opened: list[tuple[Records, int]],
  arrays: Mapping[str, np.ndarray],
) -> list[Reconstruction]:
  """The same sequences hidden at several ratios, and rebuilt.

  They come from the evaluation split, spread over it, so that most show tissue
  that the model was not trained on; without such a split, from the training.
  A task that hides no patches has none to rebuild.
  """
  if run.task.reconstruct is None:
    return []
  wanted = run.config.data.eval_split
  rows = [i for i, (s, _) in enumerate(opened) if s.split == wanted]
  rows = rows or list(range(len(opened)))
  middle = (np.arange(_REBUILT) + 0.5) / _REBUILT * len(rows)
  rows = [rows[int(i)] for i in middle]
  batch = loader.stack([loader.load(*opened[i]) for i in rows])
  names = [str(arrays["sequence_id"][row]) for row in rows]
  found = []
  for ratio in run.config.report.mask_ratios:
    found += run.task.reconstruct(run.params, batch, names, float(ratio))
  return sorted(found, key=lambda r: (r.sequence_id, r.mask_ratio))


def _measures(
  about: text.ReportText, workdir: pathlib.Path
) -> list[tuple[str, str, str]]:
  """Results of the job `evaluate`, if it was run."""
  file = workdir / "evaluation.json"
  return about.measures(json.loads(file.read_text())) if file.is_file() else []
