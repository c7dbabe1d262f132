"""Hedgehog, the whole layer: flash-linear-attention's feature map (one softmax over both signs) and its naive
normalised linear attention.
"""

from effarch.mixers.hedgehog import Hedgehog, HedgehogMapConfig
from tests.golden import draw, fla_layers, linear_layer

inputs = linear_layer.inputs


def weights(rng):
    maps = {f"map_{n}": rng.normal(size=(draw.WIDTH, draw.WIDTH)) * draw.WIDTH**-0.5 for n in "qk"}
    biases = {f"bias_{n}": 0.3 * rng.normal(size=draw.WIDTH) for n in "qk"}
    return {**linear_layer.weights(rng), **maps, **biases}


def independent(x, map_q, map_k, bias_q, bias_k, **projections):
    maps = []
    for weight, bias in ((map_q, bias_q), (map_k, bias_k)):
        maps.append(fla_layers.feature_maps().HedgehogFeatureMap(draw.WIDTH))
        maps[-1].load_state_dict({"layer.weight": weight, "layer.bias": bias})
    return linear_layer.run_theirs(x, maps, projections)


def ours(x, map_q, map_k, bias_q, bias_k, **projections):
    phi = HedgehogMapConfig(activation="joint_softmax", bias=True)
    mixer = linear_layer.mixer(Hedgehog(**linear_layer.sizes(), feature_map=phi), projections)
    for linear, weight, bias in ((mixer.phi_q.linear, map_q, bias_q), (mixer.phi_k.linear, map_k, bias_k)):
        linear.kernel[...] = linear_layer.per_head(weight)
        linear.bias[...] = bias[None].repeat(draw.HEADS, axis=0)
    return linear_layer.run_ours(mixer, x)
