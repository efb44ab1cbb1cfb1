"""The job `index`: what is added, refused, corrected; and killed."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests.search import tiny_index
from wsiseq_jax.mil import results
from wsiseq_jax.search import Index, build, index, settings, store

ONE, TWO = tiny_index.directions(3), tiny_index.directions(2, seed=1)


def errors_of(built) -> dict[str, str]:
  return {error.slide: error.error for error in built.errors}


def files(folder) -> dict[str, int]:
  return {
    str(path.relative_to(folder)): path.stat().st_mtime_ns
    for path in folder.rglob("*")
    if path.is_file() and path.name not in (".lock", "errors.csv")
  }


def test_a_second_run_changes_nothing(tmp_path):
  first = tiny_index.make(tmp_path, {"a": ONE, "b": TWO})
  assert (first.rows, first.slides, first.added) == (5, 2, 2)
  before = files(tmp_path / "index" / "parts")
  again = tiny_index.make(tmp_path, {})
  assert (again.rows, again.added, again.corrected) == (5, 0, 0)
  assert files(tmp_path / "index" / "parts") == before


def test_slides_are_added_changed_and_removed(tmp_path):
  tiny_index.make(tmp_path, {"a": ONE, "b": TWO})
  (old,) = (tmp_path / "index" / "parts").iterdir()
  before = files(old)
  built = tiny_index.make(tmp_path, {"a": TWO, "c": ONE})
  assert (built.rows, built.slides, built.added) == (7, 3, 2)
  assert files(old) == before  # what was there is not written again
  opened = Index.open(tmp_path / "index")
  # Slide a has the vectors of b now, under numbers of its own.
  hits = opened.search(TWO[:1], k=2)
  assert hits["slide_id"].tolist() == ["b", "a"]
  assert hits["row"].tolist() == [3, 5]
  np.testing.assert_allclose(hits["distance"], 0, atol=2e-3)
  only = settings.SearchSettings(
    workdir=str(tmp_path / "index"),
    index=settings.IndexBlock(remove=("b",)),
  )
  assert build.build(only).slides == 2
  with pytest.raises(ValueError, match="'b' is not in the index"):
    build.build(only)


def test_facts_of_slides_are_corrected(tmp_path):
  def table(label):
    rows = [dict(Slide="A.svs", case="p", Diagnosis=label, ORGAN="lung")]
    return str(tiny_index.write_table(tmp_path / "t.csv", rows))

  how = {"label": "diagnosis", "cohort": "mine"}
  tiny_index.make(tmp_path, {"a": ONE, "b": TWO}, table=table("x"), **how)
  slides = Index.open(tmp_path / "index").slides.set_index("slide_id")
  assert slides.loc[
    "a", ["patient_id", "label", "organ", "cohort"]
  ].tolist() == [*("p", "x", "lung", "mine")]
  # What no table knows is a patient of its own.
  assert slides.loc["b", ["patient_id", "label"]].tolist() == ["b", ""]
  built = tiny_index.make(tmp_path, {}, table=table("y"), **how)
  assert (built.added, built.corrected) == (0, 1)
  assert Index.open(tmp_path / "index").rows([0])["label"].tolist() == ["y"]


def test_contradictions_of_a_table_are_rows(tmp_path):
  rows = [
    dict(slide_id="a", label="x"), dict(slide_id="A.svs", label="y"),
    dict(slide_id="b", label="z"),
  ]  # fmt: skip
  table = tiny_index.write_table(tmp_path / "t.csv", rows)
  built = tiny_index.make(tmp_path, {"a": ONE, "b": TWO}, table=str(table))
  assert errors_of(built) == {"a": "contradicting_rows"}
  slides = Index.open(tmp_path / "index").slides
  assert slides[["slide_id", "label"]].values.tolist() == [["b", "z"]]
  with pytest.raises(ValueError, match="config.index.label.*no column 'grade'"):
    tiny_index.make(tmp_path, {}, table=str(table), label="grade")


def test_tables_of_strangers(tmp_path, capsys):
  """Ids by Excel, scales that are none, slides that nothing is said of."""
  rows = [
    dict(Slide="A.TIF", **{"Patient ID": "1.0"}, label="Tumour", mpp="0.5"),
    dict(Slide="b", **{"Patient ID": "1"}, label="tumour", mpp="-1"),
    dict(Slide="c", **{"Patient ID": "NA"}, label="NA", mpp="0.5 um"),
    dict(Slide="d", **{"Patient ID": "1"}, label="tumour", mpp=""),
  ]
  table = tiny_index.write_table(tmp_path / "t.csv", rows)
  vectors = dict.fromkeys("abcde", ONE)
  built = tiny_index.make(tmp_path, vectors, table=str(table))
  assert errors_of(built) == {"b": "mpp_out_of_range", "c": "bad_row"}
  slides = Index.open(tmp_path / "index").slides
  found = slides[["slide_id", "patient_id", "label"]].values.tolist()
  assert found == [["a", "1", "Tumour"], ["d", "1", "tumour"], ["e", "e", ""]]
  said = capsys.readouterr().err
  assert "says nothing of 1 of the 5 slides" in said
  assert "differ in upper and lower case" in said
  # A row that cannot be read says something of its slide that is not known.
  long = tmp_path / "long.csv"
  long.write_text("slide,label\nA.tif,x,y\nb,x\n")
  built = tiny_index.make(tmp_path / "2", vectors, table=str(long))
  assert errors_of(built) == {"A.tif": "bad_row"} and built.slides == 4
  other = tiny_index.write_table(tmp_path / "u.csv", [dict(slide="x", label=1)])
  with pytest.raises(ValueError, match="none of the 5 slides, such as 'a'"):
    tiny_index.make(tmp_path, {}, table=str(other))


def test_one_encoder_in_one_index(tmp_path):
  features = tmp_path / "features"
  tiny_index.write_slide(features, "b", ONE, encoder="other")
  tiny_index.write_slide(features, "c", tiny_index.directions(2, 5))
  tiny_index.write_slide(features, "d", ONE, mpp=2.0)
  (features / "e.h5").write_bytes(b"no HDF5")
  built = tiny_index.make(tmp_path, {"a": TWO})
  assert built.slides == 1
  refused = dict.fromkeys("bcd", "other_encoder") | {"e": "unreadable"}
  assert errors_of(built) == refused
  text = (tmp_path / "index" / "errors.csv").read_text()
  assert "by encoder other at 1 um/px, but the index has" in text
  (features / "a.h5").unlink()
  with pytest.raises(ValueError, match="made_by 'one', these .* 'other'"):
    tiny_index.make(tmp_path, {})
  assert len(Index.open(tmp_path / "index")) == 2


def test_slides_that_cannot_be_used_are_rows(tmp_path):
  bad = ONE.copy()
  bad[1] = 0  # no direction
  path = tiny_index.write_slide(tmp_path / "features", "nan", ONE)
  with h5py.File(path, "r+") as file:
    file["features"][0, 0] = np.nan
  tiny_index.write_slide(tmp_path / "features", "none", ONE[:0])
  built = tiny_index.make(tmp_path, {"good": TWO, "zero": bad})
  assert errors_of(built) == dict.fromkeys(("nan", "zero"), "unreadable")
  # A slide without tissue is there, and has no row.
  assert (built.slides, built.rows) == (2, 2)
  hits = Index.open(tmp_path / "index").search(TWO[1:], k=1)
  assert hits["slide_id"].tolist() == ["good"]


def test_nothing_to_index(tmp_path):
  (tmp_path / "features").mkdir()
  with pytest.raises(ValueError, match="no feature file"):
    tiny_index.make(tmp_path, {})
  (tmp_path / "features" / "a.h5").write_bytes(b"")
  with pytest.raises(ValueError, match="config.index.features.*cannot read"):
    tiny_index.make(tmp_path, {})
  assert not store.has_index(tmp_path / "index")
  with pytest.raises(ValueError, match="is no index"):
    build.build(
      settings.SearchSettings(
        workdir=str(tmp_path / "index"),
        index=settings.IndexBlock(remove=("a",)),
      )
    )


def test_regions_are_means_of_tiles(tmp_path):
  vectors = np.eye(4, dtype=np.float32)
  # Tiles of 100 px of 0.5 um: 50 um. Squares of 100 um are 2 x 2 tiles.
  xy = np.array([[0, 0], [100, 100], [200, 0], [500, 500]])
  tiny_index.write_slide(tmp_path / "features", "a", vectors, xy)
  built = tiny_index.make(tmp_path, {}, region_um=100.0)
  assert built.rows == 3
  opened = Index.open(tmp_path / "index")
  about = opened.rows([0, 1, 2]).sort_values("x0")
  assert about[["x0", "y0", "w0", "h0"]].to_numpy().tolist() == [
    [0, 0, 200, 200],
    [200, 0, 100, 100],
    [500, 500, 100, 100],
  ]
  half = 0.5**0.5
  first = opened.vectors(about["row"].to_numpy())[0]
  np.testing.assert_allclose(first, [half, half, 0, 0], atol=1e-3)


def test_features_of_others(tmp_path):
  features = tmp_path / "features"
  features.mkdir()
  with h5py.File(features / "clam.h5", "w") as file:
    file["features"] = ONE
    file["coords"] = np.array([[0, 0], [256, 0], [512, 0]])
  built = tiny_index.make(tmp_path, {})
  rows = Index.open(tmp_path / "index").rows(range(built.rows))
  assert rows["w0"].tolist() == [256.0] * 3
  stamp = tmp_path / "stamp"
  stamp.mkdir()
  with h5py.File(stamp / "s.h5", "w") as file:
    file["feats"] = ONE.astype(np.float16)
    file["coords"] = np.array([[0.0, 0], [128, 0], [256, 0]])
    file.attrs.update(unit="um", tile_size_um=128.0, tile_size_px=256)
  build.build(tiny_index.asked(tmp_path / "other", stamp))
  opened = Index.open(tmp_path / "other")
  assert opened.settings["mpp"] == 0.5
  # Micrometres without the slide's scale are no place on it.
  assert opened.rows([0])["x0"].isna().all()


def test_sequences_of_a_run(tmp_path):
  folder = tmp_path / "run" / "embeddings"
  folder.mkdir(parents=True)
  xy = np.zeros((3, 2, 2), np.float32)
  xy[:, 1, 0] = 40  # the frames drift 40 px to the right
  np.savez(
    folder / "train.npz", features=ONE, slide_id=np.array(["b", "a", "b"]),
    frame_level0_xy=xy, checkpoint=np.array("step7"),
  )  # fmt: skip
  asked = tiny_index.asked(
    tmp_path / "index", tmp_path / "run", source="sequences"
  )
  assert build.build(asked).slides == 2
  opened = Index.open(tmp_path / "index")
  hits = opened.search(ONE[1:2], k=1)
  assert hits["slide_id"].tolist() == ["a"]
  assert hits[["x0", "y0", "w0", "h0"]].to_numpy().tolist() == [[0, 0, 40, 0]]
  np.savez(
    folder / "val.npz", features=TWO, slide_id=np.array(["c", "c"]),
    frame_level0_xy=xy[:2], checkpoint=np.array("step8"),
  )  # fmt: skip
  with pytest.raises(ValueError, match="embeddings of several checkpoints"):
    build.build(asked)


def write_mil(workdir, width=8, hidden=5):
  """A MIL model with a first layer, as the job `mil` leaves it."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(width, hidden)).astype(np.float32)
  bias = rng.normal(size=hidden).astype(np.float32)
  result = results.Result(
    results.FoldRun(0, 0, 0),
    1,
    (),
    (0.0, 1.0),
    np.zeros(1),
    np.zeros(1),
    True,
    {},
  )
  params = {"tile": {"embed": {"kernel": kernel, "bias": bias}}}
  results.save(workdir / "models", result, params, ["made"])
  return kernel, bias


