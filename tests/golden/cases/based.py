"""Based, the whole layer: flash-linear-attention's ``BasedLinearAttention.forward_reference``, in float64."""

from effarch.mixers.based import Based
from tests.golden import draw, fla_layers, linear_layer

inputs, weights = linear_layer.inputs, linear_layer.weights


def independent(x, **projections):
    layer = fla_layers.layer("based").BasedLinearAttention(
        linear_layer.DIM, feature_dim=draw.WIDTH, num_heads=draw.HEADS, num_key_value_heads=draw.HEADS
    )
    layer.load_state_dict({f"{name}.weight": w for name, w in projections.items()})
    return {"y": layer.double().forward_reference(x.double()).float()}


def ours(x, **projections):
    return linear_layer.run_ours(linear_layer.mixer(Based(**linear_layer.sizes()), projections), x)
