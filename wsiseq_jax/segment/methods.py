"""Which stages there are, and which of them make a method.

A line in `STAGES` adds a stage, a line in `METHODS` a method.
"""

from collections.abc import Mapping
from typing import Any

from wsiseq_jax.segment.cam import Cam
from wsiseq_jax.segment.clicks import Clicks
from wsiseq_jax.segment.crf import Crf
from wsiseq_jax.segment.irn import Irn
from wsiseq_jax.segment.lattice import Lattice
from wsiseq_jax.segment.nuclei import Detect
from wsiseq_jax.segment.nucleus_masks import Nuclei
from wsiseq_jax.segment.rpnet import Rpnet
from wsiseq_jax.segment.stage import Stage
from wsiseq_jax.segment.student import Student
from wsiseq_jax.segment.walk import RandomWalk

# A stage's dataclass is the schema of `config.stages.<name>`.
STAGES: Mapping[str, type[Stage]] = {
  Cam.name: Cam,
  Lattice.name: Lattice,
  Rpnet.name: Rpnet,
  Crf.name: Crf,
  Irn.name: Irn,
  RandomWalk.name: RandomWalk,
  Student.name: Student,
  Clicks.name: Clicks,
  Detect.name: Detect,
  Nuclei.name: Nuclei,
}

# Stages in order, and values that differ from the stage's defaults.
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
  "cam": {"cam": {}},
  "student": {"cam": {}, "student": {}},
  "points": {"clicks": {}},
  "rpnet": {"rpnet": {}, "crf": {}, "irn": {}, "walk": {}, "student": {}},
  "patches": {"lattice": {}, "student": {}},
  "irn": {"cam": {}, "crf": {}, "irn": {}, "walk": {}, "student": {}},
  "nuclei": {"detect": {}, "nuclei": {}},
  "full": {"student": {"targets": "truth", "confidence": False}},
}