def test_layer_of_a_mil_model(tmp_path):
  kernel, bias = write_mil(tmp_path / "mil")
  built = tiny_index.make(tmp_path, {"a": ONE}, mil=str(tmp_path / "mil"))
  assert built.rows == 3
  wanted = ONE @ kernel + bias
  wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
  opened = Index.open(tmp_path / "index")
  np.testing.assert_allclose(opened.vectors(range(3)), wanted, atol=1e-3)
  with pytest.raises(ValueError, match="has mil '.*', these features have ''"):
    tiny_index.make(tmp_path, {})
  with pytest.raises(ValueError, match="mil_model = 'x'.*repeat0_fold0_seed0"):
    tiny_index.make(tmp_path, {}, mil=str(tmp_path / "mil"), mil_model="x")
  with pytest.raises(ValueError, match="takes features of width 8, .* has 3"):
    tiny_index.make(
      tmp_path / "narrow", {"a": np.eye(3)}, mil=str(tmp_path / "mil")
    )


def test_encoder_is_checked(tmp_path, monkeypatch):
  encoder = tiny_index.with_colour_encoder(monkeypatch)
  with pytest.raises(ValueError, match="config.encoder: .* width 3 .* width 8"):
    tiny_index.make(tmp_path, {"a": ONE}, encoder=encoder)
  tiny_index.write_slide(tmp_path / "b/features", "a", np.eye(3), encoder="two")
  with pytest.raises(ValueError, match="fingerprint one; .* encoder two"):
    tiny_index.make(tmp_path / "b", {}, encoder=encoder)


