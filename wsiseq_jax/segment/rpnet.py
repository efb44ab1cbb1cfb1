r"""RPNet: class maps made to agree with what a second picture re-activates.

    pixels --backbone--> x, finer x    f = 1×1 convolution of x
    standard    f --non-local--> head --> CAM        its mean is the logit
    region      f · factor(similarity) --non-local--> the same head --> CAM

    loss = Σ over both pictures of a pair of
           classification + 10 · disagreement(CAM, mean of region CAMs)

`prototypes.py` has the rules: pairs, masks, similarity, disagreement. A pair is
a picture (role `x`) and its partner (role `y`); the roles share the backbone
and `f`, each has its own head and non-local blocks. Region CAMs are computed at
several scales of the pair, through ReLU, resized to the first scale and
averaged; gradients pass through the first scale alone. Class maps of a picture
come from the standard branch of role `x`: at inference there is no partner.

    response of a non-local block = θ(x) · (φ(x)ᵀ g(x)) / N

without a softmax, N positions; a convolution, a norm whose factor and shift
begin at 0, and the input is added.

Deviations. The norm is a GroupNorm, the same in training and inference; the
original's BatchNorm uses the statistics of the picture and its mirror at
inference. Resizing has half-pixel centres. The mask of the foreground is that
of the class map by default (`mask="cam"`); `"published"` is the original's. A
certain negative teaches the classification of both roles; with
`negatives="prototypes"` the similarity with one, of the same batch, is also
subtracted from that of each picture.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from data_prep.files.schema import FILLED, NotNegative, Range, Share
from wsiseq_jax import fit
from wsiseq_jax.models import conv
from wsiseq_jax.segment import cam, prototypes
from wsiseq_jax.segment.backbone import Backbone

# Of a norm, at most; fewer where channels do not divide.
_GROUPS = 32
_NORM_EPS = 1e-5

Params = Any
Maps = Float[Array, "b h w y"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rpnet(cam.Cam):
  """The stage `rpnet`: settings, thresholds and maps are those of `cam`."""

  name: ClassVar[str] = "rpnet"

  # Channels of f; half as many within a non-local block.
  width: Annotated[int, Range(2)] = 512
  mask: Literal["cam", "published"] = "cam"  # of the foreground
  mask_threshold: Share = 0.3  # of a maximum over the picture
  negatives: Literal["plain", "prototypes"] = "plain"
  # Of the pictures, for region maps; the first has the gradient.
  region_scales: Annotated[tuple[float, ...], Range(0.1, 4), FILLED] = (
    *(1.0, 0.5, 1.5, 2.0),
  )
  agreement_weight: NotNegative = 10.0  # 0 leaves the classifier alone

  def model(self, backbone: Backbone, classes: int) -> fit.Model:
    """What is trained; its outputs are logits of pictures."""
    return network(self, backbone, classes)

  def classify(self, backbone: Backbone) -> cam.Classify:
    """The standard branch of role `x`."""

    def found(params, frozen, pixels, tissue):
      view = view_of(self, backbone, params, frozen, pixels, tissue)
      maps = class_maps(params["head"], view)
      return maps, cam.logits_of(maps, view.valid)

    return found


@functools.lru_cache(maxsize=8)
def network(config: Rpnet, backbone: Backbone, classes: int) -> fit.Model:
  """RPNet as the trainer wants it, the same one whenever asked for."""
  classify = config.classify(backbone)

  def start(key, frozen, example):
    del example
    head = init(key, config, backbone.widths[config.level - 1], classes)
    return {"backbone": backbone.learned(frozen), "head": head}

  def of_batch(params, frozen, batch, key):
    pixels = batch["pixels"].astype(jnp.float32)
    views = []
    for scale in config.region_scales:
      # Sides are multiples of the coarsest stride.
      size = [max(round(n * scale / 16), 1) * 16 for n in pixels.shape[1:3]]
      x = conv.resize(pixels, tuple(size))
      views.append(
        view_of(config, backbone, params, frozen, x, batch["tissue"])
      )
    return loss(
      params["head"], config, views, batch["labels"], batch["mask"], key
    ).total

  def apply(params, frozen, batch):
    return classify(params, frozen, batch["pixels"], batch["tissue"])[1]

  return fit.Model(start, of_batch, apply)


def view_of(
  config: Rpnet,
  backbone: Backbone,
  params: Params,
  frozen: Params,
  pixels: Array,
  tissue: Array,
) -> "View":
  """What the backbone says of pixels, and where there is tissue.

  The finer features are those of two levels before: x3 for x5.
  """
  features = backbone.features({**frozen, **params["backbone"]}, pixels)
  deep = features[config.level - 1]
  share = cam.shrink(tissue, deep.shape[1:3])
  valid = (share >= 0.5).astype(jnp.float32)
  return View(features[max(config.level - 3, 0)], deep, valid)


class View(NamedTuple):
  """What the backbone says of a batch at one scale."""

  fine: Float[Array, "b h2 w2 c2"]  # of an earlier stage
  deep: Float[Array, "b h w c"]  # what is classified
  valid: Float[Array, "b h w"]  # of `deep`: 1 on tissue, 0 on glass and padding


class RpnetLoss(NamedTuple):
  """The loss of a batch and what it consists of."""

  total: Float[Array, ""]
  classification: Float[Array, ""]  # of both roles
  disagreement: Float[Array, ""]  # of both roles, not yet weighted


def init(
  key: Key[Array, ""], config: Rpnet, inner: int, classes: int
) -> Params:
  """Fresh parameters of all heads, a nested dictionary of f32 arrays.

  Args:
    key: source of chance.
    config: shape.
    inner: channels of `View.deep`.
    classes: foreground classes.
  """
  keys = jax.random.split(key, 3)
  return {
    "project": {"kernel": _kernel(keys[0], inner, config.width)},
    "x": _init_role(keys[1], config, classes),
    "y": _init_role(keys[2], config, classes),
  }


def _kernel(key, inner: int, outer: int) -> Array:
  return jax.nn.initializers.lecun_normal()(key, (inner, outer))


def _init_role(key, config, classes):
  keys = jax.random.split(key, 3)
  return {
    "standard": _init_nonlocal(keys[0], config.width),
    "region": _init_nonlocal(keys[1], config.width),
    "head": {"kernel": _kernel(keys[2], config.width, classes)},
  }


def _init_nonlocal(key, width):
  names, inner = ("theta", "phi", "g"), width // 2
  keys = jax.random.split(key, 4)
  found = {
    name: {"kernel": _kernel(k, width, inner), "bias": jnp.zeros(inner)}
    for name, k in zip(names, keys[:3], strict=True)
  }
  found["out"] = {"kernel": _kernel(keys[3], inner, width)}
  found["norm"] = {"scale": jnp.zeros(width), "bias": jnp.zeros(width)}
  return found


def nonlocal_block(
  params: Params, x: Float[Array, "b h w c"], valid: Float[Array, "b h w"]
) -> Float[Array, "b h w c"]:
  """Every position hears from all others; glass neither speaks nor counts.

  Fresh parameters return x.
  """
  theta, phi, g = (
    x @ params[name]["kernel"] + params[name]["bias"].reshape(1, 1, 1, -1)
    for name in ("theta", "phi", "g")
  )
  # (θ φᵀ) g = θ (φᵀ g): N × c² in place of N² × c.
  heard = jnp.einsum("bhwi,bhwj->bij", phi * valid[..., None], g)
  count = jnp.maximum(jnp.sum(valid, axis=(1, 2)), 1)
  heard = heard / count[:, None, None]
  response = jnp.einsum("bhwi,bij->bhwj", theta, heard)
  more = group_norm(params["norm"], response @ params["out"]["kernel"], valid)
  return (x + more) * valid[..., None]


def group_norm(
  params: Params, x: Float[Array, "b h w c"], valid: Float[Array, "b h w"]
) -> Float[Array, "b h w c"]:
  """GroupNorm over the positions that are valid."""
  groups = math.gcd(_GROUPS, x.shape[-1])
  grouped = x.reshape(*x.shape[:3], groups, -1)
  weight = valid[:, :, :, None, None]
  count = jnp.maximum(jnp.sum(valid, axis=(1, 2)), 1) * grouped.shape[-1]

  def mean(values):
    total = jnp.sum(values * weight, axis=(1, 2, 4), keepdims=True)
    return total / count.reshape(-1, 1, 1, 1, 1)

  centred = grouped - mean(grouped)
  scaled = centred * lax.rsqrt(mean(jnp.square(centred)) + _NORM_EPS)
  scale, bias = (params[k].reshape(1, 1, 1, -1) for k in ("scale", "bias"))
  return scaled.reshape(x.shape) * scale + bias


def project(params: Params, view: View) -> Float[Array, "b h w c"]:
  """f: what all branches work on; 0 on glass."""
  return view.deep @ params["project"]["kernel"] * view.valid[..., None]


def class_maps(params: Params, view: View) -> Maps:
  """Class maps before the ReLU, as inference makes them."""
  return _standard(params["x"], project(params, view), view.valid)


def _standard(role: Params, features: Array, valid: Array) -> Maps:
  return (
    nonlocal_block(role["standard"], features, valid) @ (role["head"]["kernel"])
  )


def loss(
  params: Params,
  config: Rpnet,
  views: Sequence[View],
  labels: Float[Array, "b y"],
  real: Float[Array, " b"],
  key: Key[Array, ""],
) -> RpnetLoss:
  """The loss of a batch whose pictures are each other's partners.

  Args:
    params: what `init` returned.
    config: shape and weights.
    views: of the batch at each of `config.region_scales`.
    labels: 1 and 0, NaN where not known.
    real: 0 for rows that only fill the batch.
    key: of partners and part prototypes.
  """
  partners = prototypes.draw_partners(jax.random.fold_in(key, 0), labels, real)
  shape = views[0].valid.shape
  standard, region = None, []
  for number, view in enumerate(views):
    of_parts = jax.random.fold_in(key, number + 1)
    pairs, found = _pair_maps(params, config, view, partners, of_parts)
    if standard is None:
      standard = pairs
    else:
      found = lax.stop_gradient(found)
    found = [jax.nn.relu(one) for one in found]
    region.append([conv.resize(one, shape[1:]) for one in found])
  mean = [sum(one) / len(region) for one in zip(*region, strict=True)]
  classification = disagreement = jnp.zeros(())
  # Rows in the role of `y` are the partners of those in the role of `x`.
  for role, rows in enumerate((jnp.arange(shape[0]), partners.row)):
    valid, known = views[0].valid[rows], labels[rows]
    classification += prototypes.classification(
      cam.logits_of(standard[role], valid), known, real
    )
    disagreement += prototypes.disagreement(
      standard[role], mean[role], known, valid, real
    )
  total = classification + config.agreement_weight * disagreement
  return RpnetLoss(total, classification, disagreement)


def _pair_maps(params, config, view, partners, key):
  """Standard and region maps of both roles: two pairs of maps."""
  low = lax.stop_gradient(view.fine)
  low = conv.resize(low, view.valid.shape[1:]) * view.valid[..., None]
  features = project(params, view)
  levels, standard, masks = [], [], []
  for role, rows in (("x", None), ("y", partners.row)):
    mine, fine, valid = (
      x if rows is None else x[rows] for x in (features, low, view.valid)
    )
    levels.append((mine, fine, valid))
    standard.append(_standard(params[role], mine, valid))
    masks.append(_foreground(config, mine, standard[-1], partners, valid))
  keys = jax.random.split(key, 2)
  vectors = [
    _prototypes(k, level, mask)
    for k, level, mask in zip(keys, levels, masks, strict=True)
  ]
  against = None
  if config.negatives == "prototypes":
    everywhere = [prototypes.prototype(x, view.valid) for x in (features, low)]
    against = [vector[partners.negative] for vector in everywhere]
  region = []
  for role, (mine, fine, valid) in zip("xy", levels, strict=True):
    likeness = None
    for which, level in enumerate((mine, fine)):
      for vector in (v for pair in vectors for v in pair[which]):
        one = prototypes.cosine(level, vector)
        likeness = one if likeness is None else jnp.maximum(likeness, one)
    if against is not None:
      unlike = [
        prototypes.cosine(level, vector)
        for level, vector in zip((mine, fine), against, strict=True)
      ]
      has = partners.has_negative[:, None, None]
      likeness = likeness - has * jnp.maximum(*unlike)
    times = prototypes.factor(likeness, valid)[..., None]
    again = nonlocal_block(params[role]["region"], mine * times, valid)
    region.append(again @ params[role]["head"]["kernel"])
  return standard, region


def _foreground(config, features, maps, partners, valid) -> Array:
  """The mask that prototypes are means over; without gradient."""
  if config.mask == "published":
    found = prototypes.published_mask(features, valid, config.mask_threshold)
    found = found * (partners.shared >= 0)[:, None, None]
  else:
    found = prototypes.cam_mask(
      maps, partners.shared, valid, config.mask_threshold
    )
  return lax.stop_gradient(found)


def _prototypes(key, level, mask):
  """Full and part prototypes, of each of the two resolutions."""
  features, low, _ = level
  part = prototypes.part_of(key, mask)
  return [
    [prototypes.prototype(x, m) for m in (mask, part)] for x in (features, low)
  ]
