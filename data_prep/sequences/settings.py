"""Checks the settings of a run before any work, and numbers the labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep import schedulers, splits
from data_prep.sequences import geometry
from data_prep.wsi import tissue
from data_prep.wsi.find import SlideEntry


def check_config(config: Mapping[str, Any]) -> geometry.Spec:
  """Checks all settings before any work is done.

  Args:
    config: the whole preparation config as plain dictionaries.

  Returns:
    The geometry.

  Raises:
    ValueError: naming the config key, the value and what is allowed.
  """

  def need(condition: bool, key: str, value: Any, want: str) -> None:
    if not condition:
      raise ValueError(f"config.{key} is {value!r}, want {want}")

  need(bool(config["slides"]), "slides", config["slides"], "slides to prepare")
  need(bool(config["out"]), "out", config["out"], "an output folder")
  schedulers.check_config(config)
  need(
    config["reader"] in ("auto", "openslide"),
    "reader",
    config["reader"],
    "'auto' or 'openslide'",
  )
  tolerance = config["mpp_tolerance"]
  need(0 <= tolerance < 1, "mpp_tolerance", tolerance, "a share from 0 to 1")
  need(
    config["default_mpp"] >= 0,
    "default_mpp",
    config["default_mpp"],
    "0 or more",
  )
  group = config["tissue"]
  need(
    group["method"] in tissue.METHODS,
    "tissue.method",
    group["method"],
    f"one of {tissue.METHODS}",
  )
  need(
    group["thumbnail_px"] >= 64,
    "tissue.thumbnail_px",
    group["thumbnail_px"],
    "at least 64",
  )
  group = config["sequence"]
  for key in ("spacing_um", "max_centres"):
    need(group[key] >= 0, f"sequence.{key}", group[key], "0 or more")
  need(
    0 < group["min_tissue"] <= 1,
    "sequence.min_tissue",
    group["min_tissue"],
    "a share above 0 and up to 1",
  )
  splits.check_fractions(config["splits"])
  return geometry.spec_from_config(config)


def class_names(
  entries: Sequence[SlideEntry], given: Sequence[str]
) -> tuple[str, ...]:
  """Lists the classes whose numbers become targets.

  Args:
    entries: the slides.
    given: `config.labels`; empty = the labels found, sorted.

  Returns:
    The classes; none if every label is a number, which is then its own target.

  Raises:
    ValueError: a slide has a label that is not among the given ones.
  """
  found = sorted({entry.label for entry in entries if entry.label})
  if given:
    unknown = [e for e in entries if e.label and e.label not in given]
    if unknown:
      raise ValueError(
        f"slide {unknown[0].slide_id!r} has label {unknown[0].label!r}, "
        f"config.labels allows {tuple(given)}"
      )
    return tuple(given)
  try:
    for label in found:
      float(label)
  except ValueError:
    return tuple(found)
  return ()


def target_of(entry: SlideEntry, classes: Sequence[str]) -> tuple[float]:
  """Returns the target of a slide: its class number, or its label's number.

  Args:
    entry: the slide.
    classes: what `class_names` returned.

  Returns:
    One number, NaN if the slide has no label.

  Example:
    >>> target_of(SlideEntry("s", "s.tiff", "p", label="b"), ("a", "b"))
    (1.0,)
  """
  if not entry.label:
    return (float("nan"),)
  if classes:
    return (float(classes.index(entry.label)),)
  return (float(entry.label),)
