import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import leak as leak_lib
from data_prep.files import schema
from wsiseq_jax.models import masking

PATCH = (2, 16, 16)


def drift(px, frames=16, clips=8, heading_deg=0.0):
  angle = np.deg2rad(heading_deg)
  step = px * np.array([np.cos(angle), -np.sin(angle)])
  shift = np.arange(frames)[:, None] * step[None]
  shift = np.repeat(shift[None], clips, 0).astype(np.float32)
  return jnp.asarray(shift), jnp.zeros((clips, frames), jnp.int32)


def mean_leak(spec, px, heading_deg=0.0, clips=16):
  shift, panel = drift(px, clips=clips, heading_deg=heading_deg)
  mask = masking.make_mask(jax.random.key(1), shift, panel, spec)
  visible = np.asarray(masking.is_visible(mask, spec))
  return np.mean(
    [leak_lib.leak(v, np.asarray(shift[0]), PATCH) for v in visible]
  )


@pytest.mark.parametrize("kind", masking.KINDS)
@pytest.mark.parametrize("ratio", [0.4, 0.9])
@pytest.mark.parametrize("grid", [(8, 14, 14), (8, 7, 20)])
def test_every_token_is_visible_or_decoded_and_counts_are_fixed(
  kind, ratio, grid
):
  spec = masking.MaskSpec(grid, PATCH, kind=kind, ratio=ratio)
  shift, panel = drift(28.4)
  mask = masking.make_mask(jax.random.key(0), shift, panel, spec)
  tokens = int(np.prod(grid))
  assert mask.visible.shape == (8, spec.visible)
  assert mask.decode.shape == (8, spec.decoded)
  for visible, decode in zip(mask.visible, mask.decode, strict=True):
    both = np.concatenate([visible, decode])
    assert sorted(both.tolist()) == list(range(tokens))
    assert np.all(np.diff(visible) > 0) and np.all(np.diff(decode) > 0)
  assert np.all(np.asarray(mask.weight) == 1)


@pytest.mark.parametrize(
  ("ratio", "visible"), [(0.9, 160), (0.75, 392), (0.6, 632), (0.4, 944)]
)
def test_counts_of_the_recipe(ratio, visible):
  # 196 - floor(ratio * 196) positions in eight slots: 20, 49, 79 and 118.
  spec = masking.MaskSpec((8, 14, 14), PATCH, kind="tube", ratio=ratio)
  assert spec.visible == visible


def test_count_is_not_off_by_one_from_binary_fractions():
  # 0.29 * 100 is 28.999999999999996 in floating point.
  spec = masking.MaskSpec((1, 10, 10), PATCH, kind="tube", ratio=0.29)
  assert spec.visible == 71


def test_tube_is_the_same_in_every_slot():
  spec = masking.MaskSpec((8, 14, 14), PATCH, kind="tube", ratio=0.9)
  shift, panel = drift(28.4)
  mask = masking.make_mask(jax.random.key(0), shift, panel, spec)
  visible = np.asarray(masking.is_visible(mask, spec))
  assert np.array_equal(visible, np.repeat(visible[:, :1], 8, axis=1))
  assert visible[:, 0].sum(axis=(1, 2)).tolist() == [20] * 8
  assert not np.array_equal(visible[0], visible[1])


@pytest.mark.parametrize("px", [21.3, 28.4, 32.4])
def test_motion_aligned_tubes_hide_what_fixed_tubes_show(px):
  tissue = masking.MaskSpec((8, 14, 14), PATCH, kind="tissue", ratio=0.9)
  tube = masking.MaskSpec((8, 14, 14), PATCH, kind="tube", ratio=0.9)
  assert mean_leak(tissue, px) <= 0.06
  assert mean_leak(tube, px) >= 0.35


def test_vertical_travel_and_other_windows_leak_no_more():
  for grid in [(8, 14, 14), (8, 7, 14), (8, 10, 20)]:
    spec = masking.MaskSpec(grid, PATCH, kind="tissue", ratio=0.9)
    assert mean_leak(spec, 28.4, heading_deg=0) <= 0.06
    assert mean_leak(spec, 28.4, heading_deg=180) <= 0.06
  spec = masking.MaskSpec((8, 14, 14), PATCH, kind="tissue", ratio=0.9)
  assert mean_leak(spec, 28.4, heading_deg=90) <= 0.06
  assert mean_leak(spec, 28.4, heading_deg=45) <= 0.08


def test_mask_moves_with_the_tissue_by_whole_tokens():
  # One patch a frame, two frames a slot: what is visible in column j is
  # visible in column j - 2 one slot later. Only the fixed number of visible
  # tokens may cut one place of tissue in two, once a clip.
  spec = masking.MaskSpec((8, 14, 14), PATCH, kind="tissue", ratio=0.5)
  shift, panel = drift(16.0)
  mask = masking.make_mask(jax.random.key(0), shift, panel, spec)
  visible = np.asarray(masking.is_visible(mask, spec))
  changed = visible[:, :-1, :, 2:] != visible[:, 1:, :, :-2]
  assert changed.sum(axis=(1, 2, 3)).max() <= 1


def test_a_standing_window_gives_an_ordinary_tube():
  spec = masking.MaskSpec((8, 14, 14), PATCH, kind="tissue", ratio=0.9)
  shift, panel = drift(0.0)
  mask = masking.make_mask(jax.random.key(0), shift, panel, spec)
  visible = np.asarray(masking.is_visible(mask, spec))
  assert visible.any(axis=1).sum(axis=(1, 2)).max() <= 21


