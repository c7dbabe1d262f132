"""From a Transformer to a student: what is copied, to the bit, and what is refused."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from effarch import registry
from effarch.config import UserError, load
from effarch.distill.transfer import StudentConfig, student_config, transfer
from effarch.hub.export import config_json
from effarch.mixers.sliding_window import SlidingWindow
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig, make_lm
from tests.models import tiny
from tests.tolerances import TOL, assert_close

T = 40
TEACHER = tiny.config("softmax_attention", layers=5, tie_embeddings=False, embed_norm=True)


def convert(student: StudentConfig):
    """``(teacher, student)`` after the transfer."""
    wanted = student_config(TEACHER, student)
    teacher = tiny.model(TEACHER)
    return teacher, jax.jit(lambda t: transfer(t, make_lm(wanted)), compiler_options=tiny.FAST)(teacher)


def hidden(lm):
    graph, params = nnx.split(lm)
    return tiny.hidden(graph, "chunkwise", (), params, tiny.tokens(2, T), None, jnp.ones((2, T), jnp.int32)).hidden


def bits(x, y) -> bool:
    return tiny.same_bits(nnx.split(x)[1], nnx.split(y)[1])


@pytest.mark.parametrize("name", registry.names("mixer"))
def test_head_layout_follows_the_teacher(name):
    cls = registry.get("mixer", name)
    if not cls.stands_in_for_attention:
        pytest.skip(f"{name}: stands_in_for_attention is False")
    attention = TEACHER.pattern[0].mixer
    mixer = cls().matching(attention)  # one that is not causal: in an encoder
    for field, value in {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "value_head_dim": 8}.items():
        assert getattr(mixer, field, value) == value
    if "rope_theta" in cls.model_fields:
        assert mixer.rope_theta == attention.rope_theta
    if cls.causal:
        student = student_config(TEACHER, StudentConfig(mixer=cls()))
        (block,) = student.pattern
        assert block.mixer == mixer and block.channel == TEACHER.pattern[0].channel
        assert student.replace(pattern=TEACHER.pattern) == TEACHER


def test_what_was_chosen_stays():
    mixer = registry.get("mixer", "gated_deltanet")(num_heads=8, conv_width=2)
    block = student_config(TEACHER, StudentConfig(mixer=mixer)).block(0)
    assert (block.mixer.num_heads, block.mixer.conv_width, block.mixer.head_dim) == (8, 2, 8)


def test_patterns():
    """3 to 1; and one whose length does not divide the teacher's."""
    hybrid = StudentConfig(mixer="retnet", pattern=("mixer", "mixer", "mixer", "teacher"))
    names = [block.mixer.type_name for block in student_config(TEACHER, hybrid).pattern]
    assert names == ["retnet", "retnet", "retnet", "softmax_attention"]
    mixed = TEACHER.replace(pattern=(tiny.block("softmax_attention"), tiny.block("sliding_window")))
    student = student_config(mixed, StudentConfig(mixer="retnet", pattern=("teacher", "mixer", "mixer")))
    names = [block.mixer.type_name for block in student.pattern]
    assert names == ["softmax_attention", "retnet", "retnet", "sliding_window", "retnet", "retnet"]


@pytest.mark.parametrize("name", ["gated_deltanet", "rwkv7"])
def test_everything_that_is_not_a_mixer_is_copied_to_the_bit(name):
    """In a hybrid the kept layers whole; the others take the teacher's values, and all but the mixer."""
    teacher, student = convert(StudentConfig(mixer=name, pattern=("mixer", "mixer", "mixer", "teacher")))
    for part in ("embedding", "embed_norm", "norm", "unembed"):
        assert bits(getattr(teacher, part), getattr(student, part))
    pairs = list(zip(teacher.stack.layers(), student.stack.layers(), strict=True))
    for i, (theirs, mine) in enumerate(pairs):
        for part in ("mixer_norm", "channel_norm", "channel"):
            assert bits(getattr(theirs, part), getattr(mine, part)), (i, part)
        if i == 3:
            assert bits(theirs.mixer, mine.mixer)
        else:
            assert type(mine.mixer) is not type(theirs.mixer)
            mine_v, theirs_v = mine.mixer.v.kernel[...], theirs.mixer.qkv.v.kernel[...]
            assert (mine_v == jnp.repeat(theirs_v, 2, axis=1)).all()  # 2 key heads serve 4 queries
    assert jnp.isfinite(hidden(student)).all()


