"""Settings of embed_tiles that cannot be, and its presets."""

import dataclasses

import pytest

from configs import embed_tiles as presets
from tests.data_prep.wsi import tiny_slides
from tests.encoders.tile_job import colour_encoder, config_of, picture
from wsiseq_jax import encoders
from wsiseq_jax.encoders import embed_tiles
from wsiseq_jax.encoders import settings as embed_config


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
  path = tmp_path_factory.mktemp("slide") / "good.tiff"
  tiny_slides.write(path, picture())
  return path


def test_bad_settings(slide, tmp_path):
  good = (slide, tmp_path)
  for changes, words in (
    ({"tiles.mpp": -1.0}, r"config\.tiles\.mpp = -1"),
    ({"data.part": "9/8"}, r"config\.data\.part = '9/8'"),
    ({"tiles.min_tissue": 0.0}, r"config\.tiles\.min_tissue"),
    ({"workdir": ""}, r"config\.workdir"),
    ({"data.slides": ""}, r"config\.data\.slides"),
    ({"tissue.method": "otsu"}, r"config\.tissue\.method"),
  ):
    with pytest.raises(ValueError, match=words):
      embed_config.validate(config_of(*good, changes))
  unknown = config_of(*good)
  unknown.tiles.overlap = 3
  with pytest.raises(ValueError, match="did you mean .*overlap_px"):
    embed_config.validate(unknown)
  for changes, words in (
    ({"tiles.overlap_px": 64}, r"config\.tiles: overlap_px=64: want 0 to 63"),
    ({"data.batch_size": 12}, r"batch_size = 12: must be a multiple of the 8"),
    ({"data.slides": " , "}, "slides="),
  ):
    with pytest.raises(ValueError, match=words):
      embed_tiles.embed_slides(config_of(*good, changes), colour_encoder())
  with pytest.raises(ValueError, match="preset 'resnet'.*did you mean"):
    presets.get_config("resnet")


def test_scale_of_the_encoder(slide, tmp_path, capsys):
  config = config_of(slide, tmp_path, {"tiles.mpp": 0.0})
  with pytest.raises(ValueError, match="trained at, which is not known"):
    embed_config.settings_of(config, colour_encoder())
  settings = embed_config.settings_of(config, colour_encoder(mpp=0.7))
  assert settings.tiles["mpp"] == 0.7 and not capsys.readouterr().err
  config.tiles.mpp = 0.5
  assert (
    embed_config.settings_of(config, colour_encoder(mpp=0.7)).tiles["mpp"]
    == 0.5
  )
  assert "trained at 0.7 um/px" in capsys.readouterr().err


def test_every_preset_is_valid(tmp_path):
  for preset in presets.PRESETS:
    config = presets.get_config(preset).unlock()
    config.workdir, config.data.slides = str(tmp_path), "x"
    embed_config.validate(config)
    fields = dataclasses.fields(encoders.Settings)
    assert set(config.encoder) == {field.name for field in fields}
  # What a preset lacks is said by name.
  for preset, key in (("resnet50", "weights"), ("run", "checkpoint")):
    with pytest.raises(ValueError, match=f"config.encoder.{key}"):
      encoders.load(presets.get_config(preset).encoder)
