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

from ml_collections import config_dict

from configs import prep_common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the settings of a preset, locked: unknown keys are errors."""
  presets = {
    "": lambda config: None,
    "video": _video,
    "demo": _demo,
    "synthetic": _demo,
    "smoke": _smoke,
    "tvrl_cardiac": _tvrl_cardiac,
    "tvrl_oct": _tvrl_oct,
  }
  if arg not in presets:
    raise ValueError(
      f"configs/prep_series.py has no preset {arg!r}, choose one of "
      f"{[name for name in presets if name]} or none"
    )
  config = _default()
  presets[arg](config)
  return config.lock()


def _default() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.source = "series"
  # What goes in and out; none of these shapes a frame.
  config.csv = ""
  config.images = ""  # where relative file names start; "" = the table's folder
  config.out = ""
  prep_common.add_cluster(config)
  config.splits = config_dict.ConfigDict(
    {"train": 0.7, "val": 0.1, "test": 0.2}
  )
  config.parts = 64  # files a split that series are dealt into, by patient

  # How to read the table.
  config.layout = "auto"  # or series, visits, lists
  # Names of columns where they are not found by themselves, e.g.
  # --config.columns.patient_id=PID.
  config.columns = config_dict.ConfigDict(
    {
      "series_id": "", "patient_id": "", "file": "", "time": "", "times": "",
      "fps": "", "split": "", "history": "", "video": "",
    }
  )  # fmt: skip
  # Labels: "name", "name:number", "name:class" or "name:class=first|second";
  # () = all columns that are nothing else.
  config.targets = ()
  config.sequences = "series"  # history: one sequence for each visit, up to it

  config.seed = 0
  config.time_unit = "year"  # year, s or frame; named in the data set
  config.time_divisor = 1.0  # 365.25 if the table's times are days
  config.fps = 0.0  # frames a second where table and file say none

  config.sequence = config_dict.ConfigDict()
  # The longest series gives the length of all; shorter ones are padded.
  config.sequence.max_frames = 0  # 0 = no limit
  # Of longer ones: the last frames, evenly spread ones, or windows (several
  # sequences a series).
  config.sequence.rule = "subsample"  # last, subsample or windows
  config.sequence.stride = 0  # from window to window; 0 = no overlap
  config.sequence.min_frames = 1  # shorter ones are not used

  config.image = config_dict.ConfigDict()
  # Height and width of a frame; (128,) = the short side is 128 px and the long
  # one follows from the commonest shape of the files.
  config.image.frame_px = (128, 128)
  config.image.fit = "crop"  # cover and cut the middle out; or letterbox
  config.image.mixed_sizes = False  # True: frames of one series may differ
  # uint8 is stored as it is. Other types: (low, high) that become 0 and 255,
  # or () for percentiles over all frames of the sequence.
  config.image.window = ()
  config.image.percentiles = (0.5, 99.5)

  config.jpeg = config_dict.ConfigDict({"quality": 95, "subsampling": "444"})
  return config


def _video(config: config_dict.ConfigDict) -> None:
  config.time_unit = "s"
  config.sequence.max_frames = 32


def _demo(config: config_dict.ConfigDict) -> None:
  config.parts = 8
  config.image.frame_px = (48, 48)
  config.targets = (
    "last_size:number",
    "shape:class",
    "texture:class",
    "growth_rate:number",
    "growth:class=slow|fast",
  )


def _smoke(config: config_dict.ConfigDict) -> None:
  _demo(config)
  config.image.frame_px = (32, 32)
  config.workers = 0
  config.parts = 2


def _tvrl_cardiac(config: config_dict.ConfigDict) -> None:
  config.layout = "series"
  config.columns.series_id = "eid"
  config.time_unit = "frame"
  config.sequence.max_frames = 50


def _tvrl_oct(config: config_dict.ConfigDict) -> None:
  config.layout = "lists"
  config.sequences = "history"
  config.time_unit = "year"
  config.sequence.max_frames = 8
  config.sequence.rule = "last"
