"""Which index for how many vectors: recall, time, bytes and memory.

  python benchmarks/search_index.py [--rows=100000,1000000] [--lance=FOLDER]

Vectors of length 1 and width 256 are drawn block by block from a seed, on disk
in half precision: 2,000 clusters of 32 directions each, so that neighbours
differ in few directions, as features do. Queries are other draws from the same
clusters. Recall is that of the ten nearest against exact search. Every kind
runs in a process of its own, on one core, which is not given more than 4 GB;
its memory is the most that it took beyond what it had before. Pages of files,
which the system takes back when it needs them, do not count.

Kinds `x + vectors` rank 200 candidates anew by the vectors on disk. `here` is
HERE's setting: 128 lists, HNSW over them, 32 bytes a vector, one list looked
at. LanceDB is imported from `--lance`, where it was installed:
`pip install --target FOLDER lancedb pylance`. Ten million vectors have 1,024
lists, of which 32 are looked at: k-means of more takes too long here.

Writes `benchmarks/results/search_index.json`.
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import tempfile
import threading
import time

import harness
import numpy as np

WIDTH, BLOCK, QUERIES, K = 256, 100_000, 100, 10
_LIMIT = 4 << 30  # bytes that a process may have, without pages of files
_CLUSTERS, _DIRECTIONS = 2_000, 32
# FAISS's name, lists looked at, candidates ranked by the vectors (0 = none).
KINDS = {
  "exact, NumPy": ("numpy", 0, 0),
  "exact, JAX": ("jax", 0, 0),
  "exact, FAISS": ("Flat", 0, 0),
  "here": ("IVF128_HNSW32,PQ32", 1, 0),
  "here, 16 lists + vectors": ("IVF128_HNSW32,PQ32", 16, 200),
  "binary + vectors": ("binary", 0, 200),
  "lists, PQ64": ("IVF{lists},PQ64", 64, 0),
  "lists, PQ64 + vectors": ("IVF{lists},PQ64", 64, 200),
  "lists, RaBitQ + vectors (ours)": ("IVF{lists},RaBitQ", 64, 200),
  "lists, SQ8": ("IVF{lists},SQ8", 64, 0),
  "LanceDB IVF_PQ, refined": ("lance", 64, 200),
}
# At ten million: what fits, and HERE's.
_AT_MOST = {"exact, JAX": 10**6, "exact, FAISS": 10**6, "lists, SQ8": 10**6,
            "lists, PQ64": 10**6, "LanceDB IVF_PQ, refined": 10**6}  # fmt: skip


def clusters() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(_CLUSTERS, WIDTH)).astype(np.float32)
  directions = rng.normal(size=(64, _DIRECTIONS, WIDTH)).astype(np.float32)
  return centres / WIDTH**0.5, directions / WIDTH**0.5


def draw(count: int, seed: int) -> np.ndarray:
  """Vectors of length 1, the same for the same seed."""
  centres, directions = clusters()
  rng = np.random.default_rng([1, seed])
  of = np.sort(rng.integers(_CLUSTERS, size=count))
  out = centres[of]
  for kind in range(64):
    mine = np.flatnonzero(of % 64 == kind)
    inside = rng.normal(size=(len(mine), _DIRECTIONS)).astype(np.float32)
    out[mine] += 0.15 * inside @ directions[kind]
  out += 0.01 * rng.standard_normal(out.shape, np.float32)
  return out / np.linalg.norm(out, axis=1, keepdims=True)


def write_vectors(path: pathlib.Path, rows: int) -> None:
  out = np.lib.format.open_memmap(path, "w+", np.float16, (rows, WIDTH))
  for start in range(0, rows, BLOCK):
    count = min(BLOCK, rows - start)
    out[start : start + count] = draw(count, start)
  out.flush()


def exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """The rows of the ten nearest, by NumPy."""
  best = np.full((len(queries), K), -np.inf, np.float32)
  rows = np.zeros((len(queries), K), np.int64)
  for start in range(0, len(vectors), 65_536):
    block = vectors[start : start + 65_536].astype(np.float32)
    alike = np.concatenate([best, queries @ block.T], axis=1)
    here = np.arange(start, start + len(block))[None].repeat(len(queries), 0)
    here = np.concatenate([rows, here], axis=1)
    order = np.argpartition(-alike, K, axis=1)[:, :K]
    best = np.take_along_axis(alike, order, 1)
    rows = np.take_along_axis(here, order, 1)
  return rows


def ranked(vectors, query, rows):
  rows = np.sort(rows[rows >= 0])
  alike = vectors[rows].astype(np.float32) @ query
  return rows[np.argsort(-alike)[:K]]


class Memory(threading.Thread):
  """The most memory that this process holds, without pages of files, MB."""

  def __init__(self):
    super().__init__(daemon=True)
    self.most = 0
    self.start()

  def now(self) -> int:
    """At this moment."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
      if line.startswith("RssAnon"):
        return int(line.split()[1]) // 1024
    raise OSError("/proc/self/status has no RssAnon")

  def run(self) -> None:
    """Looks fifty times a second."""
    while True:
      self.most = max(self.most, self.now())
      time.sleep(0.02)


