"""The picture by which a person checks what was taken from a slide."""

import functools
import importlib.util
import os

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

THUMBNAIL_PX = 1024  # longest side of the pictures of slides
_OUTLINE = (0, 150, 60)
_CENTRE = (255, 200, 0)
_INK = (20, 20, 20)


@functools.cache
def caption_font(size: int) -> ImageFont.FreeTypeFont:
  """Returns a font for captions; Pillow's own lacks the micro sign."""
  # Importing Matplotlib for it would take every worker a third of a second.
  [folder] = importlib.util.find_spec("matplotlib").submodule_search_locations
  path = os.path.join(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
  return ImageFont.truetype(path, size)


def scale(width_um: float | int) -> tuple[float, str]:
  """A round length of at most a fifth of a picture, um, and how it is written.

  Example:
    >>> scale(5300.0)
    (1000.0, '1 mm')
  """
  ten = 10.0 ** np.floor(np.log10(width_um / 5))
  um = float(max(m * ten for m in (1, 2, 5) if m * ten <= width_um / 5))
  return um, f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def text_line(pen, at, text: str, size: int, room, anchor="la") -> None:
  """Writes one line, smaller if it is too long for its room."""
  font = caption_font(size)
  while pen.textlength(text, font) > room and font.size > 8:
    font = caption_font(font.size - 1)
  pen.text(at, text, fill=_INK, font=font, anchor=anchor)


def scale_bar(
  pen: ImageDraw.ImageDraw,
  right: float | int,
  y: float | int,
  width_px: float | int,
  um_per_px: float | int,
  size: int,
) -> float:
  """Draws a scale bar and its label."""
  um, label = scale(width_px * um_per_px)
  start, font = right - um / um_per_px, caption_font(size)
  pen.line((start, y, right, y), fill=_INK, width=max(2, size // 5))
  at = start - size / 2
  pen.text((at, y), label, fill=_INK, font=font, anchor="rm")
  return at - pen.textlength(label, font)


def qc_picture(
  thumbnail: UInt8[np.ndarray, "h w 3"],
  mask: Bool[np.ndarray, "h w"],
  *,
  downsample: float | int,
  mpp: float | int,
  title: str = "",
  mpp_origin: str = "",
  centres_level0: Shaped[np.ndarray, "m 2"] | None = None,
  region_px: float | int = 0,
) -> UInt8[np.ndarray, "h2 w 3"]:
  """Draws the tissue outline and the region centres on the thumbnail.

  What is not tissue is paled, so that both "too much" and "too little" show. A
  caption below gives slide, scale and where it is from, area, and regions; a
  bar gives the size.
  """
  height, width = mask.shape
  picture = thumbnail.copy()
  outside = ~mask
  picture[outside] = (picture[outside] * 0.6 + 255 * 0.4).astype(np.uint8)
  thick = max(1, round(max(height, width) / 700))
  contours, _ = cv2.findContours(
    mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
  )
  cv2.drawContours(picture, contours, -1, _OUTLINE, thick, cv2.LINE_AA)
  centres = np.zeros((0, 2)) if centres_level0 is None else centres_level0
  half = region_px / downsample / 2
  radius = max(2, round(max(height, width) / 300))
  for x, y in np.asarray(centres, float) / downsample:
    if half:
      corners = [round(v) for v in (x - half, y - half, x + half, y + half)]
      cv2.rectangle(
        picture, tuple(corners[:2]), tuple(corners[2:]), (90, 90, 90), 1
      )
    at = round(x), round(y)
    cv2.circle(picture, at, radius + 1, _INK, -1, cv2.LINE_AA)
    cv2.circle(picture, at, radius, _CENTRE, -1, cv2.LINE_AA)
  mm2 = mask.sum() * (mpp * downsample / 1000) ** 2
  origin = f" ({mpp_origin})" if mpp_origin else ""
  facts = f"{mpp:.4g} µm/px{origin} · tissue {mm2:.3g} mm²"
  if mm2 == 0:
    facts = f"{mpp:.4g} µm/px{origin} · no tissue found"
  if centres_level0 is not None:
    facts += f" · {len(centres)} regions"
  return np.concatenate(
    [picture, _caption(width, title, facts, mpp * downsample)]
  )


def _caption(
  width: int, title: str, facts: str, mpp: float
) -> UInt8[np.ndarray, "h w 3"]:
  size = int(np.clip(width / 45, 11, 22))
  image = Image.new("RGB", (width, round(4.2 * size)), "white")
  draw = ImageDraw.Draw(image)
  # The bar sits at the right of the lower line; long facts are drawn smaller.
  left = scale_bar(draw, width - size, 3.1 * size, width, mpp, size)
  text_line(draw, (size, 2.3 * size), facts, size, left - 2 * size)
  text_line(draw, (size, 0.6 * size), title, size, width - 2 * size)
  return np.asarray(image)


def shrink(
  picture: UInt8[np.ndarray, "h w 3"], longest_px: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Shrinks a picture until its longest side fits."""
  factor = longest_px / max(picture.shape[:2])
  if factor >= 1:
    return picture
  size = tuple(max(1, round(side * factor)) for side in picture.shape[1::-1])
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """Encodes a picture for people."""
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(picture), quality=85, colorsubsampling="420"
  )
