"""The commands of the README and the scripts of examples/, at smoke size."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests import small_run

_SMOKE = {
  "configs/prep_wsi.py": "configs/prep_wsi.py:smoke",
  "configs/prep_series.py": "configs/prep_series.py:smoke",
  "configs/prep_pictures.py": "configs/prep_pictures.py:smoke",
  "configs/videomae.py:base": "configs/videomae.py:smoke",
  "configs/contrastive.py:tvrl": "configs/contrastive.py:tvrl,smoke",
  "configs/embed_tiles.py:resnet50_trunc": "configs/embed_tiles.py:smoke",
  "configs/mil.py": "configs/mil.py:smoke",
  "configs/segment_slides.py": "configs/segment_slides.py:smoke",
  "configs/sweep.py": "configs/sweep.py:smoke",
}
_RANDOM_ENCODER = (
  "--config.encoder.random_weights=True",
  "--config.encoder.tile_px=64",
)
# What else makes them small, by what a word is in the README.
_SMALL = {
  "--slides=6": ("--slides=6", "--size_px", "1024", "768"),
  "--slides=60": ("--slides=12", "--mpp=2", "--size_px", "800", "800"),
  "--config.encoder.weights=WEIGHTS": _RANDOM_ENCODER,
  "--config.tiles.mpp=0.6": ("--config.tiles.mpp=4.0",),
  "--patients=12": ("--patients=4",),
  "--config.data.path=PICTURES": ("--config.data.path=synthetic",),
  "--pictures=600": ("--pictures=49", "--px=64", "--mpp=2"),
  "--config.grid=(('seed', (0, 1)),)": ("--config.grid=(('seed', (0,)),)",),
  "--config=configs/probe.py": (
    *("--config=configs/probe.py:quick", "--config.probe.fractions=(1.0,)"),
    "--config.probe.seeds=(0,)",
  ),
  # Of the test's eight devices one divides a batch of nine.
  "--config=configs/segment.py:student": (
    "--config=configs/segment.py:student,smoke",
    "--config.data.batch_size=9",
  ),
  "--config=configs/spatial.py": (
    *("--config=configs/spatial.py", "--config.statistics.simulations=39"),
    "--config.data.workers=0",
  ),
}
# Folders and the like that the README writes in capitals.
_PLACES = (
  *("SLIDES", "DATA", "RUN", "SERIES", "VISITS", "TVRL", "PROBE", "SWEEP"),
  *("NODES", "TILES", "MIL", "SCORES", "CELLS", "SPATIAL", "INDEX", "HITS"),
  *("COHORT", "PICTURES", "MASKS", "OUTLINES"),
)


def job_commands(readme):
  """Python commands of the README's table, one list of words each."""
  commands = [shlex.split(x) for x in re.findall(r"`(python -?\w.*?)`", readme)]
  # Data is needed first; the README names it last.
  return sorted(
    commands, key=lambda words: not words[2].startswith("data_prep.synthetic")
  )


def call(words, repo_root, **environ):
  done = subprocess.run(
    words,
    cwd=repo_root,
    capture_output=True,
    text=True,
    timeout=600,
    env={**os.environ, **environ},
  )
  assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
  return done.stderr


def check_sweep(folder, said, again):
  """One run is done, and what is done is left alone."""
  assert "orbax" not in said.lower()
  assert pd.read_csv(folder / "sweep.csv")["state"].tolist() == ["done"]
  assert pd.read_csv(folder / "sweep_summary.csv")["count"].tolist() == [1]
  (log,) = folder.glob("runs/*/log.txt")
  before = log.read_text()
  again()
  assert log.read_text() == before


@pytest.mark.slow
def test_every_command_of_the_readme_runs(
  repo_root, python, tmp_path, monkeypatch
):
  monkeypatch.chdir(repo_root)
  small_run.use_devices(monkeypatch, 1)
  readme = (repo_root / "README.md").read_text()
  folders = {name: tmp_path / name.lower() for name in _PLACES}
  commands = job_commands(readme)
  assert len(commands) == 24
  for words in commands:
    words = [small for word in words for small in _SMALL.get(word, (word,))]
    for short, smoke in _SMOKE.items():
      words = [re.sub(rf"={short}$", f"={smoke}", word) for word in words]
    for name, folder in folders.items():
      words = [re.sub(rf"\b{name}\b", str(folder), word) for word in words]
    if words[1] == "main.py":
      small_run.main(*words[2:])
    else:
      said = call([python, *words[1:]], repo_root)
  result = json.loads((folders["RUN"] / "evaluation.json").read_text())
  assert result["step"] == 12 and set(result["loss"]) == {"0.5", "0.75", "0.9"}
  with np.load(folders["RUN"] / "embeddings" / "val.npz") as arrays:
    assert arrays["features"].shape == (len(arrays["index"]), 32)
  page = (folders["RUN"] / "report" / "index.html").read_text()
  for word in ("Reconstructions", "Nearest neighbours", "syn_00"):
    assert word in page
  for name in ("index.html", "slides/lymph_000/regions.geojson"):
    assert (folders["MIL"] / "report" / name).is_file()
  assert (folders["SCORES"] / "predictions_slide.csv").is_file()
  assert "cells_00" in (folders["SPATIAL"] / "index.html").read_text()
  assert (folders["MASKS"] / "segmentation.csv").is_file()
  assert len(list((folders["OUTLINES"] / "geojson").iterdir())) == 6
  assert (folders["HITS"] / "hits.csv").read_text().count("\n") > 1
  assert words[2] == "wsiseq_jax.sweep"
  check_sweep(
    folders["SWEEP"], said, lambda: call([python, *words[1:]], repo_root)
  )
  snippet = re.search(r"```python\n(.*?)```", readme, re.S).group(1)
  snippet = snippet.replace("DATA", str(folders["DATA"]))
  check = "import sys; assert len(source) > 0 and 'panels' in source[0]"
  check += "; assert 'tensorflow' not in sys.modules"
  check += "; assert 'data_prep' not in sys.modules"
  subprocess.run(
    [sys.executable, "-c", f"{snippet}\n{check}"], cwd=tmp_path, check=True
  )


