"""Picture sets as `tfds build` leaves them, made here: nothing is downloaded.

Names, features and splits are those of `patch_camelyon` and
`colorectal_histology`; pictures are of one colour and tell the class.
"""

import io
import pathlib

import cv2
import numpy as np
import tensorflow_datasets as tfds

TISSUES = (
  "tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose",
  "empty",
)  # fmt: skip


def png(level: float, side: int, index: int) -> bytes:
  """A picture: red rises with the index, blue is the level."""
  rng = np.random.default_rng(index)
  image = np.zeros((side, side, 3), np.uint8)
  image[..., 0], image[..., 2] = level, index % 256  # OpenCV: blue first
  image[..., 1] = rng.integers(0, 30, (side, side))
  return cv2.imencode(".png", image)[1].tobytes()


class _Made(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("2.0.0")
  SKIP_REGISTERING = True
  url_infos = {}  # TFDS looks for a list of checksums otherwise
  side, classes, splits = 0, (), {}

  def _info(self):
    features = {
      "image": tfds.features.Image(
        shape=(self.side, self.side, 3), encoding_format="png"
      ),
      "label": tfds.features.ClassLabel(names=self.classes),
      "id": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, _):
    start, found = 0, {}
    for name, count in self.splits.items():
      found[name] = self._generate_examples(start, count)
      start += count
    return found

  def _generate_examples(self, start, count):
    for i in range(start, start + count):
      label = i % len(self.classes)
      level = 255 * label / (len(self.classes) - 1)
      yield (
        i,
        {
          # Encoded already: TFDS needs TensorFlow for that.
          "image": io.BytesIO(png(level, self.side, i)),
          "label": label,
          "id": str(i),
        },
      )


class PatchCamelyon(_Made):
  """96 px, two classes, three splits."""

  side, classes = 96, ("0", "1")
  splits = {"test": 16, "train": 32, "validation": 16}


class ColorectalHistology(_Made):
  """150 px, eight classes, one split."""

  side, classes = 150, TISSUES
  splits = {"train": 40}


def write(builder: type[_Made], folder: pathlib.Path, **more) -> pathlib.Path:
  """Prepares a set in a folder, as ArrayRecord files by default."""
  more = {"file_format": "array_record"} | more
  tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  builder(data_dir=folder, **more).download_and_prepare(download_config=config)
  return folder
