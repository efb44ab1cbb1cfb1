"""Models: Flax NNX modules used functionally.

A module is built once, split into a graph definition and a plain nested dict of
parameters, and merged again inside the jitted step:

    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    output, intermediates = nnx.merge(graphdef, params)(inputs)

There are no leaves but parameters: no batch statistics, no counters, no stored
random keys. Forward passes return `(output, named intermediates)`.
"""
