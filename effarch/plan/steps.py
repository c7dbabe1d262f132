"""The steps of a run as its loop would jit them, with shapes and shardings in the place of arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from effarch import axes
from effarch.bench.decode import greedy
from effarch.data.rows import FIELDS, LOADED_AS
from effarch.distill.cache import KEY
from effarch.distill.frozen import frozen_shapes, in_dtype
from effarch.distill.plan import Planned
from effarch.distill.stages import Logits, cached
from effarch.distill.top_k import TopK
from effarch.experiment.abstractly import abstractly
from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig, converted
from effarch.experiment.phases import pretraining, stage_phase
from effarch.models.lm import LM, LMConfig, make_lm
from effarch.parallel.sharding import batch_sharding, check_rows, variable_shardings, with_shardings
from effarch.plan.activations import kept_bytes
from effarch.training.phase import Phase, saved, shardings
from effarch.typing import Array, PyTree

Run = PretrainConfig | DistillConfig


@dataclasses.dataclass(frozen=True)
class Step:
    """One program.

    Attributes:
      run: from ``jax.jit``. arguments: shapes with shardings. parts: what they are made of, by name.
      batch_size, seq_len: of its rows. tokens: that one call reads.
      useful: FLOPs of the models' formulas, all devices together: three passes of what is trained, one of what is read.
      arithmetic: what their products ask for, of ``products.KINDS``.
      activations: bytes per device that the backward pass keeps; None where there is none.
    """

    run: Any
    arguments: tuple[PyTree, ...]
    parts: Mapping[str, PyTree]
    batch_size: int
    seq_len: int
    tokens: int
    useful: int
    arithmetic: str
    activations: int | None = None


def training(config: PretrainConfig, rules: axes.Rules) -> Step:
    """The update of a pretraining run.

    Raises:
      UserError: rows that the mesh does not divide, or sizes of the model that do not fit.
    """
    config = config.fitted()
    make = partial(make_lm, config.model, config.seed)
    graph = nnx.split(abstractly(make), nnx.Param, ...)[0]
    batch = text_batch(config.batch_size, config.seq_len, rules)
    work = 3 * config.batch_size * config.model.flops(config.seq_len), _arithmetic(config.model)
    return _update(pretraining(config, graph), make, config, batch, rules, work)


def distilling(config: DistillConfig, place: Planned, rules: axes.Rules) -> Step:
    """The update of a stage of a distillation, its teacher included. Raises as :func:`training`."""
    teacher, student = abstractly(lambda: converted(config))
    if (dtype := config.teacher.dtype) is not None:
        teacher = jax.eval_shape(lambda lm: in_dtype(lm, dtype), teacher)
    teacher_graph, frozen = frozen_shapes(teacher, rules)
    phase = stage_phase(place, place.stage, teacher_graph, nnx.split(student)[0], frozen)
    batch = text_batch(place.batch_size, place.seq_len, rules)
    if isinstance(place.stage, Logits) and place.stage.cache is not None:
        shape, where = (place.batch_size, place.seq_len, place.stage.cache.top_k), batch_sharding(rules)
        told: list[Any] = [jax.ShapeDtypeStruct(shape, kind, sharding=where) for kind in (jnp.int32, jnp.float32)]
        batch[KEY] = TopK(*told)
    held = {} if cached(place.stage) else {"teacher": frozen}
    row = 3 * student.config.flops(place.seq_len) + (teacher.config.flops(place.seq_len) if held else 0)
    work = place.batch_size * row, _arithmetic(student.config)
    return _update(phase, lambda: converted(config)[1], config, batch, rules, work, held)


def _update(
    phase: Phase,
    make: Callable[[], LM],
    config: Run,
    batch: dict[str, Any],
    rules: axes.Rules,
    work: tuple[int, str],
    held: Mapping[str, PyTree] | None = None,
) -> Step:
    placement = shardings(phase, make, config.seed, rules)
    state = saved(phase, make, config.seed, rules)
    rows, length = batch["tokens"].shape
    others = (state.step, state.rng, state.skipped)
    parts = {
        "parameters": (state.params, state.rest),
        **(held or {}),
        "optimizer": (state.opt_state, others),
        "batch": batch,
    }
    return Step(
        phase.step(placement, rules, config.grad_accum),
        (state, batch, *phase.frozen),
        parts,
        rows,
        length,
        rows * length,
        *work,
        kept_bytes(phase, state, batch, rules, config.grad_accum),
    )


def prefill(model: LMConfig, batch_size: int, seq_len: int, rules: axes.Rules) -> Step:
    """The state after a prompt of ``seq_len`` tokens, and the likeliest next one. Raises as :func:`training`."""
    graph, params, state = _decoder(model, batch_size, seq_len, rules)

    def run(params: PyTree, tokens: Array) -> tuple[Array, PyTree]:
        with axes.rules(rules):
            lm: LM = nnx.merge(graph, params)
            output = lm.hidden(tokens, lm.init_state(batch_size, seq_len))
            return jnp.argmax(lm.head(output.hidden[:, -1]), axis=-1).astype(jnp.int32), output.state

    where = _rows((batch_size,), rules)
    tokens = jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32, sharding=where)
    jitted = jax.jit(run, out_shardings=(where, jax.tree.map(lambda x: x.sharding, state)))
    parts = {"parameters": params, "batch": tokens}
    work = batch_size * model.flops(seq_len), _arithmetic(model)
    return Step(jitted, (params, tokens), parts, batch_size, seq_len, batch_size * seq_len, *work)


def decode(model: LMConfig, batch_size: int, seq_len: int, rules: axes.Rules) -> Step:
    """One more token of every row, with room for ``seq_len``; states are donated. Raises as :func:`training`."""
    graph, params, state = _decoder(model, batch_size, seq_len, rules)

    def run(params: PyTree, token: Array, state: PyTree) -> tuple[Array, PyTree]:
        with axes.rules(rules):
            return greedy(nnx.merge(graph, params), 1, token, state)

    where = _rows((batch_size,), rules)
    token = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=where)
    jitted = jax.jit(run, donate_argnums=2, out_shardings=(where, jax.tree.map(lambda x: x.sharding, state)))
    parts = {"parameters": params, "state": state, "batch": token}
    work = batch_size * model.flops(1), _arithmetic(model)
    return Step(jitted, (params, token, state), parts, batch_size, seq_len, batch_size, *work)


def _arithmetic(model: LMConfig) -> str:
    return "bf16" if jnp.dtype(model.dtype).itemsize == 2 else "f32_highest"


def _decoder(model: LMConfig, batch_size: int, seq_len: int, rules: axes.Rules) -> tuple[nnx.GraphDef, PyTree, PyTree]:
    """Graph and variables of a model with its layers apart, and the state of ``batch_size`` rows, split over rows."""
    lm = abstractly(lambda: make_lm(model).unstacked())
    graph, params = nnx.split(lm)
    state = abstractly(lambda: make_lm(model).init_state(batch_size, seq_len))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_rows(x.shape, rules)), state)
    return graph, with_shardings(params, variable_shardings(params, rules)), state


def _rows(shape: tuple[int, ...], rules: axes.Rules) -> jax.sharding.NamedSharding:
    """Dimension 0 is rows, split where they divide."""
    names = ("batch",) if shape else ()
    return jax.sharding.NamedSharding(rules.mesh, rules.spec(*names, shape=shape[:1]))


def text_batch(batch_size: int, seq_len: int, rules: axes.Rules) -> dict[str, Any]:
    """What the loop hands a step: rows of text.

    Raises:
      UserError: the rows do not divide over the devices.
    """
    check_rows(batch_size, rules.ways(rules.mesh_axes("batch")))
    where = batch_sharding(rules)
    return {name: jax.ShapeDtypeStruct((batch_size, seq_len), LOADED_AS[name], sharding=where) for name in FIELDS}
