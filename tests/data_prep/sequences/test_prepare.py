import csv
import json
import pathlib
import shutil

import cv2
import pytest

from data_prep import runs
from data_prep.sequences import prepare, slide_job
from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry
from tests.data_prep import outputs
from tests.data_prep.sequences.small_cohort import config_of
from wsiseq_jax.data import source


def stamps(folder):
  return {p: p.stat().st_mtime_ns for p in pathlib.Path(folder).rglob("*")}


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


def test_a_table_of_the_user_is_not_written_over(cohort, tmp_path):
  (tmp_path / "slides.csv").write_text("slide_id,case_id\nsyn_00,c9\n")
  with pytest.raises(ValueError, match="config.out.*slides.csv"):
    prepare.prepare(config_of(cohort, tmp_path))


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
