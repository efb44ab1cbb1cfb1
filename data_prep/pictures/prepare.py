"""Prepares labelled pictures from a table, or tiles of slides.

The order of things, and why it survives being killed anywhere:

1. Read the table, or find the slides; everything wrong is a row of errors.csv.
2. Give new patients a split; those of slides get theirs after step 3.
3. Deal pictures into groups by patient, or take slide by slide; skip those that
   are finished, do the others; each appears complete or not at all.
4. Link the groups' files into a TFDS data set, which appears in one step, and
   write the labels beside them.

A part (`config.part`) ends after step 3.
"""

import abc
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep import groups, runs, shards, splits
from data_prep.files import atomic, done, schema, tables, values
from data_prep.files.errors import NOTE, SlideError
from data_prep.pictures import classes as class_words
from data_prep.pictures import job as picture_job
from data_prep.pictures import records as picture_records
from data_prep.pictures import report, tiles
from data_prep.pictures import table as picture_table
from data_prep.pictures.classes import Classes
from data_prep.pictures.settings import RUN_KEYS, PictureSettings
from data_prep.targets import TargetTable
from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry

Labels = tuple[float, ...]


def prepare_pictures(config: Mapping[str, Any]) -> runs.RunSummary:
  """Prepares a data set, or a part of its groups."""
  begin = time.perf_counter()
  schema.build(PictureSettings, config)
  out = pathlib.Path(config["out"])
  run = _Slides(config) if config["tiles"]["slides"] else _Table(config)
  for name in ("parts", "qc"):
    (out / name).mkdir(parents=True, exist_ok=True)
  with runs.lock(out, config["part"]):
    part, parts = runs.share(config["part"])
    if parts == 1:
      atomic.remove_temporaries(out)
    # Of slides only those that give a picture take a place in a split.
    run.assign(run.patients if run.is_early else ())
    run.work(run.jobs()[part - 1 :: parts])
    if parts > 1:
      return run.part_summary()
    return run.finish(begin)


