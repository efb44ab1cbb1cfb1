import jax
import pytest
from flax import nnx

from wsiseq_jax.models import videomae


@pytest.mark.parametrize(
  "size, millions",
  [
    # Encoder and decoder as published: B is 94.2 M with the four-block decoder.
    ("small", 24.0),
    ("base", 94.2),
    ("large", None),
    ("huge", None),
  ],
)
def test_published_sizes(size, millions):
  config = videomae.VideoMAEConfig(**videomae.SIZES[size])
  assert (config.tokens, config.patch_values) == (1568, 1536)
  model = nnx.eval_shape(lambda: videomae.VideoMAE(config, nnx.Rngs(0)))
  count = sum(
    leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
  )
  d, e = config.width, config.decoder_width

  def blocks(depth, d, mlp):
    # Norms, q k v o with three biases, MLP.
    return depth * (4 * d + 4 * d * d + 3 * d + 2 * d * mlp + mlp + d)

  by_hand = 1536 * d + d + blocks(config.depth, d, 4 * d) + 2 * d
  by_hand += d * e + e + blocks(4, e, 4 * e) + 2 * e + e * 1536 + 1536
  assert count == by_hand
  if millions:
    assert round(count / 1e6, 1) == millions


def test_giant_has_patch_14():
  config = videomae.VideoMAEConfig(**videomae.SIZES["giant"], patch=(2, 14, 14))
  assert (config.tokens, config.patch_values) == (2048, 1176)
  assert config.mlp_width == 1408 * 48 // 11


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(frames=5), r"model.patch = \(2, 16, 16\).*t: config.data.frames"),
    (dict(image_px=(224, 200)), "along w: config.data.image_px gives 200"),
    (dict(image_px=(100, 224)), "along h: config.data.image_px gives 100"),
    (dict(width=100), "model.width = 100 is not .*model.heads = 6"),
    (dict(decoder_heads=5), "model.decoder_width = 192.*decoder_heads = 5"),
  ],
)
def test_configs_that_cannot_be_name_their_key(change, message):
  with pytest.raises(ValueError, match=message):
    videomae.VideoMAEConfig(**change)


def test_lists_of_a_config_file_become_tuples():
  config = videomae.VideoMAEConfig(image_px=[32, 48], patch=[2, 16, 16])
  assert config.image_px == (32, 48) and hash(config)
