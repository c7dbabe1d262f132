"""ReBased, the whole layer: flash-linear-attention's ``ReBasedLinearAttention.forward_reference``, in float64, without
the constant that it adds to the denominator.
"""

from effarch.mixers.rebased import Rebased
from tests.golden import draw, fla_layers, linear_layer

inputs = linear_layer.inputs


def weights(rng):
    affine = {"gamma": 1 + 0.3 * rng.normal(size=draw.WIDTH), "beta": 0.3 * rng.normal(size=draw.WIDTH)}
    return {**linear_layer.weights(rng), **affine}


def independent(x, gamma, beta, **projections):
    layer = fla_layers.layer("rebased").ReBasedLinearAttention(
        linear_layer.DIM, feature_dim=draw.WIDTH, num_heads=draw.HEADS, num_key_value_heads=draw.HEADS, eps=0.0
    )
    affine = {"feature_map.gamma": gamma, "feature_map.beta": beta}
    layer.load_state_dict({f"{name}.weight": w for name, w in projections.items()} | affine)
    return {"y": layer.double().forward_reference(x.double()).float()}


def ours(x, gamma, beta, **projections):
    mixer = linear_layer.mixer(Rebased(**linear_layer.sizes()), projections)
    mixer.phi_q.norm.weight[...], mixer.phi_q.norm.bias[...] = gamma, beta
    return linear_layer.run_ours(mixer, x)
