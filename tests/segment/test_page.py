"""The page of a run: what it shows, from a chain that has all maps."""

import re

from tests.segment import small_job


def test_page_shows_the_table_and_all_maps_of_good_and_bad_pictures(smoke_run):
  folder = smoke_run("irn")
  text = (folder / "index.html").read_text()
  assert "http" not in re.sub(r"data:image/[^\"]*|http://www.w3.org", "", text)
  for row in small_job.rows(folder):
    assert row["stage"] in text
    assert not row["value"] or f"{float(row['value']):.3f}" in text
  for name in (
    *("picture", "cam: scores", "crf: scores", "irn: boundary"),
    *("irn: displacement", "walk: scores", "walk: instances"),
    *("student: scores", "result", "truth"),
  ):
    assert f"<figcaption>{name}</figcaption>" in text, name
  assert 'id="best"' in text and 'id="worst"' in text
  scores = [float(v) for v in re.findall(r"mIoU ([\d.]+)</h3>", text)]
  best, worst = scores[: len(scores) // 2], scores[len(scores) // 2 :]
  assert best == sorted(best, reverse=True) and worst == sorted(worst)
  assert best[-1] >= worst[-1]
