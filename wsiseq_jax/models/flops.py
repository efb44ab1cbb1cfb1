"""Model FLOPs: the arithmetic that a training step cannot do without.

A multiplication and an addition are two FLOPs. Only matrix products are
counted: everything else (norms, softmax, GELU, cutting clips, AdamW) is less
than a hundredth of them and limited by memory. Work that an implementation
adds, such as recomputing activations in the backward pass, does not count, so
that "model FLOPs utilisation"

    MFU = model FLOPs of a step / (seconds of a step · peak FLOP/s)

compares implementations: it can only rise by doing the same work faster.
"""

import math

from wsiseq_jax.models import vit
from wsiseq_jax.models.clip_encoder import ClipEncoderConfig
from wsiseq_jax.models.videomae import VideoMAEConfig


def stack_flops(spec: vit.BlockSpec, tokens: int) -> int:
  """FLOPs of a stack of transformer blocks, forward, for one clip.

  With n tokens of width d and an MLP of width f, one block takes

    8 n d²      query, key, value, output
    4 n² d      scores, and their product with the values
    4 n d f     MLP

  Example:
    >>> spec = vit.BlockSpec(width=2, depth=1, heads=1, mlp_width=8)
    >>> stack_flops(spec, tokens=3)  # 8·3·2² + 4·3²·2 + 4·3·2·8
    360
  """
  n, d, f = tokens, spec.width, spec.mlp_width
  return spec.depth * (8 * n * d * d + 4 * n * n * d + 4 * n * d * f)


def videomae_forward_flops(
  config: VideoMAEConfig, visible: int, decoded: int
) -> int:
  """FLOPs of a VideoMAE, forward, for one clip.

  With k visible and m rebuilt tokens, patches of p values, encoder width d,
  decoder width e, and q values predicted of a token (p, or d in `latent`):

    2 k p d                  patch embedding
    stack of d on k          encoder blocks
    2 k d e                  projection to the decoder
    stack of e on k + m      decoder blocks
    2 m e q                  head
  """
  embed = 2 * visible * config.patch_values * config.width
  project = 2 * visible * config.width * config.decoder_width
  head = 2 * decoded * config.decoder_width * config.predicted_values
  return (
    embed
    + stack_flops(config.encoder_spec, visible)
    + project
    + stack_flops(config.decoder_spec, visible + decoded)
    + head
  )


def videomae_step_flops(
  config: VideoMAEConfig, visible: int, decoded: int
) -> int:
  """Model FLOPs of one training step, for one clip.

  The backward pass takes two products for each of the forward pass, one for
  either operand's gradient; the patch embedding takes one, as nobody asks for
  the gradient of pixels:

    3 · forward − 2 k p d

  Args:
    config: The network.
    visible: Tokens the encoder sees, k (`MaskSpec.visible`).
    decoded: Tokens the decoder rebuilds, m (`MaskSpec.decoded`).
  """
  embed = 2 * visible * config.patch_values * config.width
  return 3 * videomae_forward_flops(config, visible, decoded) - embed


def latent_step_flops(
  config: VideoMAEConfig, visible: int, decoded: int
) -> int:
  """Model FLOPs of a step of latent prediction, for one clip.

  That of a VideoMAE with a head of d values, and the teacher's forward pass
  over all n tokens, of which nobody asks a gradient:

    2 n p d + stack of d on n
  """
  n = config.tokens
  teacher = 2 * n * config.patch_values * config.width
  teacher += stack_flops(config.encoder_spec, n)
  return videomae_step_flops(config, visible, decoded) + teacher


def stem_flops(config: ClipEncoderConfig) -> list[int]:
  """FLOPs of each convolution of a conv stem, forward, for one frame.

  From a to b channels, h x w places come out, with a window of 3 x 3 and a
  stride of two. One row and one column of windows reach over the edge, where
  nothing is multiplied:

    2 a b (3 h − 1) (3 w − 1)

  Example:
    >>> stem_flops(ClipEncoderConfig(image_px=(4, 4), patch=2, width=6))
    [900]
  """
  found, channels = [], config.channels
  height, width = config.image_px
  for wider in config.stem_widths:
    height, width = height // 2, width // 2
    taps = (3 * height - 1) * (3 * width - 1)
    found.append(2 * channels * wider * taps)
    channels = wider
  return found


def contrastive_step_flops(config: ClipEncoderConfig) -> int:
  """Model FLOPs of one contrastive training step, for one clip.

  Each of t frames passes the frame encoder. The clip passes the temporal
  encoder once, and once more if frames are predicted, then heads: the
  projector; the predictor for each frame asked; LTN's shift for one clip of
  two. Backward takes twice the forward, but for the first convolution and the
  sinusoids of times: nobody asks for the gradient of what is given. Left out
  are the comparison with the batch's other clips (4 · batch · projection) and
  LTN's orthonormal basis, less than a thousandth.

  Example:
    >>> small = ClipEncoderConfig(objective="masked_frames", uses_time=True)
    >>> round(contrastive_step_flops(small) / 1e9, 1)  # GFLOP a clip
    75.2
  """
  t, d, e = config.frames, config.width, config.temporal_width
  hidden, tokens = config.projector_width, math.prod(config.grid)
  stem = stem_flops(config)
  frame = sum(stem) + 2 * tokens * d * d
  frame += stack_flops(config.frame_spec, tokens + 1)
  # Two linear layers, of which the first gets what is given.
  time = 4 * t * e * e if config.uses_time and config.learns_time else 0
  temporal = stack_flops(config.temporal_spec, t + 1) + time
  if d != e:
    temporal += 2 * t * d * e
  asked = {"masked_frames": t, "next_frame": t - 1}.get(config.objective, 0)
  passes = 2 if asked else 1
  heads = 2 * hidden * (e + config.projection) + 2 * asked * hidden * (e + d)
  given = t * stem[0] + passes * time // 2
  if config.objective == "navigation":
    amount = 2 * hidden * (2 * e + config.directions)
    heads += (4 * e * e + amount + 2 * config.directions * e) // 2
    given += e * e
  return 3 * (t * frame + passes * temporal + heads) - given
