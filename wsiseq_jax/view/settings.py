"""Settings of the job `view`; `configs/view.py` explains them."""

import dataclasses
from typing import Annotated, Literal

from data_prep.files.schema import AtLeast1, NotNegative, Range
from data_prep.wsi.tissue import METHODS

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """`config.data`: the slides that can be seen, and nothing else can."""

  slides: str = ""  # see data_prep/wsi/find.py; 'synthetic' draws two
  table: str = ""  # a CSV that describes slides named in `slides`
  # A folder of what people drew: <slide_id>.xml (ASAP), .geojson (QuPath), .png
  # or .tif (masks); '' has none.
  annotations: str = ""
  default_mpp: NotNegative = 0.0  # where the slide says none; 0 = unknown

  def __post_init__(self):
    if not self.slides:
      raise ValueError(
        "config.data.slides = '': name files, a folder, a glob, or a CSV"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
  """`config.layers`: results to lay on the slides; '' has none."""

  tissue: Literal[METHODS] = "guarded"
  mil: str = ""  # workdir of a job `mil` or `mil_predict`: its maps
  sequences: str = ""  # workdir of a job `embed`: clusters of its features
  clusters: Annotated[int, Range(2)] = 16
  cells: str = ""  # workdir of a job `spatial`, or a folder of such tables
  # Folder of <slide_id>.png or .tif: a class number a pixel, 0 = nothing.
  segmentation: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """`config.search`: what "find similar" asks."""

  index: str = ""  # folder of a job `index`; '' has no search
  hits: Annotated[int, Range(1, 500)] = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """`config.server`: who can see it, and what it may cost."""

  host: str = "127.0.0.1"  # any other address asks for a token
  port: Annotated[int, Range(0, 65535)] = 8008  # 0 takes a free one
  names: tuple[str, ...] = ()  # more names the page is asked for by
  # Whether loopback asks for a token too: on machines that others log in to.
  token: bool = False
  open_slides: AtLeast1 = 8
  tile_cache_mb: AtLeast1 = 64  # of tiles that had to be encoded
  threads: AtLeast1 = 4  # tiles read at once
  # How tiles are sent that are not sent as stored: 'png' is exact, 5 times the
  # bytes.
  encoding: Literal["jpeg", "png"] = "jpeg"
  check: bool = False  # asks for the page and each slide once, and ends


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The whole config."""

  job: Literal["view"] = "view"
  data: Data
  layers: Layers
  search: Search
  server: Server
