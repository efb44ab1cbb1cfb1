"""Checks the settings of a run over series, and numbers the labels."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep import schedulers, splits
from data_prep.files.errors import SlideError
from data_prep.series import images, spans, table
from data_prep.series import targets as series_targets
from data_prep.series.spans import Series

TIME_UNITS = ("year", "s", "frame")
RULES = ("last", "subsample", "windows")


def check_config(config: Mapping[str, Any]) -> None:
  """Checks all settings before any work is done.

  Args:
    config: the whole preparation config as plain dictionaries.

  Raises:
    ValueError: naming the config key, the value and what is allowed.
  """

  def need(condition: bool, key: str, want: str) -> None:
    value = config
    for part in key.split("."):
      value = value[part]
    if not condition:
      raise ValueError(f"config.{key} is {value!r}, want {want}")

  def one_of(key: str, allowed: Sequence[str]) -> None:
    value = config
    for part in key.split("."):
      value = value[part]
    need(value in allowed, key, f"one of {tuple(allowed)}")

  need(bool(config["csv"]), "csv", "a CSV file")
  need(bool(config["out"]), "out", "an output folder")
  schedulers.check_config(config)
  need(config["parts"] >= 1, "parts", "at least 1")
  one_of("layout", table.LAYOUTS)
  one_of("sequences", spans.SEQUENCES)
  one_of("time_unit", TIME_UNITS)
  need(config["time_divisor"] > 0, "time_divisor", "a positive number")
  need(config["fps"] >= 0, "fps", "0 (what the files say) or more")
  rules = config["sequence"]
  one_of("sequence.rule", RULES)
  for key in ("max_frames", "stride"):
    need(rules[key] >= 0, f"sequence.{key}", "0 or more")
  need(rules["min_frames"] >= 1, "sequence.min_frames", "at least 1")
  image = config["image"]
  need(
    len(image["frame_px"]) in (1, 2) and min(image["frame_px"]) >= 1,
    "image.frame_px",
    "(height, width), or (short side,), in pixels",
  )
  one_of("image.fit", images.FITS)
  window = image["window"]
  need(
    not window or (len(window) == 2 and window[0] < window[1]),
    "image.window",
    "() or (low, high)",
  )
  low, high = image["percentiles"]
  need(0 <= low < high <= 100, "image.percentiles", "0 <= low < high <= 100")
  jpeg = config["jpeg"]
  need(1 <= jpeg["quality"] <= 100, "jpeg.quality", "1 to 100")
  one_of("jpeg.subsampling", ("420", "422", "444"))
  splits.check_fractions(config["splits"])


def values(
  series: Series,
  targets: Sequence[series_targets.Target],
  errors: list[SlideError],
) -> tuple[tuple[float, ...], ...]:
  """Returns the numbers of all labels of a series; notes the unknown ones.

  Args:
    series: the series.
    targets: the labels.
    errors: where rows are added for what is missing or no value.

  Returns:
    For each span, one number a label; NaN = unknown.
  """
  rows, missing = [], collections.Counter()
  for span in series.spans:
    row = []
    for target in targets:
      value = math.nan
      try:
        value = series_targets.encode(target, span.labels[target.name])
        missing[target.name] += math.isnan(value)
      except ValueError as error:
        errors.append(
          SlideError(
            f"{error}; stored as unknown (NaN)",
            "target",
            "bad_target",
            series.series_id,
          )
        )
      row.append(value)
    rows.append(tuple(row))
  unknown = [name for name, count in missing.items() if count]
  if unknown:
    errors.append(
      SlideError(
        f"no value for {', '.join(unknown)}: stored as unknown (NaN)",
        table.NOTE,
        "missing_target",
        series.series_id,
      )
    )
  return tuple(rows)
