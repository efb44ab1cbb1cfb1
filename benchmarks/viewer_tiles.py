"""Times tiles of the viewer, and watches its memory.

  python benchmarks/viewer_tiles.py                 (about a minute)

Slides are those of the folder that `WSISEQ_DATA` names (`../shared/data`
without it). The server is a process of its own on one core; the client is
another one. Files lie in the page cache.

- Stored: tiles of level 0 of the 40x slide, a JPEG TIFF, sent as stored, by one
  client on one connection.
- Made: the level of half its size, which is read, shrunk and encoded.
- Memory: tiles of random levels of all slides in turn, `server.open_slides` of
  them open at once; resident memory of the server after each thousand.

Writes `benchmarks/results/viewer_tiles.json`.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import time

import harness
import numpy as np
import psutil

from data_prep.files import schema
from wsiseq_jax.view import job
from wsiseq_jax.view.settings import Settings

SLIDE = "bs9_duodenum_giardiasis_he2_40x"


def serve(spec: str, line) -> None:
  """A server on one core; tells its port and its slides, then waits."""
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  settings = schema.build(
    Settings,
    {"data": {"slides": spec}, "layers": {}, "search": {}, "server": {}},
  )
  slides = job.registered(spec, "")
  guarded = job.build(settings, slides, "", {})
  with socket.create_server(("127.0.0.1", 0)) as opened:
    with job.serving(guarded, opened):
      keys = {e.slide_id: key for key, e in slides.entries.items()}
      line.send((opened.getsockname()[1], keys))
      line.recv()


def get(client: http.client.HTTPConnection, path: str) -> bytes:
  client.request("GET", path)
  answer = client.getresponse()
  data = answer.read()
  assert answer.status == 200, (path, answer.status)
  return data


def timed(client, paths) -> dict[str, float]:
  """Tiles per second, and milliseconds a tile."""
  times = []
  for path in paths:
    start = time.perf_counter()
    get(client, path)
    times.append(time.perf_counter() - start)
  times = np.array(times)
  return {
    "tiles": len(times),
    "tiles_per_second": float(len(times) / times.sum()),
    "median_ms": float(np.median(times) * 1000),
    "p95_ms": float(np.quantile(times, 0.95) * 1000),
  }


def tiles_of(slide, level: int, rng, count: int) -> list[str]:
  """Addresses of tiles of a level, in random order, none twice."""
  columns, rows = slide["levels"][level]["grid"]
  chosen = rng.permutation(columns * rows)[:count]
  at = f"/api/slides/{slide['key']}/tiles/{level}"
  return [f"{at}/{i % columns}/{i // columns}" for i in chosen.tolist()]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tiles", type=int, default=10_000)
  args = parser.parse_args()
  data = os.environ.get("WSISEQ_DATA", str(harness.real_slide().parents[1]))
  spec = ",".join(f"{data}/{name}" for name in ("slides", "native", "dicom"))
  here, there = multiprocessing.Pipe()
  server = multiprocessing.get_context("spawn").Process(
    target=serve, args=(spec, there)
  )
  server.start()
  port, keys = here.recv()
  client = http.client.HTTPConnection("127.0.0.1", port)
  slides = [
    json.loads(get(client, f"/api/slides/{key}")) for key in keys.values()
  ]
  big = next(slide for slide in slides if slide["id"] == SLIDE)
  rng = np.random.default_rng(0)
  found = {
    "machine": harness.machine(),
    "load_average": harness.load_average(),
    "stored": timed(client, tiles_of(big, 0, rng, 2000)),
    "made": timed(client, tiles_of(big, 1, rng, 500)),
  }
  process = psutil.Process(server.pid)
  memory = []
  for number in range(args.tiles):
    slide = slides[number % len(slides)]
    level = int(rng.integers(len(slide["levels"])))
    (path,) = tiles_of(slide, level, rng, 1)
    get(client, path)
    if (number + 1) % (args.tiles // 10) == 0:
      memory.append(round(process.memory_info().rss / 1e6))
  found["memory"] = {
    "slides": len(slides),
    "tiles": args.tiles,
    "resident_mb_after_each_tenth": memory,
  }
  here.send("end")
  server.join()
  print(harness.write_result("benchmarks/results/viewer_tiles.json", found))


if __name__ == "__main__":
  main()
