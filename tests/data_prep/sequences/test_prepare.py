import csv
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile

from configs import prep_wsi
from data_prep import runs, shards
from data_prep.sequences import prepare, slide_job
from data_prep.synthetic import slides as synthetic
from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry
from tests.data_prep import outputs
from tests.data_prep.wsi import tiny_slides
from wsiseq_jax.data import source


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
  """Four slides of three patients, two of them of one."""
  folder = tmp_path_factory.mktemp("cohort")
  synthetic.make_cohort(folder, slides=4, patients=3, size_px=(768, 640))
  return folder


def config_of(slides, out, **changes):
  config = prep_wsi.get_config("smoke").unlock()
  config.slides, config.out, config.workers = str(slides), str(out), 0
  config.sequence.max_centres = 2
  for key, value in changes.items():
    config[key] = value
  return config.to_dict()


def stamps(folder):
  return {p: p.stat().st_mtime_ns for p in pathlib.Path(folder).rglob("*")}


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
  """An undisturbed run."""
  out = tmp_path_factory.mktemp("whole")
  summary = prepare.prepare(config_of(cohort, out))
  return out, summary


def test_everything_is_there(whole):
  out, summary = whole
  assert summary.exit_code == runs.EXIT_GOOD
  assert summary.changed
  table = outputs.rows(out / "slides.csv")
  assert [row["status"] for row in table] == ["done"] * 4
  assert outputs.rows(out / "errors.csv") == []
  for row in table:
    part = out / "parts" / row["slide_id"]
    info = json.loads((part / "slide.json").read_text())
    assert int(row["sequences"]) == info["sequences"] == 16
    assert len(info["centres_level0"]) == 2
    assert info["tissue_polygons_level0"]
    thumbnail = cv2.imread(str(part / info["thumbnail"]))
    assert thumbnail.shape[1] * info["thumbnail_downsample"] == 768
    assert (out / "qc" / f"{row['slide_id']}.jpg").stat().st_size > 1000
  assert "64 drift sequences of 8 frames" in summary.text


def test_metadata_follows_the_contract(whole):
  out, _ = whole
  metadata = json.loads((out / "shards" / "metadata.json").read_text())
  assert metadata["panel_px"] == [32, 60]
  assert metadata["frame_px"] == [32, 32]
  assert (metadata["frames"], metadata["panels"]) == (8, 1)
  assert (metadata["geometry"], metadata["time_unit"]) == ("drift", "um")
  spec = source.read_spec(out)
  assert spec.target_names == ("label",)
  classes = spec.target_classes["label"]
  assert list(classes) == sorted(classes) and len(classes) > 1
  for name, slide in metadata["slides"].items():
    assert slide["sequences"] == 16, name
    assert slide["level0_px"] == [768, 640]
  assert metadata["config"]["sequence"]["frames"] == 8
  text = (out / "shards" / "metadata.json").read_text()
  assert str(out) not in text and "slides_folder" not in text


def test_slides_of_a_patient_share_a_split(whole):
  out, _ = whole
  by_patient = {}
  for row in outputs.rows(out / "slides.csv"):
    by_patient.setdefault(row["patient_id"], set()).add(row["split"])
  assert len(by_patient) == 3
  assert all(len(found) == 1 for found in by_patient.values())
  assert set.union(*by_patient.values()) == {"train", "val", "test"}


def test_second_call_touches_nothing(whole, cohort):
  out, _ = whole
  before = stamps(out)
  summary = prepare.prepare(config_of(cohort, out))
  assert not summary.changed
  assert "finished already" in summary.text
  assert stamps(out) == before


def test_a_second_run_elsewhere_has_the_same_bytes(whole, cohort, tmp_path):
  shutil.copytree(cohort, tmp_path / "moved")
  prepare.prepare(config_of(tmp_path / "moved", tmp_path / "out"))
  out, _ = whole
  assert outputs.contents(out / "shards") == outputs.contents(
    tmp_path / "out" / "shards"
  )


