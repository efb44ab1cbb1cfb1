"""The commands of the README, run as they stand but at smoke size."""

import re
import shlex
import subprocess
import sys

import pytest

_SMOKE = {
  "configs/prep_wsi.py": "configs/prep_wsi.py:smoke",
  "configs/prep_series.py": "configs/prep_series.py:smoke",
  "configs/videomae.py:base": "configs/videomae.py:smoke",
  "configs/contrastive.py:tvrl": "configs/contrastive.py:tvrl,smoke",
  "configs/probe.py": "configs/probe.py:quick",
  "configs/embed_tiles.py:resnet50_trunc": "configs/embed_tiles.py:smoke",
  "configs/mil.py": "configs/mil.py:smoke",
}
# What else makes them small, by what a word is in the README.
_SMALL = {
  "--slides=60": ("--slides=12", "--mpp=2", "--size_px", "800", "800"),
  "--config.encoder.weights=WEIGHTS": (
    "--config.encoder.random_weights=True", "--config.encoder.tile_px=64",
  ),
  "--config.tiles.mpp=0.6": ("--config.tiles.mpp=2.0",),
}  # fmt: skip
# Folders and the like that the README writes in capitals.
_PLACES = (
  *("SLIDES", "DATA", "RUN", "SERIES", "VISITS", "TVRL", "PROBE", "SWEEP"),
  *("NODES", "TILES", "MIL", "SCORES"),
)


def blocks(readme, language=""):
  return re.findall(rf"^```{language}\n(.*?)^```", readme, re.S | re.M)


def job_commands(readme):
  """Python commands of the README, one list of words each."""
  commands = []
  for block in blocks(readme):
    lines = block.replace("\\\n", " ").splitlines()
    commands += [shlex.split(x) for x in lines if x.startswith("python ")]
  # Pictures are needed first; the README tells of them last.
  return sorted(
    commands,
    key=lambda words: not words[2].startswith("data_prep.synthetic.slides"),
  )


@pytest.mark.slow
def test_every_command_of_the_readme_runs(repo_root, tmp_path):
  readme = (repo_root / "README.md").read_text()
  folders = {name: tmp_path / name.lower() for name in _PLACES}
  commands = job_commands(readme)
  assert len(commands) == 16
  for words in commands:
    words = [small for word in words for small in _SMALL.get(word, (word,))]
    for short, smoke in _SMOKE.items():
      words = [re.sub(rf"={short}$", f"={smoke}", word) for word in words]
    for name, folder in folders.items():
      words = [re.sub(rf"\b{name}\b", str(folder), word) for word in words]
    done = subprocess.run(
      [sys.executable, *words[1:]],
      cwd=repo_root,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
  page = (folders["RUN"] / "report" / "index.html").read_text()
  for word in ("Reconstructions", "Nearest neighbours", "syn_00"):
    assert word in page
  for name in ("index.html", "slides/lymph_000/regions.geojson"):
    assert (folders["MIL"] / "report" / name).is_file()
  assert (folders["SCORES"] / "predictions_slide.csv").is_file()
  snippet = blocks(readme, "python")[0].replace("DATA", str(folders["DATA"]))
  check = "import sys; assert len(source) > 0 and 'panels' in source[0]"
  check += "; assert 'tensorflow' not in sys.modules"
  check += "; assert 'data_prep' not in sys.modules"
  subprocess.run(
    [sys.executable, "-c", f"{snippet}\n{check}"], cwd=tmp_path, check=True
  )


def test_every_file_the_readme_names_exists(repo_root):
  readme = (repo_root / "README.md").read_text()
  names = re.findall(
    r"`((?:wsiseq_jax|data_prep|configs|benchmarks)/[\w/.]*)`", readme
  )
  assert len(names) > 10
  missing = [name for name in names if not (repo_root / name).exists()]
  assert not missing


def test_make_targets_of_the_readme_exist(repo_root):
  readme = (repo_root / "README.md").read_text()
  makefile = (repo_root / "Makefile").read_text()
  targets = set(re.findall(r"\bmake (?:[A-Z]+=\S+ )*([a-z]+)\b", readme))
  assert {"demo", "test", "aot", "lint"} <= targets
  for target in targets:
    assert re.search(rf"^{target}:", makefile, re.M), target
