"""What a TPU chip can do, as its maker states it.

Sources: the "System architecture" tables of Google Cloud's pages on each
version, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. The page on v4 gives
no rate for the interconnect; that is from Jouppi et al., "TPU v4: an optically
reconfigurable supercomputer", ISCA 2023 (six links of 50 GB/s each way).

These are peaks. What a program reaches of them is another matter: a good one
computes at 50 to 60 % and streams from memory at 80 to 90 %.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, that is one JAX device."""

  name: str  # as in the name of a topology: `v5e`
  flops: float  # peak bfloat16 FLOP/s of the matrix units
  hbm_bytes: int  # capacity of main memory
  hbm_rate: float  # Bytes/s between main memory and the chip
  # Bytes/s that leave a chip over all its links to neighbours; half of the
  # "bidirectional bandwidth" in the tables.
  ici_rate: float
  example: str  # a topology of this chip


_GIB = 2**30

CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", 275e12, 32 * _GIB, 1200e9, 300e9, "v4:4x4x4"),
    Chip("v5e", 197e12, 16 * _GIB, 819e9, 200e9, "v5e:16x16"),
    Chip("v5p", 459e12, 95 * _GIB, 2765e9, 600e9, "v5p:4x4x8"),
    Chip("v6e", 918e12, 32 * _GIB, 1638e9, 400e9, "v6e:16x16"),
  )
}


def find(topology: str) -> Chip:
  """The chip of a topology, `v5e:16x16` → v5e.

  Example:
    >>> find("v6e:2x4").flops
    918000000000000.0
  """
  name = topology.split(":")[0]
  if name not in CHIPS:
    examples = ", ".join(repr(chip.example) for chip in CHIPS.values())
    raise ValueError(
      f"config.aot.topology = {topology!r}: must be one of {list(CHIPS)}, a "
      f"colon and the chips along each axis, such as {examples}"
    )
  return CHIPS[name]
