import io
import json

import pytest

from wsiseq_jax import writers


def write(path, rows, tail=""):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def test_a_resume_drops_later_lines_and_half_lines(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [{"step": s, "train/loss": s / 10} for s in (2, 4, 6)]
  write(path, rows, tail='{"step": 8, "tra')
  writer = writers.MetricWriter(tmp_path, resume_step=4)
  assert writer.has(4, "train/loss") and not writer.has(6, "train/loss")
  writer.scalars(6, {"train/loss": 0.5})
  writer.close()
  steps = [row["step"] for row in writers.read_metrics(path)]
  assert steps == [2, 4, 6]
  assert writers.read_metrics(path)[-1] == {"step": 6, "train/loss": 0.5}
  assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
  with pytest.raises(ValueError, match="metrics.jsonl:2: not JSON"):
    writers.read_metrics(path)


def test_no_file_means_no_lines(tmp_path):
  assert writers.read_metrics(tmp_path / "none.jsonl") == []


def test_picture(tmp_path):
  rows = [{"step": s, "train/loss": 1 / (s + 1)} for s in range(30)]
  rows.append({"step": 29, "val/loss": 0.5})
  writers.plot_loss(rows, tmp_path / "loss.png")
  assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
  writers.plot_loss([], tmp_path / "none.png")
  assert (tmp_path / "none.png").exists()


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_redraws_in_a_terminal():
  stream = Terminal()
  progress = writers.Progress(10, stream)
  progress.show(5, 2.5, {"loss": "0.5"})
  progress.message("a message")
  progress.show(10, 2.5, {"loss": "0.4"})
  text = stream.getvalue()
  assert "step 5/10 · ██████████░░░░░░░░░░ · loss 0.5 · 0:02 left" in text
  assert "\r\x1b[2Ka message\n" in text
  assert text.endswith("loss 0.4 · 0:00 left\n")


def test_progress_is_sparse_in_a_log(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  progress = writers.Progress(100, stream)
  for step in range(1, 101):
    now[0] += 1.0
    progress.show(step, 1.0, {})
  lines = stream.getvalue().splitlines()
  assert [line.split(" · ")[0] for line in lines][:2] == [
    "step 1/100",
    "step 11/100",
  ]
  assert len(lines) == 11 and lines[-1].startswith("step 100/100")
  assert "\x1b" not in stream.getvalue()