@pytest.mark.slow
def test_tcga_sequences(repo_root, python, tmp_path):
  slides, out = tmp_path / "slides", tmp_path / "out"
  synthetic = "data_prep.synthetic.slides"
  command = [python, "-m", synthetic, f"--out={slides}"]
  call([*command, "--size_px", "1024", "768"], repo_root)
  for number, path in enumerate(sorted(slides.glob("*.tiff"))):
    # Two slides of each patient, each in a folder as gdc-client leaves it.
    name = f"TCGA-A1-A0S{number // 2}-01Z-00-DX{number}"
    folder = slides / f"file_{number}"
    folder.mkdir()
    path.rename(folder / f"{name}.0aB1.tiff")
  call(
    ["examples/tcga_sequences.sh", str(slides), str(out)],
    repo_root,
    PYTHON=python,
    PREP="configs/prep_wsi.py:smoke",
    MODEL="configs/videomae.py:smoke",
  )
  assert "TCGA-A1-A0S0," in (out / "data" / "slides.csv").read_text()
  assert "TCGA-A1-A0S" in (out / "report" / "index.html").read_text()


@pytest.mark.slow
def test_camelyon16(repo_root, python, tmp_path):
  slides, out = tmp_path / "slides", tmp_path / "out"
  command = [python, "-m", "data_prep.synthetic.lymph.nodes"]
  command += [f"--out={slides}", "--slides=12", "--mpp=2"]
  call([*command, "--size_px", "800", "800"], repo_root)
  files, reference = sorted(slides.rglob("lymph_*.tiff")), []
  for number, path in enumerate(files):
    kind = ("normal", "tumor")[number % 2]
    name = f"{kind}_{number:03d}"
    if number >= 8:
      name = f"test_{number:03d}"
      reference.append(f"{name}.tif,{kind.title()},IDC,None\n")
    path.rename(path.with_name(f"{name}.tif"))
  (tmp_path / "reference.csv").write_text("".join(reference))
  call(
    [
      "examples/camelyon16.sh",
      str(slides),
      str(tmp_path / "reference.csv"),
      "",
      str(out),
    ],
    repo_root,
    PYTHON=python,
    ENCODER="configs/embed_tiles.py:smoke",
    MODEL="configs/mil.py:gated,smoke",
    TILES=" ".join((*_RANDOM_ENCODER, "--config.tiles.mpp=4.0")),
  )
  scores = (out / "mil" / "predictions_slide.csv").read_text()
  assert "test_008" in scores and "normal_000" not in scores
  assert (out / "mil" / "report" / "index.html").is_file()


@pytest.mark.slow
def test_series(repo_root, python, tmp_path):
  series, out = tmp_path / "series", tmp_path / "out"
  command = [python, "-m", "data_prep.synthetic.series"]
  call([*command, f"--out={series}", "--subjects=60"], repo_root)
  call(
    ["examples/series.sh", str(series / "series.csv"), str(out)],
    repo_root,
    PYTHON=python,
    SIZE=",smoke",
    PREP="configs/prep_series.py:smoke",
    PROBE="configs/probe.py:quick",
    METHODS="tvrl mae",
  )
  table = (out / "methods.csv").read_text()
  assert "tvrl" in table and "mae" in table


def test_every_file_the_readme_names_exists(repo_root):
  names = set()
  for page in (repo_root / "README.md", *(repo_root / "docs").glob("*.md")):
    names |= set(
      re.findall(
        r"`((?:wsiseq_jax|data_prep|configs|benchmarks|examples|docs)"
        r"/[\w/.]*)",
        page.read_text(),
      )
    )
  assert len(names) > 10
  assert [name for name in names if not (repo_root / name).exists()] == []


def test_make_targets_of_the_readme_exist(repo_root):
  readme = (repo_root / "README.md").read_text()
  makefile = (repo_root / "Makefile").read_text()
  targets = set(re.findall(r"\bmake (?:[A-Z]+=\S+ )*([a-z]+)\b", readme))
  assert {"demo", "test", "aot", "lint"} <= targets
  for target in targets:
    assert re.search(rf"^{target}:", makefile, re.M), target
