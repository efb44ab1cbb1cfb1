"""The command `python -m data_prep`.

Its manuals are `configs/prep_wsi.py` (slides), `configs/prep_series.py`
(folders of images and videos) and `configs/prep_pictures.py` (labelled
pictures); `config.source` says which of them a config is.
"""

import signal
import sys

from absl import flags
from ml_collections import config_flags

from data_prep import runs
from data_prep.files import names
from data_prep.pictures import prepare as pictures
from data_prep.sequences import prepare as slides
from data_prep.series import prepare as series

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/prep_wsi.py", "Preparation settings.", lock_config=True
)


def main(arguments: list[str]) -> int:
  """Parses the command line and runs preparation."""
  sources = {
    "slides": slides.prepare,
    "series": series.prepare_series,
    "pictures": pictures.prepare_pictures,
  }
  try:
    rest = flags.FLAGS(arguments)[1:]
    if rest:
      raise ValueError(
        f"unexpected argument {rest[0]!r}: slides are named by "
        "--config.slides, series and pictures by --config.csv"
      )
    config = _CONFIG.value.to_dict()
  except (
    flags.Error,
    OSError,
    ValueError,
    AttributeError,
    KeyError,
    TypeError,
  ) as error:
    return _usage(_readable(error))
  names.print_all()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, _stop)
  try:
    if config["source"] not in sources:
      raise ValueError(
        f"config.source is {config['source']!r}, want one of {tuple(sources)}"
      )
    summary = sources[config["source"]](config)
  except ValueError as error:
    return _usage(str(error))
  except OSError as error:
    print(f"data_prep: stopped: {error}", file=sys.stderr)
    return runs.EXIT_NOTHING
  except _Stopped as signal_number:
    print(
      "\ndata_prep: stopped; the same command goes on from here",
      file=sys.stderr,
    )
    return 128 + signal_number.args[0]
  print(summary.text)
  return summary.exit_code


class _Stopped(KeyboardInterrupt):
  """A signal asks the command to end; nothing catches it by accident."""


def _stop(number: int, _: object) -> None:
  signal.signal(number, signal.SIG_IGN)  # once is enough
  raise _Stopped(number)


def _readable(error: Exception) -> str:
  """Returns what is meant by an error of the flag and config libraries.

  They pass on a whole traceback of the config file, whose last line counts, or
  a quoted text in which line ends are spelled out.
  """
  text = str(error)
  if text[:1] == text[-1:] and text[:1] in ("'", '"'):
    text = text[1:-1]
  text = text.replace("\\n", "\n").replace("\\", "").strip()
  if "Traceback" in text:
    return text.splitlines()[-1]
  return "; ".join(line.strip() for line in text.splitlines())


def _usage(message: str) -> int:
  print(f"data_prep: {message}", file=sys.stderr)
  return runs.EXIT_USAGE


if __name__ == "__main__":
  sys.exit(main(sys.argv))
