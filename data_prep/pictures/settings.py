"""The settings of a run over pictures; `configs/prep_pictures.py` explains."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from data_prep import runs
from data_prep.files.schema import DIFFERENT, AtLeast1, Range, Share
from data_prep.pictures import records
from data_prep.wsi.annotations import EXCLUDE
from data_prep.wsi.tiles import ANCHORS
from data_prep.wsi.tissue import METHODS

# Settings that say what is read and how it is run, not what a picture is like.
RUN_KEYS = (
  *runs.RUN_KEYS,
  *("csv", "images", "seed", "columns", "parts", "negatives"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureColumns:
  """Names of columns; '' = found by `files/aliases.py`."""

  file: str = ""
  patient_id: str = ""
  slide_id: str = ""
  label: str = ""
  mask: str = ""
  points: str = ""
  split: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureTissue:
  """`config.tissue`: what is glass."""

  method: Literal[METHODS] = "guarded"
  # A picture is shrunk to this before its tissue is looked for; a slide to
  # `thumbnail_px` on its longer side.
  um_per_px: Annotated[float, Range(above=0)] = 2.0
  thumbnail_px: Annotated[int, Range(64)] = 2048
  # Of pictures, which show less than a slide; unknown `mpp` counts as 0.5.
  min_area_um2: Annotated[float, Range(0)] = 1000.0
  max_hole_um2: Annotated[float, Range(0)] = 10_000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileCut:
  """`config.tiles`: pictures are tiles of slides."""

  slides: str = ""  # files, a folder, a glob or a table; '' = none
  table: str = ""  # a CSV that describes slides named in `slides`
  # Folder of `<slide_id>.xml` (ASAP) or `.geojson` (QuPath).
  annotations: str = ""
  # region: a tile has the classes that are drawn on it; slide: those of its
  # slide, whether the tile shows them or not.
  labels: Literal["region", "slide"] = "region"
  # Part of a tile that a class must cover to be its label.
  min_share: Share = 0.01
  exclude: tuple[str, ...] = EXCLUDE  # groups that are cut out
  ignore: tuple[str, ...] = ()  # groups that are left alone
  px: Annotated[int, Range(16)] = 512
  overlap_px: Annotated[int, Range(0)] = 0
  mpp: Annotated[float, Range(above=0)] = 0.5  # met exactly
  mpp_tolerance: Annotated[float, Range(0, 0.99)] = 0.02
  allow_upsampling: bool = False
  default_mpp: Annotated[float, Range(0)] = 0.0  # of slides that state none
  min_tissue: Annotated[float, Range(0, 1, above=0)] = 0.25
  anchor: Literal[ANCHORS] = "level0"
  most: Annotated[int, Range(0)] = 0  # tiles of a slide, drawn; 0 = all
  reader: Literal["auto", "openslide"] = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureSettings(runs.RunSettings):
  """The settings of a run over pictures: `configs/prep_pictures.py`."""

  source: str = "pictures"
  csv: str = ""  # a table of pictures; '' where tiles are cut from slides
  images: str = ""  # where relative file names start; '' = the table's folder
  columns: PictureColumns = PictureColumns()
  # Foreground classes in the order of their numbers in masks, 1 first:
  # "tumour", or "tumour=malignant|Tumor|_0" with other words for it in labels,
  # points and annotations. () = what the table has.
  classes: Annotated[tuple[str, ...], DIFFERENT] = ()
  # Labels that say: none of the classes.
  negatives: tuple[str, ...] = (
    *("0", "no", "none", "negative", "neg", "normal", "benign", "background"),
  )
  # Values in mask files of background, class 1, class 2, ...; all others are
  # unknown. () = 0, 1, 2, ..., with 255 for unknown.
  mask_values: Annotated[tuple[int, ...], Range(0, 65535), DIFFERENT] = ()
  mpp: Annotated[float, Range(0)] = 0.0  # of pictures of a table; 0 = unknown
  # Files a split that pictures of a table are dealt into, by patient.
  parts: AtLeast1 = 16
  tiles: TileCut = TileCut()
  tissue: PictureTissue = PictureTissue()
  splits: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"train": 0.7, "val": 0.1, "test": 0.2}
  )
  # JPEG files are stored as they are, unless turned by their EXIF.
  jpeg: runs.Jpeg = runs.Jpeg(quality=95, subsampling="444")

  def __post_init__(self):
    super().__post_init__()
    if bool(self.csv) == bool(self.tiles.slides):
      raise ValueError(
        f"config.csv = {self.csv!r}, config.tiles.slides = "
        f"{self.tiles.slides!r}: name a table of pictures, or slides"
      )
    if self.mask_values and len(self.mask_values) != len(self.classes) + 1:
      raise ValueError(
        f"config.mask_values = {self.mask_values}: want background and each of "
        f"config.classes = {self.classes}"
      )
    if len(self.classes) > records.MOST_CLASSES:
      raise ValueError(f"config.classes: {len(self.classes)}, want 254 or less")
    if self.tiles.slides and self.tiles.labels == "region":
      if not (self.classes and self.tiles.annotations):
        raise ValueError(
          "config.tiles.labels = 'region': needs config.classes and "
          "config.tiles.annotations"
        )
    if self.tiles.overlap_px >= self.tiles.px:
      raise ValueError(
        f"config.tiles.overlap_px = {self.tiles.overlap_px}: must be below "
        f"config.tiles.px = {self.tiles.px}"
      )
