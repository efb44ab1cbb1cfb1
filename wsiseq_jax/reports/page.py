"""Pages: jinja2 templates with autoescape, one style sheet.

A page works from a disk, in a mail and on a phone; it loads nothing from
elsewhere.
"""

import base64
import dataclasses
import math
import pathlib
from typing import Any

import jinja2
import markupsafe
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from data_prep.files import atomic, done
from wsiseq_jax import charts
from wsiseq_jax.reports import figures

_TEMPLATES = pathlib.Path(__file__).with_name("templates")


def design() -> str:
  """Tells these templates and this style from those of other versions."""
  return done.digest([p.read_text() for p in sorted(_TEMPLATES.iterdir())])


@dataclasses.dataclass(frozen=True)
class Image:
  """A picture as a template shows it: address, text for the blind, pixels."""

  src: str
  alt: str
  width: int
  height: int


def embedded(
  picture: UInt8[np.ndarray, "h w 3"], alt: str, quality: int = 80
) -> Image:
  """A picture that the page carries."""
  data = base64.b64encode(figures.jpeg(picture, quality)).decode("ascii")
  height, width = picture.shape[:2]
  return Image(f"data:image/jpeg;base64,{data}", alt, width, height)


def svg(figure: Figure) -> markupsafe.Markup:
  """A chart as part of the page."""
  return markupsafe.Markup(charts.to_svg(figure))


def number(value: float | int | None) -> str:
  """Three decimals; a dash for what is unknown."""
  unknown = value is None or not math.isfinite(value)
  return "–" if unknown else f"{value:.3f}"


def write(path: pathlib.Path, template: str, **values: Any) -> None:
  """Renders a template piece by piece; the file is there whole, or not."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("wsiseq_jax.reports"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(number=number, size=_size)
  with atomic.replacing(path) as draft:
    environment.get_template(template).stream(**values).dump(
      str(draft), encoding="utf-8"
    )


def _size(value: float | int, unit: str) -> str:
  """Three digits and a unit."""
  return f"{value:.3g} {unit}"