def test_a_larger_index_gets_codes_and_other_lists(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "EXACT", 300)
  first = tiny_index.directions(400)
  tiny_index.make(tmp_path, {"a": first}, part_rows=100)
  folder = tmp_path / "index"

  def kinds():
    quantisers = {path.stem for path in folder.glob("quantiser-*")}
    codes = [len(list(p.glob("codes-*"))) for p in folder.glob("parts/*")]
    return len(quantisers), sorted(codes)

  assert kinds() == (1, [1])
  lists = Index.open(folder).settings["quantiser_lists"]
  more = tiny_index.directions(40, seed=3)
  tiny_index.make(tmp_path, {"b": more})
  assert kinds() == (1, [1, 1])  # the same lists take what is new
  many = tiny_index.directions(5000, seed=4)
  tiny_index.make(tmp_path, {"c": many})
  opened = Index.open(folder)
  assert opened.settings["quantiser_lists"] >= 4 * lists
  # A reader of the state before may still need its files.
  assert kinds() == (2, [1, 2, 2])
  tiny_index.make(tmp_path, {"b": more[:20]})
  assert kinds()[0] == 1
  hits = opened.search(many[:50], k=1)
  np.testing.assert_allclose(hits["distance"], 0, atol=2e-3)


@pytest.mark.multiprocess
def test_parts_written_by_dask_are_the_same(tmp_path):
  slides = {f"s{i}": tiny_index.directions(20, seed=i) for i in range(4)}
  tiny_index.make(tmp_path, slides)
  here = Index.open(tmp_path / "index")
  asked = tiny_index.asked(
    tmp_path / "there", tmp_path / "features", part_rows=20, workers=2
  )
  assert build.build(asked).rows == 80
  there = Index.open(tmp_path / "there")
  np.testing.assert_array_equal(
    here.vectors(range(80)), there.vectors(range(80))
  )
  assert here.rows(range(80)).equals(there.rows(range(80)))


