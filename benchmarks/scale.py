r"""What 10,000 slides and 10 million sequences cost, on paper.

    python benchmarks/scale.py            (prints; --write puts it in docs)

Nothing is run here. Every number is a product of numbers that other benchmarks
have measured or counted (`benchmarks/results/*.json`), of settings of the
presets, and of the few assumptions below. `docs/scale.md` holds the output; run
this again with `--write` when one of those files changes.
"""

import argparse
import dataclasses
import json
import pathlib

import harness

from configs import prep_wsi, videomae

DOCUMENT = harness.ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- from benchmarks/scale.py -->\n", "<!-- end -->\n"

# Assumptions.
SLIDES = 10_000
WORKERS = 64  # cores of one ordinary server, for hours on the clock
# What a good program reaches of a bound that counted work gives.
REACHED = 0.5
# Peak bfloat16 FLOP/s without sparsity: NVIDIA's data sheets of A100 80GB SXM,
# H100 SXM and H200 SXM; the latter two compute alike.
GPUS = {
  "8 x A100": (8, 312e12),
  "8 x H100 or H200": (8, 989e12),
  "64 x H100 or H200": (64, 989e12),
}


@dataclasses.dataclass(frozen=True)
class Loads:
  """How fast all chips together could train, and how many they are."""

  clips_per_s: float
  chips: int


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The data set, and how fast one thread of the loader reads it."""

  sequences: int
  bytes_each: int
  clips_each: int
  records_per_s: float

  @property
  def clips(self) -> int:
    """Clips of an epoch."""
    return self.sequences * self.clips_each


def read(folder: pathlib.Path, name: str) -> dict:
  """The results of a benchmark."""
  path = folder / f"{name}.json"
  if not path.is_file():
    raise SystemExit(f"{path} is missing: run benchmarks/{name}.py")
  return json.loads(path.read_text())


def data_lines(folder: pathlib.Path) -> tuple[Corpus, list[str]]:
  """Preparation: sequences, bytes, hours of CPU."""
  made = read(folder, "preparation")
  slide = read(folder, "slide_seconds")
  tiles = read(folder, "tile_reading")["drift_regions"]["ms"]
  loader = read(folder, "loader_slide")
  rules = prep_wsi.get_config().sequence
  centres, headings = rules.max_centres, len(rules.headings_deg)
  corpus = Corpus(
    SLIDES * centres * headings,
    made["bytes_per_sequence"],
    videomae.get_config("base").data.repeats,
    loader["strip_clips_per_s"],
  )
  n = corpus.sequences
  total = n * corpus.bytes_each
  each = made["ours_ms_per_sequence_median"]
  fixed = slide["seconds_a_slide"]
  native, other = (
    tiles[name]["median"] for name in ("data_prep.wsi.tiled", "OpenSlide")
  )
  slower = each + (other - native) / headings
  theirs = made["baseline_ms_per_sequence_median"]
  start = SLIDES * fixed / 3600

  def hours(milliseconds: float) -> float:
    return n * milliseconds / 3.6e6

  side = (
    rules.window_um[1] + (rules.frames - 1) * rules.step_um
  ) / 1e3  # mm, and the spacing of centres
  rows = [
    ("sequences", f"{SLIDES:,} slides · {centres} centres · {headings} "
     "headings", f"{n:,}"),
    ("tissue a slide that this needs", f"{centres} centres · ({side:.3f} mm)²",
     f"{centres * side**2:.1f} mm²"),
    ("bytes of shards", f"{n:,} · {corpus.bytes_each:,} B",
     f"{total / 1e12:.2f} TB"),
    ("a shard (one a slide)", f"{centres * headings:,} · "
     f"{corpus.bytes_each:,} B", f"{total / SLIDES / 1e6:.0f} MB"),
    ("CPU, sequences", f"{n:,} · {each} ms", f"{hours(each):.1f} h"),
    ("CPU, masks and pictures", f"{SLIDES:,} · {fixed:.2f} s",
     f"{start:.1f} h"),
    ("CPU, together", f"{hours(each):.1f} h + {start:.1f} h",
     f"**{hours(each) + start:.0f} h**"),
    (f"on {WORKERS} cores", f"{hours(each) + start:.0f} h / {WORKERS}",
     f"{(hours(each) + start) * 60 / WORKERS:.0f} min"),
    ("CPU if no file were tiled JPEG", f"{n:,} · ({each} ms + ({other} ms - "
     f"{native} ms) / {headings}) + {start:.1f} h",
     f"{hours(slower) + start:.0f} h"),
    ("the same by warped frames and mp4", f"{n:,} · {theirs} ms",
     f"{hours(theirs):,.0f} h"),
  ]  # fmt: skip
  lines = ["| what | sum | result |", "|---|---|---|"]
  return corpus, lines + [f"| {a} | {b} | {c} |" for a, b, c in rows]


def load_cells(corpus: Corpus, loads: Loads) -> list[str]:
  """Cells of a row from epochs a day to loader threads."""
  reached = REACHED * loads.clips_per_s
  records = reached / corpus.clips_each
  return [
    f"{loads.clips_per_s:,.0f}",
    f"{86400 * loads.clips_per_s / corpus.clips:,.0f}",
    f"{86400 * reached / corpus.clips:,.0f}",
    f"{records * corpus.bytes_each / 1e9:.2f}",
    f"{records / corpus.records_per_s / loads.chips:.2f}",
  ]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
  """Lines of a Markdown table."""
  return [
    f"| {' | '.join(head)} |",
    "|" + "---|" * len(head),
    *(f"| {' | '.join(row)} |" for row in rows),
  ]


def training_lines(folder: pathlib.Path, corpus: Corpus) -> list[str]:
  """Epochs a day on slices of TPUs and on servers with GPUs."""
  rows = read(folder, "aot_table")["rows"]
  head = [
    *("clips/s at the bound", "epochs a day at the bound"),
    *(f"epochs a day at {REACHED:.0%} of it", "GB/s read"),
    "loader threads a chip",
  ]
  tpus, gpus, flops = [], [], {}
  for name, reports in rows.items():
    if " on " not in name or ", " in name:
      continue  # comparisons, and the largest batch that fits
    preset, topology = name.split(" on ")
    row = reports[-1]
    loads = Loads(row["clips_per_second"], row["chips"])
    tpus.append([preset, topology, row["limit"], *load_cells(corpus, loads)])
    flops[preset] = row["model_flops"] / row["clips"]
  for name, (chips, peak) in GPUS.items():
    for preset, each in flops.items():
      loads = Loads(chips * peak / each, chips)
      gpus.append(
        [preset, name, f"{each / 1e9:.0f}", *load_cells(corpus, loads)]
      )
  epoch = corpus.sequences / corpus.records_per_s / 3600
  return [
    f"An epoch is {corpus.sequences:,} sequences · {corpus.clips_each} clips = "
    f"{corpus.clips:,} clips, and takes the loader {corpus.sequences:,} / "
    f"{corpus.records_per_s} a second = {epoch:.1f} hours of one thread.",
    "",
    "TPU, two sequences a chip and step:",
    "",
    *table(["ViT", "slice", "limited by", *head], tpus),
    "",
    "GPU, bound = peak bfloat16 FLOP/s over model FLOPs a clip:",
    "",
    *table(["ViT", "GPUs", "GFLOP a clip", *head], gpus),
  ]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--results", type=pathlib.Path, default=harness.RESULTS)
  parser.add_argument("--write", action="store_true")
  args = parser.parse_args()
  corpus, lines = data_lines(args.results)
  text = "\n".join(
    ["### Preparation", "", *lines, "", "### Training", ""]
    + training_lines(args.results, corpus)
  )
  print(text)
  if args.write:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}")


if __name__ == "__main__":
  main()
