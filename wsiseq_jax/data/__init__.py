"""From shards to batches (`source`, `loader`), and from batches to clips.

`source` and `loader` run on the host, import no JAX, and hand over uint8
panels; `augment` is the device's part and runs inside the jitted step.
"""
