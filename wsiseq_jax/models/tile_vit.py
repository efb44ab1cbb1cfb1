"""Vision transformers as pathology's foundation models have them; inference.

    pixels [b,h,w,3] --patches--> linear + position [b,n,d]
      --class token, registers in front--> blocks, LayerNorm --> pooling [b,e]

One model with switches serves them all (`ViTSpec`); `PRESETS` is the table of
those with a name. They are timm's `VisionTransformer` and Hugging Face's `ViT`,
`Dinov2` and `Dinov2WithRegisters`; `weights.tile_encoders` reads
the files of each.

Blocks are those of `vit` with other insides: one matrix for query, key and
value (a bias on all three, or none), LayerScale at the end of both branches,
and SwiGLU, `down(silu(a) b)` with a and b the halves of `up(x)`.

Libraries differ in what they add positions to. Here the class token and the
registers are stored with their positions already added (`prefix`): only patches
have a position table.

References: Dosovitskiy et al., ViT, 2021. Oquab et al., DINOv2, 2024. Darcet et
al., Vision transformers need registers, 2024. Touvron et al., Going deeper with
image transformers (LayerScale), 2021. Shazeer, GLU variants, 2020.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from wsiseq_jax.models import attention, tokens, vit
from wsiseq_jax.models.rngs import Rngs

POOLINGS = ("class", "mean", "class_mean")


@dataclasses.dataclass(frozen=True)
class ViTSpec:
  """Shape and numerics of a tile encoder.

  Raises:
    ValueError: At construction, naming the config key that cannot be.

  Example:
    >>> PRESETS["virchow2"].features, PRESETS["dinov2_small_14"].trained_grid
    (2560, 37)
  """

  patch_px: int  # side of a patch
  width: int  # channels
  depth: int  # blocks
  heads: int  # TileAttention heads; must divide `width`
  # Hidden channels of the MLP; of SwiGLU those after the product, half of what
  # timm derives from `mlp_ratio`.
  mlp_width: int
  mlp: str = "gelu"  # 'gelu' or 'swiglu'
  # Tokens beside the class token that no position belongs to.
  registers: int = 0
  layer_scale: bool = True  # whether branches end in a factor for each channel
  qkv_bias: bool = True  # whether query, key and value have a bias
  tile_px: int = 224  # side of the tiles to be encoded
  # Side of the tiles that the file's position table belongs to; 0 for
  # `tile_px`. If they differ the table is resampled when it is loaded.
  trained_px: int = 0
  # 'class' token; 'mean' of patch tokens; 'class_mean', both side by side
  # (Virchow). Registers are never looked at.
  pooling: str = "class"
  norm_eps: float = 1e-6  # added to the variance in LayerNorm
  # Channel means that pixels in [0, 1] were normalised by in training.
  mean: tuple[float, ...] = tokens.IMAGENET_MEAN
  std: tuple[float, ...] = tokens.IMAGENET_STD  # channel deviations, likewise
  dtype: str = "float32"  # compute dtype, 'float32' or 'bfloat16'
  attention_kernel: str = "auto"  # see `attention.attend`

  def __post_init__(self):
    for key in ("tile_px", "trained_px"):
      side = getattr(self, key)
      if side % self.patch_px or side < 0 or (key == "tile_px" and side == 0):
        raise ValueError(
          f"config.encoder.{key} = {side}: must be a multiple of the patches "
          f"of {self.patch_px} px"
        )
    if self.width % self.heads:
      raise ValueError(f"a width of {self.width} for {self.heads} heads")

  @property
  def grid(self) -> int:
    """Patches along each side of a tile."""
    return self.tile_px // self.patch_px

  @property
  def trained_grid(self) -> int:
    """Patches along each side of what positions were trained for."""
    return (self.trained_px or self.tile_px) // self.patch_px

  @property
  def features(self) -> int:
    """Features of a tile."""
    return self.width * (2 if self.pooling == "class_mean" else 1)


def _spec(patch_px, width, depth, heads, mlp_width=0, **more):
  """One row of the table; the MLP is four times as wide unless said."""
  return ViTSpec(patch_px, width, depth, heads, mlp_width or 4 * width, **more)


_BIOPTIMUS = dict(
  mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517)
)
_SWIGLU = dict(mlp="swiglu")
_DINOV2 = dict(trained_px=518)
_REG4 = dict(trained_px=518, registers=4)

# Shapes, not weights: those are the user's to get, under their own licences.
PRESETS: dict[str, ViTSpec] = {
  "vit_small_16": _spec(16, 384, 12, 6, layer_scale=False),
  "vit_base_16": _spec(16, 768, 12, 12, layer_scale=False),
  # With LayerScale, unlike the two above: UNI.
  "vit_large_16": _spec(16, 1024, 24, 16),
  "dinov2_small_14": _spec(14, 384, 12, 6, **_DINOV2),
  "dinov2_base_14": _spec(14, 768, 12, 12, **_DINOV2),
  "dinov2_large_14": _spec(14, 1024, 24, 16, **_DINOV2),
  "dinov2_giant_14": _spec(14, 1536, 40, 24, 4096, **_DINOV2, **_SWIGLU),
  "dinov2_small_14_reg4": _spec(14, 384, 12, 6, **_REG4),
  "dinov2_base_14_reg4": _spec(14, 768, 12, 12, **_REG4),
  "dinov2_large_14_reg4": _spec(14, 1024, 24, 16, **_REG4),
  "dinov2_giant_14_reg4": _spec(14, 1536, 40, 24, 4096, **_REG4, **_SWIGLU),
  # A Hugging Face ViT, and a Dinov2 (patches of 16).
  "phikon": _spec(16, 768, 12, 12, layer_scale=False, norm_eps=1e-12),
  "phikon_v2": _spec(16, 1024, 24, 16),
  "uni2_h": _spec(14, 1536, 24, 24, 4096, registers=8, **_SWIGLU),
  "virchow": _spec(14, 1280, 32, 16, 3416, pooling="class_mean", **_SWIGLU),
  "virchow2": _spec(
    14, 1280, 32, 16, 3416, registers=4, pooling="class_mean", **_SWIGLU
  ),
  "h_optimus_0": _spec(
    14, 1536, 40, 24, 4096, registers=4, **_BIOPTIMUS, **_SWIGLU
  ),
  "gigapath": _spec(16, 1536, 40, 24, 4096, **_SWIGLU),
}


def _linear(inner: int, outer: int, spec: ViTSpec, rngs, use_bias=True):
  return nnx.Linear(
    inner,
    outer,
    use_bias=use_bias,
    kernel_init=nnx.initializers.xavier_uniform(),
    dtype=jnp.dtype(spec.dtype),
    rngs=rngs,
  )


class _Branch(nnx.Module):
  """End of a residual branch: LayerScale, where there is one."""

  def __init__(self, spec: ViTSpec):
    # Small factors, the usual start, would make random blocks do nothing.
    self.scale = nnx.Param(jnp.ones(spec.width)) if spec.layer_scale else None

  def _end(self, rows: Array, shape: tuple[int, ...]) -> Array:
    if self.scale is not None:
      rows = rows * self.scale[...].astype(rows.dtype)[None]
    return rows.reshape(shape)


class TileAttention(_Branch):
  """Multi-head self-attention; query, key and value come from one matrix."""

  def __init__(self, spec: ViTSpec, rngs: nnx.Rngs):
    super().__init__(spec)
    self.qkv = _linear(spec.width, 3 * spec.width, spec, rngs, spec.qkv_bias)
    self.out = _linear(spec.width, spec.width, spec, rngs)
    self.heads = spec.heads
    self.kernel = spec.attention_kernel

  def __call__(
    self, x: Float[Array, "b n d"], mask: None = None
  ) -> Float[Array, "b n d"]:
    """Mixes tokens. All see all: `mask` is there for `vit.Block` alone."""
    b, n, d = x.shape
    qkv = self.qkv(x.reshape(b * n, d)).reshape(b, n, 3, self.heads, -1)
    mixed = attention.attend(*(qkv[:, :, i] for i in range(3)), self.kernel)
    return self._end(self.out(mixed.reshape(b * n, d)), x.shape)


class TileMlp(_Branch):
  """GELU MLP, or SwiGLU with both of its inputs in one matrix."""

  def __init__(self, spec: ViTSpec, rngs: nnx.Rngs):
    super().__init__(spec)
    self.is_gated = spec.mlp == "swiglu"
    hidden = spec.mlp_width * (2 if self.is_gated else 1)
    self.up = _linear(spec.width, hidden, spec, rngs)
    self.down = _linear(spec.mlp_width, spec.width, spec, rngs)

  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Transforms each token by itself."""
    hidden = self.up(x.reshape(-1, x.shape[-1]))
    if self.is_gated:
      gate, value = jnp.split(hidden, 2, axis=-1)
      hidden = jax.nn.silu(gate) * value
    else:
      hidden = vit.gelu(hidden)
    return self._end(self.down(hidden), x.shape)


