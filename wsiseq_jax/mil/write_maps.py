"""maps/<slide_id>.npz: what models that did not know a slide say of its tiles.

Every tile gets the mean over these models of three numbers of one class:

- attention, of the map of that class where a model has one for each;
- contribution, in logits: what the tile adds to the slide's logit;
- probability of what the tile says by itself: the sigmoid of its logit (binary,
  multilabel), the softmax over classes (multiclass), comparable between slides.
  For a number or a risk, which have no probability, it is the sigmoid of the
  number in standard deviations above the mean: 0.5 is the mean.

The class is `config.maps.class_name`, by default the positive one of two, of
several the one that the ensemble predicts, of labels the most probable one.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_prep.files.done import Done
from wsiseq_jax import launch
from wsiseq_jax.data.bags import Bags
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.mil import results, tables
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.results import Result
from wsiseq_jax.mil.trainer import BagTrainer, values_of


def write(
  workdir: pathlib.Path,
  cohort: Cohort,
  bags: Bags,
  trainer: BagTrainer,
  found: Sequence[Result],
  models: pathlib.Path,
  class_name: str,
) -> None:
  """Writes the maps of all test slides that have tiles.

  Several processes share out the slides; all of them have to call it.
  """
  folder = workdir / "maps"
  folder.mkdir(exist_ok=True)
  mean, _, _ = tables.ensemble([tables.one_model(cohort, r) for r in found])
  testers: dict[str, list[Result]] = {}
  for result in found:
    for slide_id in result.predicted["test"].ids:
      testers.setdefault(slide_id, []).append(result)
  made_from = {r.run: results.inputs_of(models, r.run) for r in found}
  plan = []
  for place, row in enumerate(mean.rows):
    slide = cohort.slides[row]
    path = folder / f"{slide.slide_id}.npz"
    mark = folder / "done" / f"{slide.slide_id}.json"
    if not bags.ok(slide.slide_id):
      path.unlink(missing_ok=True)
      continue
    mine = testers[slide.slide_id]
    chosen = _class_number(cohort, mean.values[place], class_name)
    inputs = [bags.digest[slide.slide_id], dataclasses.astuple(slide), chosen]
    inputs += sorted(made_from[r.run] for r in mine)
    plan.append((place, slide, chosen, mine, Done(mark, inputs)))
  # Slides of the same models next to each other: these are loaded once.
  plan.sort(key=lambda one: [r.run.name for r in one[3]])
  is_done = [stage.read() is not None for *_, stage in plan]
  loaded = {}
  # Shared out whatever is done: a process that comes later sees more of it.
  for number in range(jax.process_index(), len(plan), jax.process_count()):
    if is_done[number]:
      continue
    place, slide, chosen, mine, stage = plan[number]
    if set(loaded) != {r.run for r in mine}:
      loaded = {
        r.run: trainer.put(results.load_params(models, r.run)) for r in mine
      }
    tiles = bags.read(slide.slide_id)
    outputs = trainer.explain([loaded[r.run] for r in mine], bags, tiles)
    values, threshold = mean.values[place], mean.threshold[place]
    one = _map(cohort, slide, chosen, tiles, outputs, values, threshold)
    path = folder / f"{slide.slide_id}.npz"
    stage.clear()
    one.save(path)
    stage.write({}, [path])
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("maps")
  launch.log(f"{len(plan)} maps, {sum(is_done)} of them done before")


def _class_number(cohort: Cohort, values: np.ndarray, name: str) -> int:
  """Which column of the predictions a map is of."""
  if name:
    return cohort.classes.index(name)
  return (
    len(values) - 1 if cohort.target_type == "binary" else int(values.argmax())
  )


def _map(cohort, slide, chosen, tiles, outputs, values, threshold) -> TileMap:
  """The mean of what models say of the tiles of a slide."""
  attention, probability, contribution = [], [], []
  # Of two classes there is one logit, that of the second.
  sign = -1.0 if cohort.target_type == "binary" and chosen == 0 else 1.0
  for output in outputs:
    column = 0 if output.logits.shape[0] == 1 else chosen
    of_map = column if output.attention.shape[1] > 1 else 0
    attention.append(output.attention[:, of_map])
    contribution.append(sign * output.contribution[:, column])
    logits = output.instance_logits.astype(np.float64)
    if cohort.target_type == "multiclass":
      probability.append(values_of("multiclass", logits)[:, column])
    else:
      probability.append(values_of("multilabel", sign * logits)[:, column])
  has_threshold = cohort.target_type in ("binary", "multilabel")
  return TileMap(
    slide_id=slide.slide_id,
    patient_id=slide.patient_id,
    xy=tiles.xy,
    tile_size=tiles.tile_size,
    unit=tiles.unit,
    level0_mpp=tiles.level0_mpp,
    level0_size=tiles.level0_size,
    attention=np.mean(attention, axis=0).astype(np.float32),
    probability=np.mean(probability, axis=0).astype(np.float32),
    contribution=np.mean(contribution, axis=0).astype(np.float32),
    class_name=cohort.classes[chosen],
    slide_probability=float(values[chosen]),
    threshold=float(threshold[chosen]) if has_threshold else float("nan"),
    label=slide.text or None,
  )
