"""A teacher in bfloat16, and one that is split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import axes
from effarch.distill import layerwise, objectives
from effarch.distill.frozen import freeze, in_dtype
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss
from effarch.distill.transfer import StudentConfig, student_config, transfer
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from effarch.parallel.sharding import put_batch
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, T = 8, 24
TEACHER = tiny.config("softmax_attention", layers=2, tie_embeddings=False).replace(vocab_size=64)  # divides
DATA = {
    "tokens": tiny.tokens(B, T),
    "segment_ids": jnp.ones((B, T), jnp.int32),
    "loss_mask": jnp.ones((B, T), jnp.float32),
}


def models():
    teacher = tiny.model(TEACHER)
    return teacher, transfer(teacher, tiny.model(student_config(TEACHER, StudentConfig(mixer="retnet"))))


def test_bfloat16_is_the_same_teacher_rounded():
    """Parameters and activations in bfloat16; its KL from itself in float32 is small, and not 0."""
    teacher = tiny.model(TEACHER)
    half = in_dtype(teacher, "bfloat16")
    assert half.config == TEACHER.replace(dtype="bfloat16", param_dtype="bfloat16", residual_float32=True)
    pairs = zip(jax.tree.leaves(nnx.split(half)[1]), jax.tree.leaves(nnx.split(teacher)[1]), strict=True)
    assert all(x.dtype == jnp.bfloat16 and (x == y.astype(jnp.bfloat16)).all() for x, y in pairs)
    logs = []
    for lm in (teacher, half):
        graph, params = nnx.split(lm)
        hidden = tiny.hidden(graph, "chunkwise", (), params, DATA["tokens"], None, DATA["segment_ids"]).hidden
        assert hidden.dtype == jnp.dtype(lm.config.dtype)
        logits = np.asarray(lm.head(hidden), np.float64)
        logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    assert 1e-7 < kl.mean() < 1e-3


@pytest.mark.parametrize("kind", ["align", "logits"])
def test_a_student_in_float32_learns_from_it(kind, monkeypatch):
    """What the student computes stays float32, whatever its teacher computes in; the loss is close."""
    teacher, student = models()
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    seen = []
    for module, name in ((layerwise, "hidden_loss"), (objectives, "chunked_logit_loss")):
        real = getattr(module, name)

        def noted(mine, theirs, *rest, real=real, **options):
            seen.append((mine.dtype, theirs.dtype))
            return real(mine, theirs, *rest, **options)

        monkeypatch.setattr(module, name, noted)
    make = {"align": (layerwise.align, HiddenLoss()), "logits": (objectives.logits, LogitLoss(cross_entropy=1.0))}
    objective, config = make[kind]
    values = []
    for lm in (teacher, in_dtype(teacher, "bfloat16")):
        teacher_graph, frozen = nnx.split(lm)
        loss = objective(teacher_graph, graph, config)
        values.append(jax.jit(lambda p, f, loss=loss: loss(p, rest, DATA, None, f)[0])(params, frozen))
        assert values[-1].dtype == jnp.float32
        assert set(seen) == {(jnp.dtype(jnp.float32), jnp.dtype(lm.config.dtype))}
        seen.clear()
    assert_close(values[1], values[0], TOL.bf16)


def test_no_device_holds_the_whole_teacher():
    """Split by the same rules as any model's parameters; the loss of the whole teacher."""
    teacher, student = models()
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    single = make_rules(make_mesh(MeshConfig(), jax.devices()[:1]))
    many = make_rules(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    losses = []
    for rules in (single, many):
        teacher_graph, frozen = freeze(teacher, rules)
        loss = objectives.logits(teacher_graph, graph, LogitLoss())

        def total(params, batch, frozen, loss=loss, rules=rules):
            with axes.rules(rules):
                return loss(params, rest, batch, None, frozen)[0]

        losses.append(float(jax.jit(total)(jax.device_get(params), put_batch(DATA, rules), frozen)))
    assert_close(losses[1], losses[0], TOL.f32_forward)
    leaves = jax.tree.leaves(frozen)
    held = sum(x.addressable_shards[0].data.size for x in leaves)
    assert held < 0.45 * sum(x.size for x in leaves)  # a quarter, but for norms and what two do not divide
