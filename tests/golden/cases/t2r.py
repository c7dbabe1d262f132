"""T2R, the whole layer: flash-linear-attention's feature map and its naive normalised linear attention."""

from effarch.mixers.t2r import T2R, T2RMapConfig
from tests.golden import draw, fla_layers, linear_layer

FEATURES = 12

inputs = linear_layer.inputs


def weights(rng):
    maps = {f"map_{n}": rng.normal(size=(FEATURES, draw.WIDTH)) * draw.WIDTH**-0.5 for n in "qk"}
    return {**linear_layer.weights(rng), **maps}


def independent(x, map_q, map_k, **projections):
    maps = []
    for weight in (map_q, map_k):
        maps.append(fla_layers.feature_maps().T2RFeatureMap(draw.WIDTH, FEATURES))
        maps[-1].load_state_dict({"layer.weight": weight})
    return linear_layer.run_theirs(x, maps, projections)


def ours(x, map_q, map_k, **projections):
    phi = T2RMapConfig(num_features=FEATURES, bias=False)
    mixer = linear_layer.mixer(T2R(**linear_layer.sizes(), feature_map=phi), projections)
    mixer.phi_q.linear.kernel[...] = linear_layer.per_head(map_q)
    mixer.phi_k.linear.kernel[...] = linear_layer.per_head(map_k)
    return linear_layer.run_ours(mixer, x)