def worker(options: dict) -> dict:
  """Builds one kind, asks it, and says what that took."""
  factory, lists, candidates = KINDS[options["kind"]]
  vectors = np.load(options["vectors"], mmap_mode="r")
  queries = draw(QUERIES, 10**9)
  truth = np.load(options["truth"])
  resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
  memory = Memory()
  before = memory.now()
  begin = time.perf_counter()
  search, size = make(factory, lists, candidates, vectors, options)
  built = time.perf_counter() - begin
  for query in queries[:5]:
    search(query)
  times, found = [], []
  for query in queries:
    begin = time.perf_counter()
    found.append(search(query))
    times.append(1e3 * (time.perf_counter() - begin))
  same = [len(set(a) & set(b)) for a, b in zip(found, truth, strict=True)]
  return {
    "recall_at_10": round(float(np.mean(same)) / K, 4),
    "ms_a_query": round(float(np.median(times)), 2),
    "ms_a_query_p95": round(float(np.quantile(times, 0.95)), 2),
    "bytes_a_vector": round(size / len(vectors), 1),
    "memory_mb": memory.most - before,
    "build_s": round(built, 1),
  }


def make(factory, lists, candidates, vectors, options):
  """A function of one query, and the bytes that it searches."""
  if factory == "numpy":

    def search(query):
      return exact(vectors, query[None])[0]

    return search, vectors.nbytes
  if factory == "jax":
    return _jax(vectors)
  if factory == "lance":
    return _lance(lists, candidates, vectors, options)
  return _faiss(factory, lists, candidates, vectors)


def _jax(vectors):
  import jax
  import jax.numpy as jnp

  held = jnp.asarray(np.asarray(vectors, np.float32))
  nearest = jax.jit(lambda v, q: jax.lax.approx_max_k(v @ q, K)[1])
  return lambda q: np.asarray(nearest(held, q)), held.nbytes