@pytest.fixture
def done(monkeypatch):
  """The slides that are cut."""
  slides = []
  process = slide_job.process
  monkeypatch.setattr(
    slide_job,
    "process",
    lambda job: slides.append(job.entry.slide_id) or process(job),
  )
  return slides


def test_a_corrected_label_cuts_nothing_and_training_sees_it(
  whole, cohort, tmp_path, done
):
  out, slides = tmp_path / "out", tmp_path / "slides"
  shutil.copytree(cohort, slides)
  shutil.copytree(whole[0], out)
  before = stamps(out / "shards") | stamps(out / "parts")
  table = slides / "slides.csv"
  rows = outputs.rows(table)
  # Another class at the front: the numbers of the others move.
  rows[0]["label"] = "a_new_class"
  with open(table, "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  summary = prepare.prepare(config_of(slides, out))
  assert summary.changed and done == []
  after = stamps(out / "shards") | stamps(out / "parts")
  changed = {p.name for p in after if after[p] != before.get(p)}
  assert changed == {"targets.json"}
  classes = source.read_spec(out).target_classes["label"]
  assert classes[0] == "a_new_class"
  label_of = {row["slide_id"]: row["label"] for row in rows}
  found, _ = outputs.records_of(out)
  for record in found.values():
    assert classes[int(record.targets[0])] == label_of[record.slide_id]


def test_only_what_changed_is_done_again(whole, cohort, tmp_path, done):
  out = tmp_path / "out"
  slides = tmp_path / "slides"
  shutil.copytree(cohort, slides)
  shutil.copytree(whole[0], out)
  first = sorted(slides.glob("*.tiff"))[0]
  with open(first, "ab") as file:
    file.write(b"\0" * 16)  # another size, the same picture
  summary = prepare.prepare(config_of(slides, out))
  assert summary.changed and done == [first.stem]
  prepare.prepare(config_of(slides, out, seed=1))
  assert len(done) == 1 + 4


def test_new_slides_extend_the_splits(cohort, tmp_path):
  slides = sorted(cohort.glob("*.tiff"))
  table = cohort / "slides.csv"
  out = tmp_path / "out"
  few = config_of([str(slides[0]), str(slides[1])], out, table=str(table))
  few["slides"] = f"{slides[0]},{slides[1]}"
  prepare.prepare(few)
  before = json.loads((out / "splits.json").read_text())["patients"]
  assert len(before) == 2
  prepare.prepare(config_of(cohort, out))
  after = json.loads((out / "splits.json").read_text())["patients"]
  assert len(after) == 3
  assert {p: after[p] for p in before} == before


def test_interrupted_work_is_found_and_cleaned(whole, cohort, tmp_path):
  """What a kill leaves: temporary files, parts without a mark, no shards."""
  out = tmp_path / "out"
  shutil.copytree(whole[0], out)
  names = sorted(p.name for p in (out / "parts").iterdir())
  (out / "parts" / names[0] / "slide.json").unlink()
  (out / "parts" / names[1] / "sequences.array_record").unlink()
  (out / "parts" / names[2] / "slide.json").write_text('{"half')
  (out / "parts" / names[0] / "x.array_record.tmp-12").write_bytes(b"half")
  (out / "shards.tmp-12").mkdir()
  (out / "shards.tmp-12" / "features.json").write_text("{}")
  shutil.rmtree(out / "shards")
  summary = prepare.prepare(config_of(cohort, out))
  assert summary.exit_code == runs.EXIT_GOOD
  assert outputs.contents(out / "shards") == outputs.contents(
    whole[0] / "shards"
  )
  assert not list(out.rglob("*.tmp-*"))


def tiff(path, size=(512, 512), mpp=1.0, level=180):
  pixels = np.full((size[1], size[0], 3), level, np.uint8)
  resolution = {}
  if mpp:
    resolution = {
      "resolution": (1e4 / mpp,) * 2,
      "resolutionunit": "CENTIMETER",
    }
  tifffile.imwrite(
    path,
    pixels,
    tile=(256, 256),
    photometric="rgb",
    compression="jpeg",
    **resolution,
  )


def test_every_bad_input_has_its_row(cohort, tmp_path):
  folder = tmp_path / "slides"
  folder.mkdir()
  good = sorted(cohort.glob("*.tiff"))[0]
  data = good.read_bytes()
  (folder / "good.tiff").write_bytes(data)
  (folder / "truncated.tiff").write_bytes(data[: len(data) * 6 // 10])
  (folder / "empty.tiff").write_bytes(b"")
  (folder / "text.svs").write_text("not a slide")
  (folder / "no_pyramid.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
  tiff(folder / "no_mpp.tiff", mpp=None)
  tiff(folder / "absurd_mpp.tiff", mpp=350.0)
  tiff(folder / "too_coarse.tiff", mpp=2.0)
  tiff(folder / "tiny.tiff", size=(24, 24))
  tiff(folder / "blank.tiff", level=244)
  with tifffile.TiffFile(good) as file:
    page = file.pages[0]
    starts, sizes = list(page.dataoffsets), list(page.databytecounts)
  zeroed, half = bytearray(data), bytearray(data)
  for start, size in zip(starts, sizes, strict=True):
    zeroed[start : start + size] = bytes(size)
    half[start + size // 2 : start + size] = bytes(size - size // 2)
  (folder / "zeroed.tiff").write_bytes(zeroed)
  (folder / "half.tiff").write_bytes(half)
  summary = prepare.prepare(config_of(folder, tmp_path / "out"))
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  found = {
    row["slide_id"]: row
    for row in outputs.rows(tmp_path / "out" / "errors.csv")
  }
  codes = {name: (row["stage"], row["code"]) for name, row in found.items()}
  assert codes["no_mpp"] == ("mpp", "no_mpp")
  assert codes["absurd_mpp"] == ("mpp", "mpp_out_of_range")
  assert codes["too_coarse"] == ("mpp", "target_finer_than_scan")
  assert codes["tiny"] == ("centres", "slide_too_small")
  assert codes["empty"][1] == "empty_file"
  assert codes["text"][1] == "not_an_image"
  assert codes["half"][1] == codes["zeroed"][1] == "damaged_tile"
  assert found["half"]["place"] and found["zeroed"]["place"]
  assert {"truncated", "no_pyramid"} <= set(codes)
  assert all(row["message"] for row in found.values())
  table = {
    r["slide_id"]: r for r in outputs.rows(tmp_path / "out" / "slides.csv")
  }
  assert table["blank"]["status"] == "no_tissue"
  assert table["good"]["status"] == "done"
  assert "good" not in codes and "blank" not in codes
  metadata = tmp_path / "out" / "shards" / "metadata.json"
  assert list(json.loads(metadata.read_text())["slides"]) == ["good"]
  assert not list((tmp_path / "out").rglob("*.tmp-*"))
  for name in codes:
    assert not (tmp_path / "out" / "parts" / name / "slide.json").exists()


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_damaged_tile_costs_the_sequences_on_it(tmp_path, reader):
  """Tile x 384 to 512, y 256 to 384 of level 0; sequences of 60 x 32 px."""
  noise = np.random.default_rng(0).normal(0, 8, (768, 1024, 1))
  pixels = np.clip(np.array((190, 110, 170)) + noise, 0, 255).astype(np.uint8)
  found = {}
  for name in ("whole", "damaged"):
    (tmp_path / name).mkdir()
    path = tiny_slides.write(tmp_path / name / "s.tiff", pixels, mpp=1.06)
    if name == "damaged":
      tiny_slides.damage(path, "zeroed", column=3, row=2)
    config = config_of(tmp_path / name, tmp_path / f"{name}_out", reader=reader)
    config["sequence"]["max_centres"] = 16
    summary = prepare.prepare(config)
    found[name], _ = outputs.records_of(tmp_path / f"{name}_out")
  whole, damaged = found["whole"], found["damaged"]
  assert len(whole) == 16 * 8 and set(damaged) < set(whole)
  for name, record in damaged.items():
    assert record.panels == whole[name].panels
  touches = set()
  for name, record in whole.items():
    if record.heading_deg % 90 == 0:
      low = record.frame_level0_xy.min(0) - 16
      high = record.frame_level0_xy.max(0) + 16
      if (low < (512, 384)).all() and (high > (384, 256)).all():
        touches.add(name)
  lost = set(whole) - set(damaged)
  assert touches and touches <= lost
  # A pixel around each strip is read as well.
  near = {n for n in lost - touches if whole[n].heading_deg % 90 == 0}
  assert len(near) <= 2
  out = tmp_path / "damaged_out"
  (row,) = outputs.rows(out / "slides.csv")
  assert row["status"] == "done" and int(row["sequences"]) == len(damaged)
  assert row["reason"] == f"{len(lost)} of 128 sequences touch damaged tiles"
  errors = outputs.rows(out / "errors.csv")
  assert {(e["stage"], e["code"]) for e in errors} == {("read", "damaged_tile")}
  assert [error["place"] for error in errors] == ["0 384 256"]
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  assert "1 slides done, 1 with a remark\n" in summary.text


def test_a_slide_of_which_most_is_damaged_is_a_row(tmp_path):
  """Three of four columns of tiles of level 0; the thumbnail is of level 1."""
  pixels = np.full((512, 512, 3), (190, 110, 170), np.uint8)
  (tmp_path / "slides").mkdir()
  for name in ("bad", "good"):
    path = tmp_path / "slides" / f"{name}.tiff"
    tiny_slides.write(path, pixels, mpp=1.06)
  for column in range(1, 4):
    for row in range(4):
      path = tmp_path / "slides" / "bad.tiff"
      tiny_slides.damage(path, "zeroed", column=column, row=row)
  config = config_of(tmp_path / "slides", tmp_path / "out")
  config["tissue"]["thumbnail_px"] = 128
  summary = prepare.prepare(config)
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  (row,) = outputs.rows(tmp_path / "out" / "errors.csv")
  assert (row["slide_id"], row["stage"]) == ("bad", "read")
  assert row["code"] == "too_many_bad_tiles"
  assert "more than the 50% allowed" in row["message"]
  assert not (tmp_path / "out" / "parts" / "bad" / "slide.json").exists()
  found, _ = outputs.records_of(tmp_path / "out")
  assert {record.slide_id for record in found.values()} == {"good"}


def test_a_table_of_the_user_is_not_written_over(cohort, tmp_path):
  (tmp_path / "slides.csv").write_text("slide_id,case_id\nsyn_00,c9\n")
  with pytest.raises(ValueError, match="config.out.*slides.csv"):
    prepare.prepare(config_of(cohort, tmp_path))


def test_nothing_usable_is_exit_code_1(tmp_path):
  tiff(tmp_path / "blank.tiff", level=244)
  summary = prepare.prepare(config_of(tmp_path, tmp_path / "out"))
  assert summary.exit_code == runs.EXIT_NOTHING
  assert not (tmp_path / "out" / "shards").exists()


def test_full_disk_is_a_row_and_leaves_no_half_file(
  cohort, tmp_path, monkeypatch
):
  names = sorted(p.stem for p in cohort.glob("*.tiff"))
  write_part = shards.write_part

  def fills_up(path, sequences, layout):
    def stops():
      yield next(sequences)
      raise OSError(errno.ENOSPC, "No space left on device")

    full = path.parent.name == names[1]
    return write_part(path, stops() if full else sequences, layout)

  monkeypatch.setattr(shards, "write_part", fills_up)
  out = tmp_path / "out"
  summary = prepare.prepare(config_of(cohort, out))
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  (row,) = outputs.rows(out / "errors.csv")
  assert (row["slide_id"], row["stage"], row["code"]) == (
    names[1],
    "write",
    "disk_full",
  )
  assert list((out / "parts" / names[1]).iterdir()) == []
  monkeypatch.undo()
  assert prepare.prepare(config_of(cohort, out)).exit_code == 0
  assert outputs.rows(out / "errors.csv") == []


def test_an_odd_failure_costs_one_slide(cohort, tmp_path, monkeypatch):
  def breaks(*unused, **also_unused):
    raise ZeroDivisionError("odd")

  monkeypatch.setattr(slide_job.cut, "choose_centres", breaks)
  summary = prepare.prepare(config_of(cohort, tmp_path))
  assert summary.exit_code == runs.EXIT_NOTHING
  row = outputs.rows(tmp_path / "errors.csv")[0]
  assert (row["stage"], row["code"]) == ("centres", "ZeroDivisionError")
  assert "test_prepare.py" in row["message"]


def test_two_runs_do_not_share_a_folder(cohort, tmp_path):
  with (
    runs.lock(tmp_path),
    pytest.raises(ValueError, match="in use by another run"),
  ):
    prepare.prepare(config_of(cohort, tmp_path))


@pytest.mark.parametrize(
  ("key", "change"),
  [
    ("slides", {"slides": ""}),
    ("out", {"out": ""}),
    ("workers", {"workers": -2}),
    ("reader", {"reader": "fast"}),
    ("mpp_tolerance", {"mpp_tolerance": 1.5}),
    ("splits", {"splits": {"train": 0.5}}),
    ("tissue.method", {"tissue": {"method": "x", "thumbnail_px": 100}}),
  ],
)
def test_bad_settings_name_their_key(tmp_path, key, change):
  config = {**config_of(tmp_path, tmp_path / "out"), **change}
  with pytest.raises(ValueError, match=f"config.{key}"):
    prepare.check_config(config)


def test_a_patient_in_two_splits_stops_before_the_work(cohort, tmp_path):
  table = tmp_path / "slides.csv"
  names = sorted(cohort.glob("*.tiff"))
  table.write_text(
    "slide_id,filename,case_id,split\n"
    f"a,{names[0]},jane,train\nb,{names[1]},jane,test\n"
  )
  with pytest.raises(ValueError, match="'jane'"):
    prepare.prepare(config_of(table, tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_labels_become_numbers():
  def entry(label):
    return SlideEntry("s", "s.tiff", "p", label=label)

  words = [entry("b"), entry("a"), entry(None)]
  assert prepare.label_of(words, ()).classes == ("a", "b")
  assert prepare.label_of(words, ("b", "a")).classes == ("b", "a")
  assert prepare.label_of([entry("2.5"), entry("1")], ()).classes == ()
  assert prepare.label_of([entry("0"), entry("1.0")], ()).classes == ("0", "1")
  with pytest.raises(ValueError, match="config.labels"):
    prepare.label_of(words, ("a", "c"))


def test_parts_and_then_the_whole(whole, cohort, tmp_path, done):
  out = tmp_path / "out"
  for number in (1, 2, 3):
    config = config_of(cohort, out, part=f"{number}/3")
    summary = prepare.prepare(config)
    assert summary.exit_code == runs.EXIT_GOOD
    assert f"part {number} of 3" in summary.text
    assert not (out / "shards").exists()
    with (
      runs.lock(out, f"{number % 3 + 1}/3"),
      pytest.raises(ValueError, match="in use by another run"),
    ):
      prepare.prepare(config_of(cohort, out))
  assert sorted(done) == sorted(p.stem for p in cohort.glob("*.tiff"))
  prepare.prepare(config_of(cohort, out))
  assert len(done) == 4
  assert outputs.contents(out / "shards") == outputs.contents(
    whole[0] / "shards"
  )


def test_a_slide_id_that_is_no_folder_name_is_refused():
  good, bad = find.usable_names(
    [find.SlideEntry(n, "x", "p") for n in ("ok", "../up", ".hidden")]
  )
  assert [e.slide_id for e in good] == ["ok"]
  assert [e.error for e in bad] == ["bad_slide_id"] * 2


CRASH = """
import ast, os, sys
sys.path.insert(0, sys.argv[1])
from data_prep import shards
from data_prep.sequences import prepare
write_part = shards.write_part
def crashing(path, *more):
  if path.parent.name == sys.argv[3]:
    os.kill(os.getpid(), 11)
  return write_part(path, *more)
shards.write_part = crashing
if __name__ == "__main__":
  config = ast.literal_eval(sys.argv[2])
  sys.exit(prepare.prepare(config).exit_code)
"""


@pytest.mark.multiprocess
def test_a_crashing_library_costs_one_slide(cohort, tmp_path, repo_root):
  script = tmp_path / "crash.py"
  script.write_text(CRASH)
  victim = sorted(p.stem for p in cohort.glob("*.tiff"))[1]
  out = tmp_path / "out"
  config = repr(config_of(cohort, out, workers=2))
  command = [sys.executable, script, repo_root, config, victim]
  done = subprocess.run(
    [str(part) for part in command], cwd=repo_root, check=False, timeout=300
  )
  assert done.returncode == runs.EXIT_SOME_FAILED
  (row,) = outputs.rows(out / "errors.csv")
  assert (row["slide_id"], row["code"]) == (victim, "worker_died")
  assert "2 workers died over it" in row["message"]
  states = {
    r["slide_id"]: r["status"] for r in outputs.rows(out / "slides.csv")
  }
  assert sorted(states.values()) == ["done", "done", "done", "failed"]


def call(repo_root, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "data_prep", *arguments],
    cwd=repo_root,
    env={**os.environ, "COLUMNS": "80"},
    capture_output=True,
    text=True,
    check=False,
  )


# The command several times in one process: starting takes longest.
CALLS = """
import json, sys
from absl import flags
from data_prep.__main__ import main
calls = json.loads(sys.argv[1])
for arguments in calls:
  flags.FLAGS.unparse_flags()
  sys.argv = ["data_prep", *arguments]
  print(main(sys.argv), file=sys.stderr)
"""


@pytest.mark.multiprocess
def test_wrong_calls_are_exit_code_2(repo_root):
  config = "--config=configs/prep_wsi.py"
  wrong = [
    ([f"{config}", "--config.slidez=x"], 'Did you mean "slides"'),
    ([f"{config}", "--config.sequence.frame=8"], 'Did you mean "frames"'),
    ([f"{config}:demmo"], "demo"),
    ([f"{config}", "--config.mpp=x"], "mpp"),
    ([f"{config}"], "config.slides"),
    ([f"{config}", "stray"], "stray"),
    (["--config=configs/nothing.py"], "nothing.py"),
  ]
  calls = json.dumps([arguments for arguments, _ in wrong])
  done = subprocess.run(
    [sys.executable, "-c", CALLS, calls],
    cwd=repo_root,
    capture_output=True,
    text=True,
    check=True,
  )
  said = done.stderr.strip().removesuffix("\n2").split("\n2\n")
  for text, (_, words) in zip(said, wrong, strict=True):
    assert words in text and "Traceback" not in text, text


@pytest.mark.multiprocess
def test_command_line_with_workers(whole, cohort, repo_root, tmp_path):
  done = call(
    repo_root,
    "--config=configs/prep_wsi.py:smoke",
    f"--config.slides={cohort}",
    f"--config.out={tmp_path / 'out'}",
    "--config.workers=2",
    "--config.sequence.max_centres=2",
  )
  assert done.returncode == 0, done.stderr
  assert "4 slides done" in done.stdout
  assert "syn_00" in done.stderr  # the progress bar names the slide
  assert outputs.contents(tmp_path / "out" / "shards") == outputs.contents(
    whole[0] / "shards"
  )


@pytest.mark.multiprocess
@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(repo_root, tmp_path):
  result = tmp_path / "result.json"
  script = repo_root / "benchmarks" / "kill_preparation.py"
  done = subprocess.run(
    [sys.executable, script, "--kills=2", "--seed=1", "--slides=3"]
    + [f"--result={result}"],
    cwd=repo_root,
    check=False,
  )
  assert done.returncode == 0
  trials = json.loads(result.read_text())["trials"]
  assert [trial["identical"] for trial in trials] == [True] * 2
  assert all(trial["temporary_files_after"] == 0 for trial in trials)
