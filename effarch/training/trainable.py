"""What of a model is trained, as data: the rest is neither differentiated, updated nor decayed, and has no moments.

A selection splits a model into ``params``, which a training state holds moments for, and ``rest``, which no step
changes, and puts them together again. So a step needs to know nothing of it, and a checkpoint is read back with the
selection that its metadata names.
"""

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import pydantic
from flax import nnx

from effarch.config import Config, UserError, did_you_mean
from effarch.registry import Choice, register
from effarch.training.step import LossFn, Scheduled
from effarch.typing import Array, PyTree

M = TypeVar("M", bound=nnx.Module)
Names = tuple[str, ...]


class Trains(Config):
    """Base of the selections, chosen by ``type``."""

    def split(self, model: nnx.Module, seed: int = 0) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        """``(graph, params, rest)`` of a model, abstract or not; traceable.

        Args:
          model: whose variables are divided. seed: of parameters that the selection adds.

        Raises:
          UserError: nothing of the model is selected.
        """
        raise NotImplementedError(f"{type(self).__name__} has no split")

    def whole(self, params: PyTree, rest: PyTree) -> tuple[PyTree, PyTree]:
        """Two states that together are those of the model: what ``nnx.merge(graph, ...)`` and a loss take."""
        return params, rest

    def model(self, graph: nnx.GraphDef, params: PyTree, rest: PyTree) -> Any:
        """The model, an ordinary one whatever was trained."""
        return nnx.merge(graph, *self.whole(params, rest))

    def loss(self, of_model: LossFn | Scheduled) -> LossFn | Scheduled:
        """The loss of a training state, from the loss of a model's states."""
        if isinstance(of_model, Scheduled):
            return Scheduled(self._of_state(of_model.loss_fn))
        return self._of_state(of_model)

    def _of_state(self, of_model: LossFn) -> LossFn:
        def loss(params: PyTree, rest: PyTree, batch: PyTree, rng: Array, *frozen: PyTree, **told: Array) -> tuple:
            return of_model(*self.whole(params, rest), batch, rng, *frozen, **told)

        return loss


TrainsChoice = Annotated[Trains, Choice("trains")]


@register("all", kind="trains")
class All(Trains):
    """Every parameter."""

    frozen: Names = pydantic.Field((), description="parameters with such a name on their path are left alone: channel")

    def split(self, model: nnx.Module, seed: int = 0) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        found = paths(model)
        expect_names("trains.frozen", self.frozen, found)

        def trained(path: tuple, variable: Any) -> bool:
            return is_param(variable) and not named(path, self.frozen)

        return _divided(model, trained)


@register("named", kind="trains")
class Named(Trains):
    """The parameters that have one of some names on their path: ``feature_map``, ``unembed``."""

    names: Annotated[Names, pydantic.Field(min_length=1)] = pydantic.Field(description="modules or parameters")

    def split(self, model: nnx.Module, seed: int = 0) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        expect_names("trains.names", self.names, paths(model))

        def trained(path: tuple, variable: Any) -> bool:
            return is_param(variable) and named(path, self.names)

        return _divided(model, trained)


@register("mixers", kind="trains")
class Mixers(Trains):
    """The sequence mixers and the norms before them."""

    def split(self, model: nnx.Module, seed: int = 0) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        return Named(names=("mixer", "mixer_norm")).split(model, seed)


def is_param(variable: Any) -> bool:
    """Whether a variable of a model is a parameter: abstract or not, what optimizers move."""
    return isinstance(variable, nnx.Param)


def named(path: tuple, names: Iterable[str]) -> bool:
    """Whether one of the names is a part of the path."""
    return not set(names).isdisjoint(str(part) for part in path)


def paths(model: nnx.Module) -> list[tuple]:
    """The paths of a model's parameters."""
    return [path for path, _ in nnx.to_flat_state(nnx.split(model, nnx.Param, ...)[1])]


def expect_names(field: str, names: Iterable[str], found: list[tuple]) -> None:
    """Raises ``UserError`` for a name that is part of none of the paths."""
    known = sorted({part for path in found for part in path if isinstance(part, str)})
    lines = [
        f"{field}: expected names in the model, found no {name!r}{did_you_mean(name, known)} (there are: "
        f"{', '.join(known)})"
        for name in names
        if name not in known
    ]
    if lines:
        raise UserError(*lines)


def _divided(model: nnx.Module, trained: Any) -> tuple[nnx.GraphDef, PyTree, PyTree]:
    graph, params, rest = nnx.split(model, trained, ...)
    if not nnx.to_flat_state(params):
        raise UserError("trains: expected parameters to train, the selection leaves none")
    return graph, params, rest


class _Described(Config):
    trains: TrainsChoice = All()


def trains_of(described: Any) -> Trains:
    """The selection that a checkpoint's metadata names; every parameter where it names none."""
    return _Described.model_validate({} if described is None else {"trains": described}).trains