class TileBlock(vit.Block):
  """The pre-norm block of `vit` with this module's branches."""

  def __init__(self, spec: ViTSpec, rngs: nnx.Rngs):
    make_norm = functools.partial(
      vit.make_norm, spec.width, spec.norm_eps, spec.dtype, rngs
    )
    self.attention_norm = make_norm()
    self.attention = TileAttention(spec, rngs)
    self.mlp_norm = make_norm()
    self.mlp = TileMlp(spec, rngs)


class TileViT(nnx.Module):
  """The encoder."""

  def __init__(self, spec: ViTSpec, rngs: nnx.Rngs):
    def table(n: int) -> nnx.Param:
      return nnx.Param(0.02 * jax.random.normal(rngs.params(), (n, spec.width)))

    self.patch = _linear(3 * spec.patch_px**2, spec.width, spec, rngs)
    self.prefix = table(1 + spec.registers)
    self.pos_embed = table(spec.grid**2)
    self.blocks = vit.make_blocks(spec, rngs, TileBlock)
    self.norm = vit.make_norm(spec.width, spec.norm_eps, "float32", rngs)
    self.spec = spec

  def __call__(
    self, pixels: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b e"], dict[str, Array]]:
    """Encodes tiles."""
    spec = self.spec
    if pixels.shape[1:3] != (spec.tile_px, spec.tile_px):
      raise ValueError(
        f"config.encoder.tile_px = {spec.tile_px}: tiles of (h, w) = "
        f"{pixels.shape[1:3]} px were given"
      )
    out = self.tokens(pixels, self.pos_embed[...])
    pooled = {
      "class": [out["class"]],
      "mean": [out["patches"].mean(axis=1)],
      "class_mean": [out["class"], out["patches"].mean(axis=1)],
    }
    return jnp.concatenate(pooled[spec.pooling], axis=-1), out

  def tokens(
    self, pixels: Float[Array, "b h w 3"], positions: Float[Array, "n d"]
  ) -> dict[str, Array]:
    """All tokens after the last block, by kind."""
    spec = self.spec
    patches = tokens.patchify(
      pixels[:, None].astype(spec.dtype), (1, spec.patch_px, spec.patch_px)
    )
    x = self.patch(patches) + positions.astype(spec.dtype)[None]
    prefix = self.prefix[...].astype(spec.dtype)[None]
    prefix = jnp.broadcast_to(prefix, (len(x), *prefix.shape[1:]))
    x = jnp.concatenate([prefix, x], axis=1)
    x = self.norm(vit.run_blocks(self.blocks, x, remat="none"))
    return {
      "class": x[:, 0],
      "registers": x[:, 1 : 1 + spec.registers],
      "patches": x[:, 1 + spec.registers :],
    }


@functools.lru_cache(maxsize=8)
def _graphdef(spec: ViTSpec) -> Any:
  return nnx.graphdef(nnx.eval_shape(lambda: TileViT(spec, Rngs(0))))


def init_params(spec: ViTSpec, key: Key[Array, ""]) -> dict[str, Any]:
  """Random parameters, a nested dictionary; layers are stacked."""
  model = TileViT(spec, Rngs(key))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def first_blocks(
  spec: ViTSpec, params: dict[str, Any], count: int
) -> tuple[ViTSpec, dict[str, Any]]:
  """The encoder that ends after its first blocks.

  The final LayerNorm stays, so that features are DINOv2's
  `get_intermediate_layers(norm=True)`.
  """
  blocks = jax.tree.map(lambda leaf: leaf[:count], params["blocks"])
  return dataclasses.replace(spec, depth=count), {**params, "blocks": blocks}


def apply(
  params: dict[str, Any], spec: ViTSpec, pixels: Float[Array, "b h w 3"]
) -> Float[Array, "b e"]:
  """Features of normalised tiles; see `TileViT`."""
  return nnx.merge(_graphdef(spec), params)(pixels)[0]


def patch_map(
  params: dict[str, Any], spec: ViTSpec, pixels: Float[Array, "b h w 3"]
) -> Float[Array, "b h2 w2 d"]:
  """Features of every patch of normalised pictures of any size.

  Positions are resampled, bilinearly, to the picture's grid of patches.

  Raises:
    ValueError: sides are no multiples of the patch.
  """
  b, *size, _ = pixels.shape
  if any(side % spec.patch_px for side in size):
    raise ValueError(
      f"pictures of (h, w) = {tuple(size)}: must be multiples of the patches "
      f"of {spec.patch_px} px"
    )
  grid = tuple(side // spec.patch_px for side in size)
  positions = params["pos_embed"].reshape(spec.grid, spec.grid, -1)
  shape = (*grid, spec.width)
  positions = jax.image.resize(positions, shape, "bilinear", antialias=False)
  model = nnx.merge(_graphdef(spec), params)
  found = model.tokens(pixels, positions.reshape(-1, spec.width))
  return found["patches"].astype(jnp.float32).reshape(b, *shape)
