"""An encoder becomes a student with other mixers: what is carried over, and what is minimised."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.config import UserError, load
from effarch.distill import layerwise, objectives
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss
from effarch.distill.transfer import EncoderStudentConfig, StudentConfig, student_config, transfer
from effarch.eval.scores import class_distance
from effarch.mixers.bidirectional import Bidirectional
from effarch.mixers.encoder_attention import EncoderAttention
from effarch.mixers.gelu_mlp import GeluMLP
from effarch.mixers.mlp_mixer import MLPMixer
from effarch.mixers.retnet import RetNet
from effarch.models.block import BlockConfig
from effarch.models.classifier import ClassifierConfig, make_classifier
from effarch.models.inputs import Ids, Patches
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.state import make_state
from effarch.training.step import make_step
from effarch.training.trainable import All, Mixers
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, DIM = 5, 16
_BLOCK = BlockConfig(
    mixer=EncoderAttention(num_heads=2, num_kv_heads=2, head_dim=8), channel=GeluMLP(hidden=24, approximate=False)
)
_SMALL = {"classes": 4, "dim": DIM, "num_layers": 2, "pattern": (_BLOCK,), "positions": "learned"}
VIT = ClassifierConfig(
    input=Patches(height=4, width=6, channels=2, patch=2), pool="class_token_first", **_SMALL
)  # 7 tokens with that of the class
BERT = ClassifierConfig(
    input=Ids(vocab_size=23, length=9, token_types=2),
    norm_after=True,
    embed_norm=True,
    pool="first",
    pooler=True,
    **_SMALL,
)
OBJECTIVES = {
    "align": partial(layerwise.align, config=HiddenLoss()),
    "block_out": partial(layerwise.align, config=HiddenLoss(normalize=False), target="block_out"),
    "logits": partial(objectives.class_logits, config=LogitLoss(temperature=2.0)),
}
STUDENTS = {
    "bidirectional": EncoderStudentConfig(mixer=Bidirectional(inner=RetNet())),
    "mlp_mixer": EncoderStudentConfig(mixer=MLPMixer(hidden=8)),
    "hybrid": EncoderStudentConfig(
        mixer=Bidirectional(inner=RetNet(), share_weights=False), pattern=("teacher", "mixer")
    ),
}


def batch(config: ClassifierConfig) -> dict:
    """Rows, the last of weight 0; texts are padded, the first on the left."""
    rng = np.random.default_rng(0)
    rows = {"labels": np.asarray([0, 1, 2, 3, 0], np.int32), "weights": np.asarray([1, 1, 1, 1, 0], np.float32)}
    if isinstance(config.input, Patches):
        return rows | {"inputs": rng.normal(size=(B, 4, 6, 2)).astype(np.float32)}
    mask = np.arange(9) < np.asarray([6, 9, 4, 7, 9])[:, None]
    mask[0] = mask[0, ::-1]
    ids = rng.integers(0, 23, (2, B, 9)).astype(np.int32)
    return rows | {"inputs": ids[0], "token_types": ids[1] % 2, "mask": mask}


@lru_cache
def teacher_of(config: ClassifierConfig):
    """Parameters plus noise, for zeros would hide what stands behind them."""
    graph, params = nnx.split(jax.jit(partial(make_classifier, config), compiler_options=tiny.FAST)())
    rng = np.random.default_rng(1)
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params))


@lru_cache
def models(config: ClassifierConfig, name: str):
    """``(teacher, student)``."""
    teacher, wanted = teacher_of(config), student_config(config, STUDENTS[name])
    convert = jax.jit(lambda t: transfer(t, make_classifier(wanted)), compiler_options=tiny.FAST)
    return teacher, convert(teacher)


@lru_cache
def steps(config: ClassifierConfig, name: str, kind: str, count: int = 12) -> tuple[list[float], list[str]]:
    """Losses of some updates, and the names of what the last one's gradient moved."""
    teacher, student = models(config, name)
    teacher_graph, frozen = nnx.split(teacher)
    graph, params, rest = (All() if kind == "logits" else Mixers()).split(student)
    tx, _ = make_optimizer(OptimizerConfig(learning_rate=2e-2, warmup_steps=0, weight_decay=0.0), count)
    step = jax.jit(make_step(OBJECTIVES[kind](teacher_graph, graph), tx), compiler_options=tiny.FAST)
    state, losses = make_state(params, rest, tx, 0), []
    for _ in range(count):
        state, metrics = step(state, batch(config), frozen)
        losses.append(float(metrics["loss"]))
    before, after = (dict(nnx.to_flat_state(x)) for x in (params, state.params))
    moved = [".".join(map(str, k)) for k, x in before.items() if (np.asarray(x[...]) != after[k][...]).any()]
    return losses, moved


