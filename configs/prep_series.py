"""Preparation of image series: folders of images or videos, and a table.

  python -m data_prep --config=configs/prep_series.py \
    --config.csv=/data/visits.csv --config.out=/data/prep

`--config.csv` takes a CSV, several with commas between, or a folder with
train.csv, val.csv and test.csv; relative file names start at its folder, or at
`--config.images`. What its columns may be called, and its three layouts, are
described in `data_prep/series/table.py`; in short:

  a row is a series  id, patient, file (an array `.npy` [t, h, w] or
                     [t, h, w, c], a video, a multi-frame DICOM, a folder of
                     pictures, or several pictures with `;` between), labels
  a row is a visit   id, patient, file (one picture), time, labels
  lists              `Scan_history` and `Video`: Python lists of (path, year)

All other columns are labels: words are classes, numbers are numbers, 0 and 1
alone are two classes, empty cells are unknown. `--config.targets` chooses them
and says otherwise: `--config.targets="('grade:class', 'age:number')"`.

Presets, after a colon (`--config=configs/prep_series.py:demo`):

  (none)        128 px, all frames of a series, times in years
  video         128 px, 32 frames spread over each video, times in seconds
  demo          the set of `python -m data_prep.synthetic.series`: 48 px; the
                same under the name `synthetic`
  smoke         the same in 32 px, one process, for tests
  tvrl_cardiac  the reference's short videos: `<eid>.npy` of 50 frames, tables
                train.csv, val.csv, test.csv with a column `eid`; times are
                frames
  tvrl_oct      the reference's long series: `Scan_history` and `Video`, one
                sequence for each row's history, with its labels, of at most
                the last 8 visits, for probing. With
                `--config.sequences=series` it is each eye's whole `Video`
                once, for pretraining.

All keys with their defaults are in data_prep/series/settings.py and
data_prep/runs.py.

What comes out, under `--config.out`:

  shards/      the TFDS data set; splits train, val, test by patient
  series.csv   every series: its state, sequences, frames, size
  errors.csv   what could not be used, where and why; rows of stage `note` say
               what was changed (visits sorted, a visit without file left out)
               or is unknown (a label), and are no failure
  splits.json  patient to split; extended by later runs, never reshuffled
  qc/contact_sheet.jpg  sequences of the finished data set with their times
  parts/       the finished work, which `shards/` links to

Stop it at any moment and start it again: finished parts are skipped, and the
shards are byte for byte those of an undisturbed run. A part is done again if
one of its files, its times or a setting changed. One file that cannot be used
never stops the others. Labels are beside the records, in `shards/targets.json`:
correcting one makes no part again.

Exit code: 0 all fine; 3 finished, but something is in errors.csv (other than
notes) and everything else is written; 1 no data set could be written; 2 the
call is wrong; 130, 143 stopped by Ctrl-C, SIGTERM.
"""

from ml_collections import ConfigDict

from configs import common
from data_prep.series.prepare import SeriesSettings

_CPU = ("demo", "synthetic", "smoke")
PRESETS = ("default", "video", *_CPU, "tvrl_cardiac", "tvrl_oct")


def get_config(arg: str = "") -> ConfigDict:
  """The settings of a preset; see the module's docstring."""
  preset = common.choose(arg, PRESETS)
  config = common.defaults(SeriesSettings)
  if preset == "video":
    config.time_unit = "s"
    config.sequence.max_frames = 32
  if preset in _CPU:
    config.parts = 8
    config.image.frame_px = (48, 48)
    config.targets = (
      "last_size:number",
      "shape:class",
      "texture:class",
      "growth_rate:number",
      "growth:class=slow|fast",
    )
  if preset == "smoke":
    config.image.frame_px = (32, 32)
    config.update({"workers": 0, "parts": 2})
  if preset == "tvrl_cardiac":
    config.update({"layout": "series", "time_unit": "frame"})
    config.columns.series_id = "eid"
    config.sequence.max_frames = 50
  if preset == "tvrl_oct":
    config.update({"layout": "lists", "sequences": "history"})
    config.sequence.update({"max_frames": 8, "rule": "last"})
  return config.lock()
