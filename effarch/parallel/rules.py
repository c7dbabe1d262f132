"""The one table: which mesh axes each logical axis is split over."""

from jax.sharding import Mesh

from effarch import axes

#: A mesh axis serves one dimension of an array, the first that asks: activations give ``fsdp`` to "batch", parameters
#: to "embed". A parameter that its mesh axes do not divide is refused (``axes.Rules.check``), an activation stays
#: whole.
TABLE = (
    ("batch", ("data", "fsdp")),
    ("time", "context"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
    ("rank", None),
    ("conv", None),
    ("layers", None),
)


def make_rules(mesh: Mesh) -> axes.Rules:
    """The table on this mesh."""
    return axes.Rules(mesh, TABLE)
