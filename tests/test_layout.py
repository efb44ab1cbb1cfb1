"""The order of the folders: imports run downwards, and never in a circle.

`ORDER` lists the rooms from the lowest up, as `docs/reading.md` does. A file
may import from its own room and from rooms above it in the list. Late imports
(inside functions) count like any other.
"""

import ast
import graphlib
import pathlib

import pytest

# Packages of one line stand side by side: they do not import one another.
ORDER = (
  ("data_prep.files",),
  ("data_prep.records", "data_prep.splits", "data_prep.targets"),
  ("data_prep.shards",),
  ("data_prep.wsi",),
  ("data_prep.cluster",),
  ("data_prep.runs",),
  ("data_prep.groups",),
  ("data_prep.pictures", "data_prep.sequences", "data_prep.series"),
  ("data_prep.synthetic",),
  ("data_prep.__main__",),
  ("wsiseq_jax.core",),
  ("wsiseq_jax.models",),
  ("wsiseq_jax.data",),
  ("wsiseq_jax.weights",),
  ("wsiseq_jax.tasks",),
  ("wsiseq_jax.loop",),
  ("wsiseq_jax.encoders", "wsiseq_jax.tpu"),
  ("wsiseq_jax.metrics",),
  ("wsiseq_jax.probe",),
  ("wsiseq_jax.maps",),
  ("wsiseq_jax.mil",),
  ("wsiseq_jax.spatial",),
  ("wsiseq_jax.segment",),
  ("wsiseq_jax.search",),
  ("wsiseq_jax.reports", "wsiseq_jax.view"),
  ("wsiseq_jax.sweep",),
)
# The flat files of wsiseq_jax are two rooms: what everything stands on, and
# the loop that trains tasks.
LOOP = {"run", "train", "evaluate", "embed", "fit"}
# What wsiseq_jax may know of data_prep beside files/, wsi/ and the format.
JAX_FREE = ("data_prep",)


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Dotted name → file, of the product."""
  found = {}
  for package in ("data_prep", "wsiseq_jax"):
    for path in sorted((root / package).rglob("*.py")):
      name = ".".join(path.relative_to(root).with_suffix("").parts)
      found[name.removesuffix(".__init__")] = path
  return found


def imported(path: pathlib.Path, known: dict[str, pathlib.Path]) -> set[str]:
  """Modules of the product that a file imports, late imports included."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {a.name for a in node.names if a.name in known}
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        if full in known:
          found.add(full)
        elif node.module in known:
          found.add(node.module)
  return found


def room(module: str) -> str:
  """The room of a module, as `ORDER` names it."""
  parts = module.split(".")
  if len(parts) == 1:
    return ""  # the packages themselves, which import nothing
  if parts[0] == "wsiseq_jax":
    names = {r for row in ORDER for r in row}
    if f"wsiseq_jax.{parts[1]}" not in names:
      return f"wsiseq_jax.{'loop' if parts[1] in LOOP else 'core'}"
  return ".".join(parts[:2])


@pytest.fixture(scope="module")
def graph(repo_root):
  known = modules(repo_root)
  return {name: imported(path, known) for name, path in known.items()}


def test_imports_run_downwards(graph):
  floor = {name: i for i, row in enumerate(ORDER) for name in row}
  wrong = [
    f"{module} imports {other}"
    for module, others in graph.items()
    for other in others
    if room(module) != room(other)
    and room(other)
    and floor[room(other)] >= floor[room(module)]
  ]
  assert wrong == []


def test_no_circle_of_files(graph):
  # A package's __init__ and the files in it are told apart.
  graphlib.TopologicalSorter(
    {name: others - {name} for name, others in graph.items()}
  ).prepare()


def test_data_prep_needs_no_jax(repo_root):
  for path in (repo_root / "data_prep").rglob("*.py"):
    names = {
      part
      for node in ast.walk(ast.parse(path.read_text()))
      for part in (
        [a.name for a in node.names]
        if isinstance(node, ast.Import)
        else [node.module or ""]
        if isinstance(node, ast.ImportFrom)
        else []
      )
    }
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"jax", "flax", "wsiseq_jax"}, path


# Blocks of a config are called as their key, in each config that has them.
BLOCKS = {"Config", "Data", "Image", "Model", "Report", "Settings", "Setup"}
BLOCKS |= {"Tissue"}


def test_a_class_name_means_one_thing(repo_root):
  seen = {}
  for name, path in modules(repo_root).items():
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        seen.setdefault(node.name, []).append(name)
  twice = {k: v for k, v in seen.items() if len(v) > 1 and k not in BLOCKS}
  assert twice == {}
