"""Rotary positions in somebody's config, in the spelling of transformers 5 (``rope_parameters``) and the older one."""

from effarch.config import UserError
from effarch.hub.fields import Fields


def rope_theta(fields: Fields, default: float = 10000.0) -> float:
    """The base of the wavelengths.

    Raises:
      UserError: both spellings are there and differ; a scaling.
    """
    old = fields.take("rope_theta", float, None)
    found = None
    for name in ("rope_parameters", "rope_scaling"):
        part = fields.nested(name)
        part.only("rope_type", "default")
        part.only("type", "default")
        theta = part.take("rope_theta", float, None)
        part.finish()
        if theta is not None and old is not None and theta != old:
            raise UserError(f"{fields.where}: rope_theta {old:g} contradicts {name}.rope_theta {theta:g}")
        found = theta if theta is not None else found
    return found if found is not None else old if old is not None else default
