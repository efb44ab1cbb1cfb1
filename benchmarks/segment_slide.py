r"""A slide from file to outlines, by a network that learned from real labels.

    python benchmarks/segment_slide.py --pictures=FOLDER

A student is trained on crops of one BCSS region at 1 um a pixel with a label
each (`real_pictures.py`), and looks at slides of another laboratory: a breast
carcinoma, and a duodenum without any tumour, of which every mm² it calls tumour
is wrong. No mask of these slides is known, so that nothing is scored but that;
look at the overlays. Tiles are as large as the crops, and, to be compared,
512 px.

What is checked: every polygon is valid and lies on the slide (shapely); with
nothing left out, polygons have the area that `areas.csv` says, but for corners,
which outlines cut; the pyramid opens in tifffile, its levels halve, OpenSlide
opens it, and its numbers are those of the PNG. Writes
`benchmarks/results/segment_slide.json`, and, with --pictures, the overlays.
"""

import argparse
import json
import os
import pathlib
import shutil

import cv2
import harness
import numpy as np
import openslide
import real_pictures
import segment_real
import segment_runs
import shapely
import tifffile

from data_prep.files import tables
from wsiseq_jax.segment import slide_masks

SLIDES = ("breast_lobular_he_10x", "bs9_he1_10x")
MPP, TRAINED_ON = 1.0, "1008"
NAME = "tumour"


def train(work, data):
  """Trains the student; returns its workdir and scores on the other region."""
  pictures = work / "data" / f"bcss_{TRAINED_ON}" / "prepared"
  if not (pictures / "shards").is_dir():
    real_pictures.bcss(data, work / "data", TRAINED_ON, MPP)
  folder = work / "student"
  values = {"data.crops.crop_px": round(real_pictures.CROP_UM / MPP)}
  values |= segment_real.PLAIN
  for stage in ("cam", "student"):
    values[f"stages.{stage}.optim.epochs"] = 12
  return folder, segment_runs.segment(folder, "student,demo", pictures, values)


def segment(work, model, slides, folder, *more):
  """Segments slides."""
  table = work / "slides.csv"
  tables.write(table, ("filename",), [{"filename": str(s)} for s in slides])
  harness.call(
    "main.py",
    "--config=configs/segment_slides.py",
    f"--config.workdir={work / folder}",
    f"--config.model.workdir={model}",
    f"--config.data.slides={table}",
    *more,
    log=work / f"{folder}.txt",
  )


def checked(folder, slide):
  """What is true of the files of a slide."""
  name = slide.stem
  (row,) = (
    r for r in tables.rows_of(folder / "areas.csv") if r["slide_id"] == name
  )
  found = {
    "area_mm2": round(float(row["area_mm2"]), 4),
    "tissue_mm2": round(float(row["tissue_mm2"]), 4),
    "share_of_tissue": round(float(row["share_of_tissue"]), 4),
    "threshold": round(float(row["threshold"]), 4),
  }
  with openslide.OpenSlide(slide) as file:
    size, mpp = file.dimensions, float(file.properties["openslide.mpp-x"])
  mask_file = folder / "masks" / f"{name}.tif"
  with tifffile.TiffFile(mask_file) as file:
    levels = [page.shape for page in file.series[0].levels]
    mask = file.series[0].asarray()
    per_cm = file.pages[0].tags["XResolution"].value
  um_per_px = 1e4 * per_cm[1] / per_cm[0]
  png = cv2.imread(str(folder / "png" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
  with openslide.OpenSlide(mask_file) as file:
    opened = file.level_dimensions
  features = json.loads((folder / "geojson" / f"{name}.geojson").read_text())
  shapes = [shapely.geometry.shape(f["geometry"]) for f in features["features"]]
  written = sum(
    f["properties"]["measurements"]["Area mm^2"] for f in features["features"]
  )
  place = slide_masks.MaskPlace.of(name, size, mpp, um_per_px)
  whole = slide_masks.features(
    mask, place, [NAME], outline_um=um_per_px, min_area_um2=0, max_hole_um2=0
  )
  everything = [shapely.geometry.shape(f["geometry"]) for f in whole]
  mm2 = (mpp / 1000) ** 2
  found |= {
    "polygons": len(shapes),
    "valid": sum(s.is_valid for s in (*shapes, *everything))
    == len(shapes) + len(everything),
    "on the slide": all(
      shapely.box(0, 0, *size).buffer(1e-6 + 4 * um_per_px / mpp).covers(s)
      for s in shapes
    ),
    "polygons_mm2": round(sum(s.area for s in shapes) * mm2, 4),
    "measured_mm2": round(written, 4),
    "everything_mm2": round(sum(s.area for s in everything) * mm2, 4),
    "mask_mm2": round(float((mask == 1).sum()) * (um_per_px / 1000) ** 2, 4),
    "levels": levels,
    "openslide": opened,
    "png_is_the_mask": bool(np.array_equal(png, mask)),
  }
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  data = os.environ.get("WSISEQ_DATA", harness.ROOT.parent / "shared" / "data")
  parser.add_argument("--data", type=pathlib.Path, default=data)
  parser.add_argument("--work", type=pathlib.Path, default="out/segment_slide")
  parser.add_argument("--pictures", type=pathlib.Path)
  options = parser.parse_args()
  work = options.work.resolve()
  work.mkdir(parents=True, exist_ok=True)
  slides = [options.data / "slides" / f"{name}.tiff" for name in SLIDES]
  model, trained = train(work, options.data)
  segment(work, model, slides, "masks")
  segment(work, model, slides, "masks_512", "--config.tiles.tile_px=512")
  result = {
    "trained": trained,
    "slides": {s.stem: checked(work / "masks", s) for s in slides},
    "tiles of 512 px": {s.stem: checked(work / "masks_512", s) for s in slides},
  }
  print(harness.write_result(harness.RESULTS / "segment_slide.json", result))
  if options.pictures:
    options.pictures.mkdir(parents=True, exist_ok=True)
    for folder in ("masks", "masks_512"):
      for slide in slides:
        picture = work / folder / "overlays" / f"{slide.stem}.jpg"
        shutil.copy(picture, options.pictures / f"{folder}_{picture.name}")


if __name__ == "__main__":
  main()
