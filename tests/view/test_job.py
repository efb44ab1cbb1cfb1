"""The job through the real main.py."""

import subprocess
import sys

import pytest


def run(repo_root, *more):
  return subprocess.run(
    [sys.executable, "main.py", "--config=configs/view.py:smoke", *more],
    cwd=repo_root,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_smoke_answers_itself_and_ends(repo_root):
  done = run(repo_root)
  assert done.returncode == 0, done.stderr
  assert "2 slides, 0 cannot be shown" in done.stderr


def test_no_slide_is_an_error_that_names_the_key(repo_root, tmp_path):
  done = run(repo_root, f"--config.data.slides={tmp_path}")
  assert done.returncode == 1
  assert "config.data.slides" in done.stderr
  assert "Traceback" not in done.stderr
