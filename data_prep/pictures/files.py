"""Reads the files of a labelled picture: image, mask, points, each checked.

Whatever is wrong is a `SlideError`. Without its image a picture is not used;
one whose mask or points are wrong stays, without them.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
import tifffile
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from data_prep.files import aliases, tables, values
from data_prep.files.errors import SlideError
from data_prep.pictures import records
from data_prep.pictures.classes import Classes
from data_prep.wsi import pictures, tissue

Rgb = UInt8[np.ndarray, "h w 3"]
_MASKS = (".png", ".bmp", ".tif", ".tiff")  # what keeps every value
_UNKNOWN_MPP = 0.5  # of most pictures that do not say
# Half of what is used on slides: a picture shows the edge of tissue closely.
_FINE = {"guarded": {"smooth_um": 6.0, "close_um": 12.0, "open_um": 4.0}}


def read_image(
  path: str, quality: int, subsampling: str
) -> tuple[bytes, Rgb, str]:
  """Reads an image.

  Args:
    path: JPEG, PNG, BMP or TIFF of 8 bits a channel.
    quality: of the JPEG that is made of what is none.
    subsampling: of that JPEG.

  Returns:
    What is stored, its pixels, and a remark, '' without one.

  Raises:
    SlideError: it cannot be read, or has another depth or other channels.
  """
  if not os.path.isfile(path):
    raise SlideError(f"no such file: {path}", "find", "missing_file")
  try:
    pixels = pictures.read(path)
  except Exception as error:  # decoders raise whatever they like
    raise SlideError(f"{path}: {error}", "read", "unreadable") from error
  if pixels.dtype != np.uint8:
    raise SlideError(
      f"{path}: {8 * pixels.dtype.itemsize} bits a channel; 8 are stored: "
      "which value is white is not known here, so convert it",
      "read",
      "bit_depth",
    )
  remark, channels = "", pixels.shape[2]
  if channels == 1:
    remark = f"{path}: a grey image; stored with three equal channels"
    pixels = np.repeat(pixels, 3, axis=2)
  elif channels != 3:
    raise SlideError(
      f"{path}: {channels} channels, want RGB or grey", "read", "channels"
    )
  data = pathlib.Path(path).read_bytes()
  is_kept = data[:2] == b"\xff\xd8" and not remark
  if is_kept:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    is_kept = (height, width) == pixels.shape[:2] and colours == "YCbCr"
    # A turn by half keeps the size.
    is_kept = is_kept and np.array_equal(simplejpeg.decode_jpeg(data), pixels)
  if not is_kept:
    pixels = np.ascontiguousarray(pixels)
    data = simplejpeg.encode_jpeg(
      pixels, quality=quality, colorsubsampling=subsampling
    )
    pixels = simplejpeg.decode_jpeg(data)
  return data, pixels, remark


def read_mask(
  path: str, size: tuple[int, int], classes: int, mask_values: Sequence[int]
) -> UInt8[np.ndarray, "h w"]:
  """Reads a mask.

  Args:
    path: PNG, BMP or TIFF; of a palette the numbers count, not the colours.
    size: (h, w) of the picture.
    classes: how many there are.
    mask_values: what the file has for background, class 1, ...; () = 0, 1,
      ..., and 255 for unknown.

  Returns:
    0 background, 1..y classes, 255 not known.

  Raises:
    SlideError: it cannot be read, has another size, is in colour, or has other
      values.
  """
  stored = _numbers(path)
  if stored.shape != size:
    raise SlideError(
      f"{path}: a mask of {stored.shape[0]} x {stored.shape[1]} px, the "
      f"picture has {size[0]} x {size[1]} px (h x w)",
      "mask",
      "mask_size",
    )
  known = tuple(mask_values) or tuple(range(classes + 1))
  mask = np.full(size, records.NOT_KNOWN, np.uint8)
  for number, value in enumerate(known):
    mask[stored == value] = number
  if mask_values:
    return mask
  found = np.unique(stored)
  other = sorted(set(found.tolist()) - {*known, records.NOT_KNOWN})
  if other:
    raise SlideError(
      f"{path}: values {other[:8]} beyond the {classes} classes; name the "
      "values of background and each class in config.mask_values",
      "mask",
      "mask_values",
    )
  if set(found.tolist()) in ({0, records.NOT_KNOWN}, {records.NOT_KNOWN}):
    raise SlideError(
      f"{path}: 255, which means unknown, and no class: if 255 is a class, "
      "say so by config.mask_values=(0, 255)",
      "mask",
      "mask_values",
    )
  return mask


def _numbers(path: str) -> Shaped[np.ndarray, "h w"]:
  """The values of a mask file."""
  if not os.path.isfile(path):
    raise SlideError(f"no such file: {path}", "mask", "missing_mask")
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in _MASKS:
    raise SlideError(
      f"{path}: a mask is read from {', '.join(_MASKS)}: other formats change "
      "values",
      "mask",
      "mask_format",
    )
  try:
    if suffix in (".tif", ".tiff"):
      with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        lossy = page.compression in (6, 7, 33003, 33005, 34712)
        has_palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        pixels = None
        if has_palette:
          showing = dataclasses.replace(pictures.tiff_page(page), palette=None)
          pixels = showing.apply(page.asarray())
      if pixels is None:
        pixels = pictures.numbers(path)  # upright, and one picture
    else:
      lossy = False
      with Image.open(path) as picture:
        pixels = pictures.still(picture).apply(np.asarray(picture))
  except Exception as error:  # decoders raise whatever they like
    raise SlideError(f"{path}: {error}", "mask", "unreadable_mask") from error
  if lossy:
    raise SlideError(
      f"{path}: its compression changes values", "mask", "mask_format"
    )
  if pixels.ndim == 3:
    colours = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
    if (colours != colours[..., :1]).any():
      raise SlideError(
        f"{path}: a mask in colour; want one number a pixel (grey or palette)",
        "mask",
        "mask_colour",
      )
    pixels = colours[..., 0]
  if pixels.dtype.kind not in "bui":
    raise SlideError(
      f"{path}: values of type {pixels.dtype}", "mask", "mask_values"
    )
  return pixels.astype(np.int64)


def read_points(
  cell: str, size: tuple[int, int], classes: Classes
) -> tuple[Float[np.ndarray, "n 3"], list[SlideError]]:
  """Reads the points of a picture.

  Args:
    cell: a CSV with columns x, y and, unless there is one class, class; or
      the points themselves: `12 30.5 tumour; 4 8 normal`.
    size: (h, w) of the picture.
    classes: classes are given by name or number.

  Returns:
    x, y, class of those inside, and what is wrong with others.

  Raises:
    SlideError: the file is not there or is no such table.
  """
  rows = _point_rows(cell, classes)
  points, errors, wrong = [], [], []
  for where, x, y, name in rows:
    try:
      place = [values.need_number(v, where) for v in (x, y)]
      points.append([*place, _class_of(name, classes)])
    except ValueError as error:
      wrong.append(f"{where}: {error}")
  if wrong:
    errors.append(
      SlideError(
        f"{len(wrong)} of {len(rows)} points are left out: {wrong[0]}",
        "points",
        "bad_points",
      )
    )
  found = np.array(points, np.float32).reshape(-1, 3)
  is_inside = records.inside(found, size)
  if not is_inside.all():
    x, y, _ = found[~is_inside][0]
    errors.append(
      SlideError(
        f"{(~is_inside).sum()} of {len(found)} points lie outside of the "
        f"picture of {size[0]} x {size[1]} px (h x w), such as x = {x:g}, "
        f"y = {y:g}: left out",
        "points",
        "points_outside",
      )
    )
  return found[is_inside], errors


def _point_rows(cell: str, classes: Classes) -> list[tuple[str, str, str, str]]:
  """Where, x, y, class of each point, '' without a class."""
  if pathlib.PurePath(cell).suffix.lower() not in (".csv", ".tsv", ".txt"):
    rows = []
    for number, text in enumerate(filter(str.strip, cell.split(";")), 1):
      words = re.split(r"[\s,]+", text.strip(), maxsplit=2)
      words += [""] * (3 - len(words))
      rows.append((f"point {number} {text.strip()!r}", *words))
    return rows
  if not os.path.isfile(cell):
    raise SlideError(f"no such file: {cell}", "points", "missing_points")
  try:
    table = tables.read(cell, classes.negatives, log=lambda text: None)
    by_name = {aliases.plain(name): name for name in table.heading}
    if not {"x", "y"} <= set(by_name):
      raise ValueError(
        f"{cell} has the columns {list(table.heading)}: want x, y and class"
      )
  except ValueError as error:
    raise SlideError(str(error), "points", "bad_points") from error
  names = [by_name.get(name, "") for name in ("x", "y", "class")]
  return [
    (row.where, *(row.cells.get(name, "") for name in names))
    for row in table.rows
  ]


def _class_of(name: str, classes: Classes) -> int:
  number = values.number(name)
  if number is not None and number in range(len(classes.names) + 1):
    return int(number)
  if not name and len(classes.names) == 1:
    return 1
  return classes.number(name)


def tissue_of(
  pixels: Rgb, mpp: float, settings: dict
) -> Bool[np.ndarray, "h w"]:
  """Where a picture shows tissue; `settings` are `config.tissue`."""
  height, width = pixels.shape[:2]
  shrink = max(1.0, settings["um_per_px"] / (mpp or _UNKNOWN_MPP))
  size = max(1, round(width / shrink)), max(1, round(height / shrink))
  small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  um = (mpp or _UNKNOWN_MPP) * shrink
  found = tissue.tissue_mask(
    small,
    settings["method"],
    mpp=um,
    # Of a small picture a part: it shows no piece that is larger.
    min_area_um2=min(
      settings["min_area_um2"], 0.05 * size[0] * size[1] * um**2
    ),
    max_hole_um2=settings["max_hole_um2"],
    **_FINE.get(settings["method"], {}),
  )
  large = cv2.resize(found.astype(np.float32), (width, height))
  return large > 0.5