class _Run(abc.ABC):
  """The state of a run from the plan to the finished data set."""

  made_by: Any  # module whose `process` makes a group
  is_early: bool  # whether groups are called after the splits of patients

  def __init__(self, config: Mapping[str, Any]):
    self.config, self.out = config, pathlib.Path(config["out"])
    self.classes = Classes((), {}, frozenset())
    self.errors: list[SlideError] = []
    self.patients: dict[str, str | None] = {}  # to the split that was given
    self.assignment: dict[str, str] = {}
    self.outcomes: dict[str, groups.GroupOutcome] = {}
    self.changed = False
    self.has_patients = True

  @abc.abstractmethod
  def jobs(self) -> list[picture_job.PictureJob]:
    """The work, a group of pictures each."""

  @abc.abstractmethod
  def labels(self, info: Mapping[str, Any]) -> Labels:
    """Labels of a finished picture."""

  def shaping(self) -> dict[str, Any]:
    """What shapes every picture of the data set."""
    config = {k: v for k, v in self.config.items() if k not in RUN_KEYS}
    # The same classes, whether the config or the table named them.
    return {**config, "classes": list(self.classes.names)}

  def assign(self, patients: Iterable[str]) -> None:
    """Gives patients a split."""
    for text in values.odd_ids(patients):
      tables.say(f"warning: {text}")
    path = self.out / "splits.json"
    self.assignment = splits.assign(
      patients,
      self.config["splits"],
      self.config["seed"],
      {p: split for p, split in self.patients.items() if split},
      splits.load(path),
    )
    if self.assignment:
      self.changed |= splits.save(
        path, self.assignment, self.config["splits"], self.config["seed"]
      )

  def work(self, jobs: Sequence[picture_job.PictureJob]) -> None:
    """Does all groups that are not finished."""
    self.made = jobs
    self.outcomes = groups.work(jobs, self.made_by.process)
    self.changed |= any(o.is_fresh and o.info for o in self.outcomes.values())
    self.errors += [e for o in self.outcomes.values() for e in o.errors]

  def part_summary(self) -> runs.RunSummary:
    """Says what a part did; tables are made when all are put together."""
    rows = (f"{e.slide} [{e.stage}/{e.error}] {e.message}" for e in self.errors)
    text = "\n".join([*rows, runs.part_text(self.config["part"])])
    bad = any(error.stage != NOTE for error in self.errors)
    code = runs.EXIT_SOME_FAILED if bad else runs.EXIT_GOOD
    return runs.RunSummary(self.errors, self.changed, text, code)

  def finish(self, begin: float) -> runs.RunSummary:
    """Puts the data set together, and says what was done."""
    if not self.is_early:
      found = (o.info.get("pictures") or () for o in self.outcomes.values())
      self.assign({one[0]["patient_id"] for one in found if one})
    parts, pictures = [], {split: [] for split in splits.NAMES}
    for job in sorted(self.made, key=lambda job: job.name):
      info = self.outcomes[job.name].info
      if not info.get("sequences"):
        continue
      split = self.assignment[info["pictures"][0]["patient_id"]]
      parts.append(
        shards.Part(
          job.folder / job.SHARD,
          job.name,
          split,
          info["sequences"],
          info["num_bytes"],
        )
      )
      pictures[split] += info["pictures"]
    rows = {
      one["picture_id"]: self.labels(one)
      for found in pictures.values()
      for one in found
    }
    self.errors += _never_seen(self.classes, pictures, rows)
    if parts:
      self.changed |= shards.assemble(
        self.out / "shards",
        parts,
        picture_records.PictureSchema(),
        self._metadata(pictures),
        TargetTable(picture_records.class_targets(self.classes.names), rows),
      )
      self.changed |= report.contact_sheet(
        self.out, parts, pictures, rows, self.classes
      )
    return report.finish(
      self.out,
      pictures,
      rows,
      self.classes,
      self.errors,
      changed=self.changed,
      seconds=time.perf_counter() - begin,
      has_patients=self.has_patients,
    )

  def _metadata(self, pictures: Mapping[str, list]) -> dict[str, Any]:
    """Makes the content of metadata.json; no path and no time goes in."""
    shaping = self.shaping()
    mpp = self.config["tiles"]["mpp"] if self.config["tiles"]["slides"] else 0
    return {
      "schema_version": picture_records.SCHEMA_VERSION,
      "fingerprint": shards.fingerprint(shaping),
      "mpp": mpp or self.config["mpp"] or None,
      "most_points": max(o["points"] for f in pictures.values() for o in f),
      "pictures": {
        split: picture_records.index_of(found)
        for split, found in pictures.items()
        if found
      },
      "config": shaping,
    }


class _Table(_Run):
  """Pictures of a table."""

  made_by, is_early = picture_job, True

  def __init__(self, config: Mapping[str, Any]):
    super().__init__(config)
    table = picture_table.read(config)
    self.classes, self.errors = table.classes, list(table.errors)
    self.pictures, self.has_patients = table.pictures, table.has_patients
    self.patients = {one.patient_id: one.split for one in table.pictures}
    self._labels = {one.picture_id: one.labels for one in table.pictures}

  def labels(self, info: Mapping[str, Any]) -> Labels:
    return self._labels[info["picture_id"]]

  def jobs(self) -> list[picture_job.PictureJob]:
    found: dict[str, list[picture_table.Labelled]] = {}
    for one in self.pictures:
      bucket = groups.bucket(one.patient_id, self.config["parts"])
      name = f"{self.assignment[one.patient_id]}-{bucket:04d}"
      found.setdefault(name, []).append(one)
    shaping = self.shaping()
    return [
      picture_job.PictureJob(
        name,
        tuple(members),
        self.config,
        {
          **shaping,
          "words": dict(self.classes.words),
          "part": name,
          "pictures": [_content(one) for one in members],
        },
        classes=self.classes,
      )
      for name, members in sorted(found.items())
    ]


def _content(one: picture_table.Labelled) -> dict[str, Any]:
  """What shapes a picture's record: not where its files lie."""
  files = {
    key: done.file_digest(path) if os.path.isfile(path) else path
    for key, path in (
      ("image", one.image),
      ("mask", one.mask),
      ("points", one.points),
    )
    if path
  }
  content = dataclasses.asdict(one) | files
  content["labels"] = [None if math.isnan(v) else v for v in one.labels]
  return {k: v for k, v in content.items() if k != "split"}