@pytest.mark.parametrize("config", [VIT, pytest.param(BERT, marks=pytest.mark.slow)], ids=["vit", "bert"])
def test_what_is_carried_over(config):
    """All but mixers to the bit; attention's projections into the mixers of both directions."""
    for name in ("hybrid", "mlp_mixer") if config is VIT else ("hybrid",):
        teacher, student = models(config, name)
        theirs, mine = (dict(nnx.to_flat_state(nnx.split(model)[1])) for model in (teacher, student))
        for path, x in theirs.items():
            if path[0] != "stack":
                np.testing.assert_array_equal(x[...], mine[path][...], strict=True)
        for i, (old, new) in enumerate(zip(teacher.stack.layers(), student.stack.layers(), strict=True)):
            for part in ("mixer_norm", "channel_norm", "channel"):
                assert tiny.same_bits(*(nnx.split(getattr(layer, part))[1] for layer in (old, new))), (i, part)
            if name == "hybrid" and i != 1:
                assert tiny.same_bits(nnx.split(old.mixer)[1], nnx.split(new.mixer)[1])
            if name == "hybrid" and i == 1:
                for mixer in (new.mixer.ahead, new.mixer.back):
                    np.testing.assert_array_equal(mixer.qkv.o.kernel[...], old.mixer.qkv.o.kernel[...])
    if config is VIT:  # made for the rows of the teacher, class token included
        assert student_config(VIT, STUDENTS["mlp_mixer"]).pattern[0].mixer == MLPMixer(length=7, hidden=8)


def test_what_cannot_be_a_student():
    with pytest.raises(ValueError, match="inner: expected one that takes over attention's weights, got base_conv"):
        wanted = student_config(VIT, EncoderStudentConfig(mixer=load(Bidirectional, None, ["inner=base_conv"])))
        jax.eval_shape(lambda: transfer(make_classifier(VIT), make_classifier(wanted)))
    with pytest.raises(ValueError, match=r"pattern: expected length 7 \(tokens of a row\) in mlp_mixer, got 8"):
        student_config(VIT, EncoderStudentConfig(mixer=MLPMixer(length=8)))
    with pytest.raises(UserError, match="expected one that takes over attention's weights, got mlp_mixer"):
        load(StudentConfig, None, ["mixer=mlp_mixer"])


@pytest.mark.parametrize(("config", "kind"), [(VIT, "logits"), (BERT, "align")], ids=["logits", "align"])
def test_a_student_that_is_the_teacher_loses_nothing(config, kind):
    teacher = teacher_of(config)
    graph, state = nnx.split(teacher)
    loss = jax.jit(partial(OBJECTIVES[kind](graph, graph), rng=None), compiler_options=tiny.FAST)
    total, weight, _ = loss(state, nnx.State({}), batch(config), frozen=state)
    counts = np.broadcast_to(batch(config)["weights"][:, None], (B, 9)) * batch(BERT)["mask"]
    assert abs(float(total)) < 1e-9 and weight == (4 if kind == "logits" else counts.sum())


@pytest.mark.parametrize(
    ("config", "name", "kind"),
    [
        pytest.param(VIT, "bidirectional", "align", marks=pytest.mark.slow),
        pytest.param(VIT, "mlp_mixer", "block_out", marks=pytest.mark.slow),
        (VIT, "mlp_mixer", "logits"),
        (BERT, "hybrid", "align"),
        pytest.param(BERT, "hybrid", "logits", marks=pytest.mark.slow),
        pytest.param(VIT, "bidirectional", "logits", marks=pytest.mark.slow),
    ],
)
def test_losses_fall(config, name, kind):
    losses, moved = steps(config, name, kind)
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0], losses
    if kind != "logits":
        assert moved and all(".mixer" in path for path in moved)


def test_alignment_is_that_of_every_layer_on_the_teachers_input():
    """By hand, position by position; padding and rows of weight 0 do not count. Norms stand behind the additions."""
    teacher, student = models(BERT, "hybrid")
    data = batch(BERT)

    @partial(jax.jit, compiler_options=tiny.FAST)
    def by_hand(teacher, student):
        x, ctx = teacher.embed(data["inputs"], mask=jnp.asarray(data["mask"]), token_types=data["token_types"])
        pairs = []
        for old, new in zip(teacher.stack.layers(), student.stack.layers(), strict=True):
            wanted = old.mixer(x, None, ctx)[0]
            pairs.append((new.mixer(x, None, ctx)[0], wanted))
            x = old.mixer_norm(x + wanted)
            x = old.channel_norm(x + old.channel(x, None, ctx)[0])
        return pairs

    counts = data["mask"] & (data["weights"] > 0)[:, None]
    errors = []
    for pair in by_hand(teacher, student):
        mine, wanted = (np.asarray(x, np.float64)[counts] for x in pair)
        errors.append((((mine - wanted) ** 2).mean(axis=1) / (wanted.var(axis=1) + 1e-6)).mean())
    assert errors[0] == 0
    assert_close(steps(BERT, "hybrid", "align")[0][0], np.mean(errors), TOL.f32_forward)


def test_the_distance_between_classifiers_is_that_of_their_probabilities():
    teacher, student = models(VIT, "mlp_mixer")
    data = batch(VIT)
    logs = [np.asarray(jax.nn.log_softmax(model(data["inputs"])), np.float64)[:4] for model in (teacher, student)]
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean() / np.log(2)
    found, agreement = class_distance(student, teacher, [data])
    assert_close(found, kl, TOL.f32_forward)
    assert agreement == (logs[0].argmax(axis=1) == logs[1].argmax(axis=1)).mean()