_KILLED = """
import os, sys
sys.path.insert(0, os.getcwd())
from tests.search import tiny_index
from wsiseq_jax.search import Index, build, store
import pathlib, json

folder = pathlib.Path(sys.argv[1])
query = tiny_index.directions(1)

def state():
  opened = Index.open(folder / "index")
  return opened.search(query, k=9)["row"].tolist(), len(opened)

def killing(number):
  left = [number]
  def wrap(owner, name):
    real = getattr(owner, name)
    def wrapped(*given, **more):
      left[0] -= 1
      if left[0] == 0:
        os.kill(os.getpid(), 9)
      return real(*given, **more)
    setattr(owner, name, wrapped)
  for owner, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"),
                      (store, "write_settings"), (store, "add"),
                      (store, "draw_background")):
    wrap(owner, name)

before, seen = state(), []
for number in range(1, 99):
  child = os.fork()
  if not child:
    killing(number)
    build.build(tiny_index.asked(folder / "index", folder / "features"))
    os._exit(0)
  _, status = os.waitpid(child, 0)
  if os.WIFEXITED(status):
    break
  seen.append(state() == before)
print(json.dumps([seen, state(), os.WEXITSTATUS(status)]))
"""


def test_a_killed_build_leaves_the_old_index_in_use(tmp_path, repo_root):
  tiny_index.make(tmp_path, {"a": ONE})
  # One slide changes, one is new.
  tiny_index.write_slide(tmp_path / "features", "a", TWO)
  tiny_index.write_slide(tmp_path / "features", "b", ONE)
  done = subprocess.run(
    [sys.executable, "-c", _KILLED, str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=repo_root,
  )
  assert done.returncode == 0, done.stderr
  seen, (rows, size), code = json.loads(done.stdout.splitlines()[-1])
  # Killed at each write, one after another; then it is let live.
  assert len(seen) >= 8 and all(seen)
  assert code == 0 and size == 5 and sorted(rows) == [3, 4, 5, 6, 7]
  left = [p for p in (tmp_path / "index").rglob("*.tmp-*")]
  assert left == []