class _Slides(_Run):
  """Tiles of slides."""

  made_by, is_early = tiles, False

  def __init__(self, config: Mapping[str, Any]):
    super().__init__(config)
    wanted = config["tiles"]
    items, negatives = config["classes"], config["negatives"]
    found, errors = find.find_slides(
      wanted["slides"], wanted["table"], [*negatives, *items]
    )
    found, bad_names = find.usable_names(found)
    found, bad = splits.one_each(found, lambda one: one.slide_id, "slide")
    self.errors = [*errors, *bad_names, *bad]
    if not items:
      cells = [entry.label for entry in found if entry.label]
      items = class_words.found_in(cells, negatives)
    self.classes = Classes.of(items, negatives)
    if not self.classes.names:
      raise ValueError(
        "config.classes = (): no slide has a label beside config.negatives = "
        f"{negatives}"
      )
    self.slides = [entry for entry in found if self._has_label(entry)]
    given = splits.pinned(
      (e.slide_id, e.patient_id, e.split) for e in self.slides
    )
    self.patients = {e.patient_id: given.get(e.patient_id) for e in self.slides}
    ids = [entry.slide_id for entry in self.slides]
    self.drawn, twice = tiles.find_annotations(wanted["annotations"], ids)
    self.errors += twice
    left_out = {error.slide for error in twice}
    self.slides = [e for e in self.slides if e.slide_id not in left_out]

  def _has_label(self, entry: SlideEntry) -> bool:
    try:
      self._of_slide(entry.label)
    except ValueError as error:
      self.errors.append(
        SlideError(str(error), "table", "bad_label", entry.slide_id)
      )
      return False
    return True

  def _of_slide(self, label: str | None) -> Labels:
    return self.classes.labels(label or "")

  def labels(self, info: Mapping[str, Any]) -> Labels:
    wanted = self.config["tiles"]
    label = self._by_id[info["slide_id"]].label
    if wanted["labels"] == "region" and info["share"] is not None:
      return tiles.labels_of(info, self.classes, wanted["min_share"])
    labels = self._of_slide(label)
    if wanted["labels"] == "region" and 1.0 in labels:
      # Somewhere on the slide, but nobody drew where.
      return (math.nan,) * len(labels)
    return labels

  def jobs(self) -> list[picture_job.PictureJob]:
    self._by_id = {entry.slide_id: entry for entry in self.slides}
    shaping, made = self.shaping(), []
    shaping["tiles"] = {
      key: value
      for key, value in self.config["tiles"].items()
      if key not in ("slides", "table", "annotations", "labels", "min_share")
    }
    for entry in self.slides:
      path = self.drawn.get(entry.slide_id)
      try:
        slide = find.content(entry)
      except SlideError as error:
        self.errors.append(error)
        continue
      content = {
        **shaping,
        "words": dict(self.classes.words),
        "seed": self.config["seed"],
        "slide": slide,
        "drawn": path and done.file_digest(path, whole=True),
      }
      made.append(
        tiles.TileJob(
          entry.slide_id,
          (entry,),
          self.config,
          content,
          classes=self.classes,
          drawn=str(path or ""),
        )
      )
    return made


def _never_seen(
  classes: Classes,
  pictures: Mapping[str, Sequence[Mapping[str, Any]]],
  rows: Mapping[str, Labels],
) -> list[SlideError]:
  """Classes that no picture, or none to train on, is said to show."""
  errors = []
  for number, name in enumerate(classes.names):
    seen = {
      split: sum(rows[one["picture_id"]][number] == 1 for one in found)
      for split, found in pictures.items()
    }
    if any(pictures.values()) and not seen["train"]:
      where = "no picture" if not any(seen.values()) else "no training picture"
      errors.append(
        SlideError(
          f"class {name!r} is the label of {where}: nothing can learn it",
          "label",
          "class_never_seen",
          name,
        )
      )
  return errors
