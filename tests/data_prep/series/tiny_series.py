"""Writes small series in all kinds of files, for tests."""

import csv
import fractions
import pathlib

import av
import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from configs import prep_series
from data_prep import runs
from data_prep.series import prepare


def frames(count: int, size=(24, 32), channels: int = 0) -> np.ndarray:
  """Grey ramps that get brighter: frame i has 20 i + x / 4 at column x."""
  shape = (*size, channels) if channels else size
  ramp = np.arange(size[1]) // 4
  ramp = ramp[None, :, None] if channels else ramp[None, :]
  made = [np.broadcast_to(ramp + 20 * i, shape) for i in range(count)]
  return np.stack(made).astype(np.uint8)


def table(path: pathlib.Path, rows: list[dict]) -> str:
  """Writes a CSV; its columns are the first row's."""
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  return str(path)


def png(path: pathlib.Path, pixels: np.ndarray) -> str:
  path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
  return path.name


def video(
  path: pathlib.Path,
  pixels: np.ndarray,
  codec: str = "libx264",
  fps: float = 10,
  times: list[int] | None = None,
  rotation: int = 0,
  aspect: fractions.Fraction | None = None,
) -> str:
  """Encodes frames [t, h, w, 3].

  `times` are in 1/fps s, for a varying rate. Players turn the frames by
  `rotation` degrees counter-clockwise and make pixels `aspect` times as wide.
  """
  rate = fractions.Fraction(fps).limit_denominator(1000)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = pixels.shape[1:3]
    if rotation:
      stream.set_display_rotation(rotation)
    if aspect:
      stream.codec_context.sample_aspect_ratio = aspect
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    for index, picture in enumerate(pixels):
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      frame.time_base = 1 / rate
      frame.pts = index if times is None else times[index]
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path.name


def dicom(path: pathlib.Path, pixels: np.ndarray, **tags) -> str:
  """Writes frames [t, h, w] or [t, h, w, 3], not compressed."""
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
  meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
  data = pydicom.Dataset()
  data.file_meta = meta
  data.SOPClassUID = meta.MediaStorageSOPClassUID
  data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  data.NumberOfFrames = len(pixels)
  data.Rows, data.Columns = pixels.shape[1:3]
  colour = pixels.ndim == 4
  data.SamplesPerPixel = 3 if colour else 1
  data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
  if colour:
    data.PlanarConfiguration = 0
  bits = 8 * pixels.dtype.itemsize
  data.BitsAllocated = data.BitsStored = bits
  data.HighBit = bits - 1
  data.PixelRepresentation = int(pixels.dtype.kind == "i")
  for name, value in tags.items():
    setattr(data, name, value)
  data.PixelData = pixels.tobytes()
  data.save_as(path, enforce_file_format=True)
  return path.name


def config_of(csv_path, out, preset: str = "", **changes) -> dict:
  """Settings for a run in this process; keys may have dots as `__`."""
  config = prep_series.get_config(preset).unlock()
  config.csv, config.out, config.workers = str(csv_path), str(out), 0
  config.parts = 2
  config.image.frame_px = (24, 32)
  for key, value in changes.items():
    *groups, last = key.split("__")
    place = config
    for group in groups:
      place = place[group]
    place[last] = value
  return config.to_dict()


def run(csv_path, out, preset: str = "", **changes) -> runs.RunSummary:
  """Runs a preparation in this process."""
  config = config_of(csv_path, out, preset, **changes)
  return prepare.prepare_series(config)


def visits_of(folder, name: str, count: int, years=None, **labels) -> list:
  """Pictures of one subject and their rows."""
  pixels = frames(count)
  years = years or [2000.5 + i * (i + 1) / 2 for i in range(count)]
  return [
    {
      "subject": name,
      "file": png(folder / f"{name}_{i}.png", picture),
      "time": year,
      **labels,
    }
    for i, (picture, year) in enumerate(zip(pixels, years, strict=True))
  ]


def cohort(folder: pathlib.Path) -> pathlib.Path:
  """Writes `visits.csv` of twelve subjects with 2 to 5 visits."""
  rows = []
  for i in range(12):
    labels = {"size": 1.5 * i, "sick": "yes" if i % 3 else "no"}
    rows += visits_of(folder, f"s{i:02d}", 2 + i % 4, **labels)
  table(folder / "visits.csv", rows)
  return folder