def test_panels_share_no_numbers():
  # A walk: every slot is another panel, at the same panel coordinates. Masks
  # of two slots are then no more alike than chance.
  spec = masking.MaskSpec((8, 14, 14), PATCH, kind="tissue", ratio=0.5)
  clips = 8
  shift = jnp.zeros((clips, 16, 2))
  panel = jnp.tile(jnp.arange(16) // 2, (clips, 1))
  mask = masking.make_mask(jax.random.key(0), shift, panel, spec)
  visible = np.asarray(masking.is_visible(mask, spec))
  agreement = (visible[:, :-1] == visible[:, 1:]).mean()
  assert 0.4 < agreement < 0.6


def test_running_cell_keeps_half_and_every_position_at_some_time():
  spec = masking.MaskSpec(
    (8, 14, 14), PATCH, kind="tube", ratio=0.9, decoder="running_cell"
  )
  assert spec.decoded == 784
  for phase in range(4):
    kept = np.zeros(8 * 14 * 14, bool)
    kept[np.asarray(masking.running_cell(jnp.int32(phase), spec))] = True
    kept = kept.reshape(8, 14, 14)
    assert kept.sum() == 784
    assert kept.sum(axis=0).tolist() == [[4] * 14] * 14
  # Slot 0, phase 0: the first two places of each cell (its upper row) drop.
  first = np.zeros(8 * 14 * 14, bool)
  first[np.asarray(masking.running_cell(jnp.int32(0), spec))] = True
  first = first.reshape(8, 14, 14)
  assert not first[0, 0].any() and first[0, 1].all()
  # One slot on, the places move on by one: 1 and 2 drop, 0 and 3 stay.
  assert first[1, :2, :2].tolist() == [[True, False], [False, True]]


def test_dual_masking_supervises_kept_and_hidden_tokens_only():
  spec = masking.MaskSpec(
    (8, 14, 14), PATCH, kind="tube", ratio=0.9, decoder="running_cell"
  )
  shift, panel = drift(28.4, clips=4)
  mask = masking.make_mask(jax.random.key(3), shift, panel, spec)
  for visible, decode, weight in zip(
    mask.visible, mask.decode, mask.weight, strict=True
  ):
    hidden = ~np.isin(decode, visible)
    assert np.array_equal(np.asarray(weight) == 1, hidden)
    assert 0 < hidden.sum() < len(hidden)


def test_mask_depends_on_key_and_clip_alone():
  spec = masking.MaskSpec((8, 14, 14), PATCH, kind="tissue", ratio=0.9)
  shift, panel = drift(28.4, clips=8)
  a = masking.make_mask(jax.random.key(0), shift, panel, spec)
  mesh = jax.make_mesh(
    (8, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2
  )
  sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
  sharded = jax.jit(
    lambda key, s, p: masking.make_mask(key, s, p, spec),
    in_shardings=(None, sharding, sharding),
  )
  b = sharded(jax.random.key(0), shift, panel)
  assert np.array_equal(a.visible, b.visible)
  other = masking.make_mask(jax.random.key(1), shift, panel, spec)
  assert not np.array_equal(a.visible, other.visible)


def test_masking_needs_no_collective_under_a_sharded_batch():
  for spec in [
    masking.MaskSpec((8, 14, 14), PATCH, kind="tissue", ratio=0.9),
    masking.MaskSpec((8, 14, 14), PATCH, kind="tube", decoder="running_cell"),
  ]:
    mesh = jax.make_mesh(
      (8, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2
    )
    sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    shift, panel = drift(28.4, clips=16)
    compiled = (
      jax.jit(
        lambda key, s, p, spec=spec: masking.make_mask(key, s, p, spec),
        in_shardings=(None, sharding, sharding),
        out_shardings=sharding,
      )
      .lower(jax.random.key(0), shift, panel)
      .compile()
    )
    text = compiled.as_text()
    for name in ("all-gather", "all-reduce", "all-to-all", "permute("):
      assert f" {name}" not in text, name


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"ratio": 1.0}, "mask.ratio = 1.0"),
    ({"ratio": 0.0}, "mask.ratio = 0.0"),
    ({"decoder": "running_cell", "grid": (8, 7, 14)}, "even grid"),
  ],
)
def test_bad_specs_name_the_config_key(change, message):
  fields = {"grid": (8, 14, 14), "patch": PATCH, **change}
  with pytest.raises(ValueError, match=message):
    masking.MaskSpec(**fields)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("kind", "tubes"),
    ("ratio", 1.0),
    ("decoder", "half"),
    ("decoder_ratio", 0.4),
    ("run_patches", 0.5),
  ],
)
def test_bad_settings_are_named(key, value):
  with pytest.raises(ValueError, match=f"config.mask.{key} = {value!r}: must"):
    schema.build(masking.MaskSettings, {key: value}, "config.mask")


def test_frames_that_do_not_fill_the_grid_are_refused():
  spec = masking.MaskSpec((8, 14, 14), PATCH)
  shift, panel = drift(20.0, frames=8)
  with pytest.raises(ValueError, match="data.frames and model.patch"):
    masking.make_mask(jax.random.key(0), shift, panel, spec)