def _faiss(factory, lists, candidates, vectors):
  import faiss

  faiss.omp_set_num_threads(1)
  rng = np.random.default_rng(0)
  if factory == "binary":
    index = faiss.IndexBinaryFlat(WIDTH)
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)

    def bits(block):
      return np.packbits(block.astype(np.float32) @ turn > 0, axis=1)

    for start in range(0, len(vectors), BLOCK):
      index.add(bits(vectors[start : start + BLOCK]))
    return (
      lambda q: ranked(
        vectors, q, index.search(bits(q[None]), candidates)[1][0]
      ),
      len(vectors) * WIDTH // 8,
    )
  from wsiseq_jax.search import ann

  made = ann.lists_for(len(vectors))
  if len(vectors) > 1_000_000:  # k-means of 16,384 lists would take an hour
    made, lists = 1024, min(lists, 32)
  index = faiss.index_factory(WIDTH, factory.format(lists=made))
  if "IVF" in factory:
    count = min(len(vectors), ann.sample_size(made))
    sample = np.sort(rng.choice(len(vectors), count, replace=False))
    index.train(vectors[sample].astype(np.float32))
    index.nprobe = lists
  for start in range(0, len(vectors), BLOCK):
    index.add(vectors[start : start + BLOCK].astype(np.float32))
  size = WIDTH * 4 if factory == "Flat" else index.sa_code_size() + 8

  def search(query):
    found = index.search(query[None], candidates or K)[1][0]
    return ranked(vectors, query, found) if candidates else found

  return search, len(vectors) * size


def _lance(lists, candidates, vectors, options):
  sys.path.append(options["lance"])
  import lancedb
  import pyarrow as pa

  folder = tempfile.mkdtemp(dir=pathlib.Path(options["vectors"]).parent)
  kind = pa.list_(pa.float32(), WIDTH)
  schema = pa.schema([("row", pa.int64()), ("vector", kind)])

  def blocks():
    for start in range(0, len(vectors), BLOCK):
      block = np.asarray(vectors[start : start + BLOCK], np.float32)
      flat = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), WIDTH)
      rows = pa.array(np.arange(start, start + len(block)))
      yield pa.RecordBatch.from_arrays([rows, flat], schema=schema)

  table = lancedb.connect(folder).create_table("v", blocks(), schema=schema)
  table.create_index(
    metric="l2", num_partitions=4 * round(len(vectors) ** 0.5),
    num_sub_vectors=64,
  )  # fmt: skip
  size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*.idx"))

  def search(query):
    found = table.search(query).nprobes(lists).refine_factor(candidates // K)
    return found.limit(K).select(["row"]).to_arrow()["row"].to_numpy()

  return search, size


def keep(rows: int, kind: str, found: dict) -> None:
  """Puts a result beside those that are there."""
  path = harness.RESULTS / "search_index.json"
  known = json.loads(path.read_text()) if path.is_file() else {}
  known |= {"machine": harness.machine(), "cpu": harness.cpu_name()}
  known.setdefault("rows", {}).setdefault(str(rows), {})[kind] = found
  harness.write_result(path, known)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", default="100000,1000000")
  parser.add_argument("--kinds", default="", help="';' between; all without")
  parser.add_argument("--lance", default="", help="where LanceDB is installed")
  parser.add_argument("--work", help="folder for the vectors")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    harness.say_result(worker(json.loads(options.worker)))
    return
  kinds = [k for k in options.kinds.split(";") if k] or list(KINDS)
  for rows in map(int, options.rows.split(",")):
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
      vectors = pathlib.Path(folder) / "vectors.npy"
      truth = pathlib.Path(folder) / "truth.npy"
      write_vectors(vectors, rows)
      np.save(
        truth, exact(np.load(vectors, mmap_mode="r"), draw(QUERIES, 10**9))
      )
      for kind in kinds:
        if rows > _AT_MOST.get(kind, rows) or (
          "Lance" in kind and not options.lance
        ):
          continue
        found = harness.run_variant(
          __file__,
          sys.executable,
          {"kind": kind, "vectors": str(vectors), "truth": str(truth),
           "lance": options.lance},
          OMP_NUM_THREADS="1",
          OPENBLAS_NUM_THREADS="1",
          LANCE_CPU_THREADS="1",
          JAX_PLATFORMS="cpu",
          XLA_FLAGS="--xla_cpu_multi_thread_eigen=false",
        ) | {"load": round(os.getloadavg()[0], 1)}  # fmt: skip
        print(rows, kind, found, flush=True)
        keep(rows, kind, found)


if __name__ == "__main__":
  main()
