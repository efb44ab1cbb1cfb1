"""Model FLOPs: the arithmetic that a training step cannot do without.

A multiplication and an addition are two FLOPs. Only matrix products are
counted: everything else (norms, softmax, GELU, cutting clips, AdamW) is less
than a hundredth of them and limited by memory. Work that an implementation
adds, such as recomputing activations in the backward pass, does not count, so
that "model FLOPs utilisation"

    MFU = model FLOPs of a step / (seconds of a step · peak FLOP/s)

compares implementations: it can only rise by doing the same work faster.
"""

from wsiseq_jax.models import vit
from wsiseq_jax.models.videomae import VideoMAEConfig


def stack_flops(spec: vit.BlockSpec, tokens: int) -> int:
  """FLOPs of a stack of transformer blocks, forward, for one clip.

  With n tokens of width d and an MLP of width f, one block takes

    8 n d²      query, key, value, output
    4 n² d      scores, and their product with the values
    4 n d f     MLP

  Args:
    spec: The blocks.
    tokens: Tokens of the clip.

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

  With k visible and m rebuilt tokens, patches of p values, encoder width d and
  decoder width e:

    2 k p d                  patch embedding
    stack of d on k          encoder blocks
    2 k d e                  projection to the decoder
    stack of e on k + m      decoder blocks
    2 m e p                  pixel head

  Args:
    config: The network.
    visible: Tokens the encoder sees, k.
    decoded: Tokens the decoder rebuilds, m.
  """
  embed = 2 * visible * config.patch_values * config.width
  project = 2 * visible * config.width * config.decoder_width
  head = 2 * decoded * config.decoder_width * config.patch_values
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

  Example:
    >>> from wsiseq_jax.models.videomae import SIZES
    >>> base = VideoMAEConfig(**SIZES["base"])
    >>> round(videomae_step_flops(base, 160, 1408) / 1e9, 1)  # GFLOP a clip
    202.3
  """
  embed = 2 * visible * config.patch_values * config.width
  return 3 * videomae_forward_flops(config, visible, decoded) - embed
