"""The job through the real main.py."""

import subprocess

import pytest

from tests import small_run


@pytest.mark.slow
def test_smoke_answers_itself_and_ends(repo_root, python):
  done = subprocess.run(
    [python, "main.py", "--config=configs/view.py:smoke"],
    cwd=repo_root,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert "2 slides, 0 cannot be shown" in done.stderr


def test_no_slide_is_an_error_that_names_the_key(
  repo_root, tmp_path, monkeypatch
):
  monkeypatch.chdir(repo_root)
  with pytest.raises(SystemExit, match="config.data.slides"):
    small_run.main(
      "--config=configs/view.py:smoke", f"--config.data.slides={tmp_path}"
    )
