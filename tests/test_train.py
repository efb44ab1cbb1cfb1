import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from data_prep.synthetic import smoke
from tests import small_run
from wsiseq_jax import embed, evaluate, launch, parallel, train, writers
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.tasks import videomae


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.shards(tmp_path_factory.mktemp("train_data"))


def params_of(state):
  return jax.tree.map(np.asarray, state.params)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def stop_after(monkeypatch, steps):
  monkeypatch.setattr(launch, "Preemption", lambda: small_run.StopAt(steps))


def rows_without_clock(workdir):
  rows = writers.read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
  return [
    {k: v for k, v in row.items() if k != "train/clips_per_second"}
    for row in rows
  ]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
  """Parameters and metrics of a run on one device that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  config = small_run.small_config(workdir, data)
  config.eval_every_steps = 3
  config.checkpoint.every_steps = 3
  with pytest.MonkeyPatch.context() as monkeypatch:
    small_run.use_devices(monkeypatch, 1)
    state = train.run(config)
  return params_of(state), rows_without_clock(workdir), workdir


def test_what_a_run_writes(undisturbed):
  _, rows, workdir = undisturbed
  order = [(row["step"], "val/loss" in row) for row in rows]
  # Evaluation of state s comes after the line of the steps that led to it.
  assert order == [
    (0, True),
    (2, False),
    (3, True),
    (4, False),
    (6, False),
    (6, True),
  ]
  line = rows[1]
  assert {"train/loss", "train/lr", "train/grad_norm"} < line.keys()
  # Peak 0.03 · 8 / 256 after two steps of warm-up: the mean of 0 and a half.
  assert line["train/lr"] == pytest.approx(0.03 * 8 / 256 / 4)
  assert (workdir / "loss.png").exists()
  saved = json.loads((workdir / "config.json").read_text())
  assert saved["optim"]["total_steps"] == 6
  table = (workdir / "parameters.txt").read_text()
  assert "encoder/patch/kernel" in table and "Total:" in table
  assert {p.name for p in (workdir / "checkpoints").iterdir()} >= {"3", "6"}


@pytest.mark.parametrize(
  ("at", "threads"),
  [
    (3, 2),  # at a checkpoint, between two log lines
    pytest.param(4, 5, id="with five threads"),
  ],
)
def test_resume_is_bit_for_bit(
  data, tmp_path, monkeypatch, undisturbed, at, threads
):
  params, rows, _ = undisturbed
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(tmp_path, data)
  config.eval_every_steps = 3
  # The ticks of the two evaluations (of two batches) count too.
  ticks = at + 2 * (1 + at // 3)
  with monkeypatch.context() as stopping:
    stop_after(stopping, ticks)
    with pytest.raises(launch.Stopped):
      train.run(config)
  assert (tmp_path / "checkpoints" / str(at)).is_dir()
  config.data.threads = threads
  resumed = train.run(config)
  assert int(resumed.step) == 6
  same(params_of(resumed), params)
  assert rows_without_clock(tmp_path) == rows


@pytest.mark.multiprocess
def test_resume_with_worker_processes_is_bit_for_bit(
  data, tmp_path, monkeypatch, undisturbed
):
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(tmp_path, data)
  config.data.worker_processes = 1
  with monkeypatch.context() as stopping:
    stop_after(stopping, 3)
    with pytest.raises(launch.Stopped):
      train.run(config)
  config.data.worker_processes = 2
  same(params_of(train.run(config)), undisturbed[0])


def test_a_complete_run_is_left_alone(undisturbed, data, monkeypatch, capsys):
  params, rows, workdir = undisturbed
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(workdir, data)
  config.checkpoint.every_steps = 3
  config.eval_every_steps = 3
  same(params_of(train.run(config)), params)
  assert "training is complete: step 6" in capsys.readouterr().err
  assert rows_without_clock(workdir) == rows


# `test_sharding.py` compares gradients of the sizes between.
@pytest.mark.parametrize("fsdp", [1, 8])
def test_eight_devices_agree_with_one(
  data, tmp_path, monkeypatch, undisturbed, fsdp
):
  # Small enough that this model's parameters are cut at all.
  monkeypatch.setattr(parallel, "FSDP_MIN_ELEMENTS", 256)
  config = small_run.small_config(tmp_path, data)
  config.mesh.fsdp = fsdp
  state = train.run(config)
  head = state.params["decoder"]["head"]["kernel"]
  assert head.sharding.mesh.shape["fsdp"] == fsdp
  assert head.sharding.is_fully_replicated == (fsdp == 1)
  # Float32 sums in another order: 6 Adam steps of 1e-3 may part by some 1e-5.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5),
    params_of(state),
    undisturbed[0],
  )
  losses = [
    [row["train/loss"] for row in rows if "train/loss" in row]
    for rows in (rows_without_clock(tmp_path), undisturbed[1])
  ]
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_one_compilation_in_six_steps(data, tmp_path, monkeypatch):
  traces = []
  loss = videomae.loss

  def counting(*args):
    traces.append(1)
    return loss(*args)

  monkeypatch.setattr(videomae, "loss", counting)
  config = small_run.small_config(tmp_path, data)
  config.mesh.fsdp = 2
  small_run.use_devices(monkeypatch, 2)
  with monkeypatch.context() as stopping:
    stop_after(stopping, 3)
    with pytest.raises(launch.Stopped):
      train.run(config)
  assert len(traces) == 1
  train.run(config)  # and one more in the resumed run
  assert len(traces) == 2


def test_a_batch_that_is_not_on_the_devices_is_an_error(
  undisturbed, data, tmp_path, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  monkeypatch.setattr(parallel, "prefetch", lambda batches, mesh: batches)
  config = small_run.small_config(tmp_path, data)
  config.checkpoint.path = str(undisturbed[2])
  with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
    evaluate.run(config)
  config.checkpoint.path = ""
  with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
    train.run(config)


def test_loss_that_is_no_number_names_step_and_records(
  data, tmp_path, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(tmp_path, data)
  config.optim.lr_per_256 = 1e25
  with pytest.raises(FloatingPointError) as caught:
    train.run(config)
  text = str(caught.value)
  # Step 0 has learning rate 0; the first update that can go wrong is the
  # second, and the loss shows it in the third.
  assert "in the update from step 2 to 3 the loss is" in text
  source = sources.RecordSource(data, "train")
  indices = loader.batch_indices(32, config.seed, 8, 2)
  names = [source.record(int(i)).sequence_id for i in indices]
  assert ", ".join(names) in text
  # Nothing of it was saved.
  assert not [
    p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()
  ]


def test_another_experiment_is_refused(undisturbed, data, monkeypatch):
  _, _, workdir = undisturbed
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(workdir, data)
  config.optim.weight_decay = 0.5
  config.mask.ratio = 0.5
  config.data.threads = 1
  with pytest.raises(ValueError) as caught:
    train.run(config)
  text = str(caught.value)
  assert "config.optim.weight_decay: 0.05 in the checkpoint, now 0.5" in text
  assert "config.mask.ratio" in text and "threads" not in text


def test_other_shards_are_refused(undisturbed, tmp_path, monkeypatch):
  small_run.use_devices(monkeypatch, 1)
  other = smoke.make_shards(tmp_path, sequences=8)
  config = small_run.small_config(undisturbed[2], other)
  with pytest.raises(ValueError, match="fingerprint of the shards was"):
    train.run(config)


def test_other_data_of_equal_settings_and_count_are_refused(
  undisturbed, data, tmp_path, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  # The same data elsewhere, and other slides of the same settings.
  moved = pathlib.Path(shutil.copytree(data, tmp_path / "moved"))
  config = small_run.small_config(undisturbed[2], moved)
  config.checkpoint.every_steps = config.eval_every_steps = 3
  train.run(config)
  monkeypatch.setattr(
    smoke, "SPLITS", {"slide_d": "train", "slide_e": "train", "f": "val"}
  )
  config.data.path = str(smoke.make_shards(tmp_path / "other"))
  with pytest.raises(ValueError, match="config.data.path: identity"):
    train.run(config)


def test_evaluation_does_not_depend_on_the_batch(
  undisturbed, data, tmp_path, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(undisturbed[2], data)
  config.report.mask_ratios = (0.5,)
  losses = []
  for size in (8, 6):  # 6: the last rows are padding
    config.data.batch_size = size
    config.workdir = str(tmp_path / str(size))
    config.checkpoint.path = str(undisturbed[2])
    losses.append(evaluate.run(config)["loss"])
  assert set(losses[0]) == {"0.5", "0.75"}
  for other in losses[1:]:
    for ratio, loss in losses[0].items():
      assert other[ratio] == pytest.approx(loss, rel=1e-5)
  # The loop's own evaluation at the end is the same number.
  last = [row for row in undisturbed[1] if "val/loss" in row][-1]
  assert losses[0]["0.75"] == pytest.approx(last["val/loss"], rel=1e-5)


def test_evaluation_uses_the_checkpoints_config(undisturbed, data, tmp_path):
  config = small_run.small_config(tmp_path, data)
  config.checkpoint.path = str(undisturbed[2] / "checkpoints")
  # The command line's model is another one; the checkpoint's counts.
  config.model.size = "small"
  config.mask.kind = "tube"
  run = evaluate.load(config)
  assert run.config.model.size == "tiny"
  assert run.config.mask.kind == "tissue"
  assert run.step == 6
  same(jax.tree.map(np.asarray, run.params), undisturbed[0])


def test_embeddings(undisturbed, data, tmp_path, monkeypatch):
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(tmp_path, data)
  config.checkpoint.path = str(undisturbed[2])
  paths = embed.run(config)
  assert [p.name for p in paths] == ["train.npz", "val.npz"]
  with np.load(paths[1]) as file:
    arrays = dict(file)
  assert arrays["features"].shape == (16, 32)
  assert np.isfinite(arrays["features"]).all()
  # Labels are joined when they are used: here they would go stale.
  assert "targets" not in arrays
  assert list(arrays["index"]) == list(range(16))
  assert set(arrays["slide_id"]) == {"slide_c"}
  assert arrays["checkpoint_step"] == 6
  record = sources.RecordSource(data, "val").record(5)
  assert arrays["sequence_id"][5] == record.sequence_id
  frames = arrays["frames"][5]
  assert list(frames) == list(range(2, 10))  # the middle 8 of 12
  centres = record.frame_level0_xy[frames]
  np.testing.assert_allclose(arrays["frame_level0_xy"][5], centres)
  np.testing.assert_allclose(arrays["level0_xy"][5], centres.mean(axis=0))
  table = (tmp_path / "embeddings" / "val.csv").read_text().splitlines()
  assert len(table) == 17 and record.sequence_id in table[6]


def test_jobs_that_are_done_say_so(
  undisturbed, data, tmp_path, capsys, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(tmp_path, data)
  config.checkpoint.path = str(undisturbed[2])
  first = evaluate.run(config)
  paths = embed.run(config)
  times = [p.stat().st_mtime_ns for p in paths]
  capsys.readouterr()
  assert evaluate.run(config) == first
  embed.run(config)
  text = capsys.readouterr().err
  assert "evaluation of step 6 is done" in text
  assert "val: embeddings of step 6 are done" in text
  assert [p.stat().st_mtime_ns for p in paths] == times
  # A half-written result, such as an older version left, ends no job.
  path = tmp_path / "evaluation.json"
  whole = path.read_text()
  path.write_text(whole[: len(whole) // 2])
  assert evaluate.run(config) == first
  assert path.read_text() == whole


def test_a_kill_between_a_result_and_its_table_loses_nothing(
  undisturbed, data, tmp_path, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(tmp_path, data)
  config.checkpoint.path = str(undisturbed[2])

  def killed(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(embed.tables, "write", killed)
    with pytest.raises(KeyboardInterrupt):
      embed.run(config)
  for path in embed.run(config):
    lines = path.with_suffix(".csv").read_text().splitlines()
    assert len(lines) == 1 + len(np.load(path)["index"])
  # Nor does a table that somebody deleted.
  path.with_suffix(".csv").unlink()
  embed.run(config)
  assert path.with_suffix(".csv").is_file()


@pytest.mark.parametrize("is_normalised", [True, False])
def test_reconstruction(undisturbed, data, tmp_path, is_normalised):
  config = small_run.small_config(tmp_path, data)
  config.checkpoint.path = str(undisturbed[2])
  run = evaluate.load(config)
  with run.config.unlocked():
    run.config.model.normalise_target = is_normalised
  task = videomae.make_task(run.config, run.spec)
  source = sources.RecordSource(data, "val")
  batch = loader.stack([loader.load(source, i) for i in range(3)])
  names = ["a", "b", "c"]
  clips = task.reconstruct(run.params, batch, names, ratio=0.5, kind="tube")
  assert [clip.sequence_id for clip in clips] == names
  for clip in clips:
    assert (clip.mask_kind, clip.mask_ratio) == ("tube", 0.5)
    assert clip.used_true_statistics == is_normalised
    assert clip.original.shape == (8, 32, 32, 3)
    is_grey = (clip.masked == 128).all(axis=-1)
    # A tube hides whole patches of 8 px, half of the 16, in all frames alike.
    patches = is_grey.reshape(8, 4, 8, 4, 8).all(axis=(2, 4))
    np.testing.assert_array_equal(patches.sum(axis=(1, 2)), 8)
    hidden = patches.repeat(8, axis=1).repeat(8, axis=2)
    same_seen = (clip.original == clip.reconstructed).all(axis=-1) | hidden
    assert same_seen.all()
    assert np.isfinite(clip.loss)
