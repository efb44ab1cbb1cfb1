"""Files of what models say of tiles."""

import numpy as np
import pytest

from wsiseq_jax.maps.tile_map import TileMap


def test_map_in_micrometres(tmp_path):
  one = TileMap(
    "s", "c", np.array([[100.0, 50.0]]), 100.0, "um", 0.25, None,
    *(np.ones(1, np.float32),) * 3, "yes", 0.5, float("nan"), None,
  )  # fmt: skip
  one.save(tmp_path / "s.npz")
  back = TileMap.load(tmp_path / "s.npz").in_level0()
  assert back.xy.tolist() == [[400.0, 200.0]] and back.tile_size == 400
  assert back.label is None and back.level0_size is None
  (tmp_path / "x.npz").write_bytes(b"nothing")
  with pytest.raises(ValueError, match="x.npz is no map of tiles"):
    TileMap.load(tmp_path / "x.npz")
  unknown = TileMap(**{**vars(one), "level0_mpp": None})
  with pytest.raises(ValueError, match="slide 's': .* level0_mpp is unknown"):
    unknown.in_level0()