def test_keeping_every_layer_is_the_teacher():
    teacher, student = convert(StudentConfig(mixer="gated_deltanet", pattern=("teacher",)))
    assert bits(teacher, student) and (hidden(student) == hidden(teacher)).all()


def test_a_window_as_long_as_the_text_is_the_teacher():
    teacher, student = convert(StudentConfig(mixer=SlidingWindow(window=T, sinks=2)))
    assert_close(hidden(student), hidden(teacher), TOL.f32_forward)
    _, short = convert(StudentConfig(mixer=SlidingWindow(window=8, sinks=2)))
    assert_close(hidden(short)[:, :8], hidden(teacher)[:, :8], TOL.f32_forward)
    assert (jnp.abs(hidden(short) - hidden(teacher))[:, 20:] > 1e-3).any()


def test_teacher_and_fresh_student_stay_as_they_are():
    """Transfer shares no array with either: a student that is trained in place leaves its teacher alone."""
    teacher = tiny.model(TEACHER)
    fresh = tiny.initialised(student_config(TEACHER, StudentConfig(mixer="rwkv7")))  # its first layer is not stacked
    before = jax.tree.map(jnp.copy, (nnx.split(teacher)[1], nnx.split(fresh)[1]))
    student = transfer(teacher, fresh)
    assert tiny.same_bits((nnx.split(teacher)[1], nnx.split(fresh)[1]), before)
    jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(nnx.split(student)[1])
    assert tiny.same_bits((nnx.split(teacher)[1], nnx.split(fresh)[1]), before)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="teacher: expected softmax attention in layer 0, got retnet"):
        student_config(tiny.config("retnet", layers=2), StudentConfig())
    with pytest.raises(UserError, match='unknown mixer "retnett"; did you mean "retnet"'):
        load(StudentConfig, None, ["mixer=retnett"])
    with pytest.raises(UserError, match="pattern"):
        load(StudentConfig, None, ["pattern=[mixer,techer]"])
    with pytest.raises(ValueError, match="num_heads: expected a multiple of the teacher's 4 heads, got 5"):
        convert(StudentConfig(mixer=registry.get("mixer", "gated_deltanet")(num_heads=5)))
    monkeypatch.setattr(registry.get("mixer", "retnet"), "stands_in_for_attention", False)
    with pytest.raises(ValueError, match="expected one that takes over attention's weights, got retnet"):
        student_config(TEACHER, StudentConfig(mixer="retnet"))


def test_keys_of_its_own_stay_as_they_are():
    """Rotary off, though the teacher has it; then other libraries can have the student, too."""
    block = BlockConfig(mixer=SoftmaxAttention(num_heads=2, num_kv_heads=2, head_dim=8), channel=SwiGLU(hidden=24))
    teacher = LMConfig(vocab_size=32, dim=16, num_layers=2, pattern=(block,))
    followed, free = (
        student_config(teacher, load(StudentConfig, None, ["mixer=gated_deltanet", *more]))
        for more in ((), ("own=[rope_theta]",))
    )
    assert config_json(followed)["model_type"] == "effarch" and config_json(free)["model_type"] == "gated_deltanet"
    followed, free = followed.block(0).mixer, free.block(0).mixer
    assert followed.rope_theta == block.mixer.rope_theta and free.rope_theta is None
    assert free == followed.replace(rope_theta=None)
    with pytest.raises(UserError, match=r"own: expected keys of gated_deltanet, got 'rope_teta'; did you mean"):
        load(StudentConfig, None, ["mixer=gated_deltanet", "own=[rope_teta]"])
