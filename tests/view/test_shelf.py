"""Open slides and the levels they are shown by."""

import contextlib

import numpy as np
import pytest

from data_prep.files.errors import SlideError
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slides import Slide
from tests.data_prep.wsi import tiny_slides
from wsiseq_jax.view import parts
from wsiseq_jax.view.pyramid import Pyramid
from wsiseq_jax.view.shelf import ByteCache, Shelf


def entry(folder, name, **options):
  path = tiny_slides.write(
    folder / f"{name}.tiff", tiny_slides.picture(300, 200), **options
  )
  return SlideEntry(name, str(path), name)


def test_the_slide_used_longest_ago_is_closed(tmp_path):
  entries = [entry(tmp_path, name) for name in "abc"]
  shelf = Shelf(2, 0.0, "jpeg")
  found = []
  for one in entries:
    with shelf.borrowed(one) as pyramid:
      found.append(pyramid)
  with shelf.borrowed(entries[1]) as again:
    assert again is found[1]
  with shelf.borrowed(entries[0]) as again:  # c is closed for it
    assert again is not found[0]
    # In use: stays open whatever else is opened.
    for one in entries[1:]:
      with shelf.borrowed(one):
        pass
    assert again.pixels(0, 0, 0).shape == (128, 128, 3)
  shelf.close()


def test_a_slide_without_a_believable_scale_is_shown(tmp_path):
  shelf = Shelf(2, 0.0, "jpeg")
  for mpp in (None, 352.8):
    with shelf.borrowed(entry(tmp_path, f"s{mpp}", mpp=mpp)) as pyramid:
      assert not pyramid.has_scale
      assert pyramid.pixels(0, 0, 0).shape == (128, 128, 3)
  with pytest.raises(SlideError):
    with shelf.borrowed(SlideEntry("gone", str(tmp_path / "gone"), "p")):
      pass


def test_the_cache_forgets_what_was_used_longest_ago():
  cache, made = ByteCache(10), []

  def get(key):
    return cache.get(key, lambda: made.append(key) or bytes(4))

  for key in ("a", "b", "a", "c", "a", "b"):
    get(key)
  assert made == ["a", "b", "c", "b"]


def test_a_large_slide_without_a_pyramid_has_small_levels(tmp_path):
  path = tiny_slides.write(
    tmp_path / "flat.tiff", tiny_slides.picture(4400, 260), levels=1
  )
  with contextlib.closing(Pyramid(Slide.open(path))) as pyramid:
    assert [v.downsample for v in pyramid.levels] == [1, 2, 4, 8, 16, 32]
    assert pyramid.levels[-1].size_px == (138, 9)
    assert pyramid.levels[1].grid == (9, 1)
    fine = np.concatenate(
      [pyramid.pixels(0, i, 0) for i in range(4)], axis=1
    ).astype(float)
    fine = fine[:128]
    mean = fine.reshape(64, 2, 256, 2, 3).mean(axis=(1, 3))
    got = pyramid.pixels(1, 0, 0)[:64]
    assert np.abs(got - mean).mean() < 2


def test_what_is_fetched_is_pinned_without_a_host():
  lock = (parts.LISTS / "package-lock.json").read_text()
  assert '"resolved"' not in lock and "http://" not in lock
  assert lock.count('"integrity": "sha512-') == 1


def test_a_registry_that_cannot_be_reached(tmp_path, monkeypatch):
  npm = tmp_path / "npm"
  npm.write_text("#!/bin/sh\necho E403 forbidden >&2\nexit 1\n")
  npm.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
  monkeypatch.setattr(parts.sys, "prefix", str(tmp_path / "env"))
  with pytest.raises(ValueError, match="cannot be fetched(.|\n)*E403"):
    parts.fetch()
  with pytest.raises(ValueError, match="make view"):
    parts.openseadragon()
