"""Checkpoints of every Transformer family give transformers' logits, however they are written and the text is cut."""

import json
from functools import lru_cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.config import UserError
from effarch.hub import load_lm, read_lm_config, write_checkpoint
from effarch.hub.export import config_json
from effarch.hub.families import family
from effarch.hub.parameters import names_of, written
from tests.hub import families
from tests.tolerances import TOL, assert_close

FAST = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on
cases = pytest.mark.parametrize("name", list(families.CASES))
DECODED = ("gemma3", "gpt2")  # in the default suite
AGAIN = ("llama_linear", "llama_dynamic", "gpt_neox_serial")  # of families that are there once already


def but(slow):
    """All cases, these marked."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in families.CASES]


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def whole(graph, params, tokens):
    return nnx.merge(graph, params)(tokens)[0]


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def in_pieces(graph, params, tokens):
    """Logits of a text of which the first piece is prefilled, and of the rest one token at a time."""
    lm = nnx.merge(graph, params)
    first, state = lm(tokens[:, : families.FIRST], lm.init_state(*tokens.shape))

    def step(state, token):
        logits, state = lm(token[:, None], state, form="recurrent")
        return state, logits[:, 0]

    _, rest = jax.lax.scan(step, state, tokens[:, families.FIRST :].T)
    return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)


def write(folder, config, shapes, **options):
    """A checkpoint with the drawn weights."""
    return write_checkpoint(folder, config, ((n, families.draw(n, s)) for n, s in shapes.items()), **options)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Graph and parameters of a case, read from a folder."""

    @lru_cache
    def load(name):
        folder = tmp_path_factory.mktemp(name) / "checkpoint"
        return nnx.split(load_lm(write(folder, families.CASES[name], families.stored(name)[0])))

    return load


@pytest.mark.parametrize("name", but(AGAIN))
def test_logits_are_those_of_transformers(name, loaded):
    assert_close(whole(*loaded(name), families.tokens(name)), families.stored(name)[1], TOL.f32_forward)


@pytest.mark.parametrize("name", but(set(families.CASES) - set(DECODED)))
def test_decoding_gives_them_too(name, loaded):
    found, expected = in_pieces(*loaded(name), families.tokens(name)), families.stored(name)[1]
    if name in ("llama_dynamic", "phi3"):  # what depends on how far a call reaches is compared with transformers below
        length = families.FIRST
        found, expected = found[:, :length], whole(*loaded(name), families.tokens(name)[:, :length])
    assert_close(found, expected, TOL.f32_forward)


@pytest.mark.parametrize("name", families.OLDER)
def test_older_spellings_say_the_same(name, tmp_path):
    for number, config in enumerate((families.CASES[name], families.older(name))):
        write_checkpoint(tmp_path / str(number), config, [])
    assert read_lm_config(tmp_path / "0") == read_lm_config(tmp_path / "1")


def paths(said, below=()):
    """Every value of a config that is not its name or a default."""
    for key, value in said.items():
        if isinstance(value, dict):
            yield from paths(value, (*below, key))
        elif key != "model_type" and value != "default":
            yield (*below, key)


@cases
def test_every_field_is_honoured(name, tmp_path):
    """Without any one of them the model is another, or none."""
    said = families.CASES[name]
    (tmp_path / "config.json").write_text(json.dumps(said))
    config = read_lm_config(tmp_path)
    for path in paths(said):
        less = json.loads(json.dumps(said))
        reduce(dict.get, path[:-1], less).pop(path[-1])
        (tmp_path / "config.json").write_text(json.dumps(less))
        try:
            other = read_lm_config(tmp_path)
        except UserError:
            continue
        assert other != config, f"{'.'.join(path)} says nothing"


def test_a_language_model_inside_one_of_images(tmp_path):
    """Gemma 3: its fields and tensors lie deeper."""
    said, (shapes, _) = families.CASES["gemma3"], families.stored("gemma3")
    outer = {"model_type": "gemma3", "text_config": said, "vision_config": {}, "mm_tokens_per_image": 4}
    tensors = {name: families.draw(name, shape) for name, shape in shapes.items()}
    for prefix in ("language_model.model.", "model.language_model."):
        deeper = {name.replace("model.", prefix, 1): x for name, x in tensors.items()}
        images = {"vision_tower.some.weight": np.zeros((2, 3), np.float32)}
        write_checkpoint(tmp_path / prefix, outer, (deeper | images).items())
        write_checkpoint(tmp_path / f"alone {prefix}", said, tensors.items())
        found, alone = load_lm(tmp_path / prefix), load_lm(tmp_path / f"alone {prefix}")
        assert found.config == alone.config
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


ODD = (None, True, False, 0, -1, 3, 10**6, 10**400, 0.0, -2.5, 1e300, float("inf"), float("nan"), "", "7", [], [1], {})


@cases
def test_any_other_value_is_read_or_refused_in_one_line(name, tmp_path):
    """Whatever stands in a field."""
    said, rng = families.CASES[name], np.random.default_rng(3)
    for path in paths(said):
        for _ in range(3):
            spoilt = json.loads(json.dumps(said))
            reduce(dict.get, path[:-1], spoilt)[path[-1]] = ODD[rng.integers(len(ODD))]
            (tmp_path / "config.json").write_text(json.dumps(spoilt))
            try:
                read_lm_config(tmp_path)
            except UserError as error:
                assert len(error.lines) == 1 and "\n" not in error.lines[0]


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("llama", {"rope_theta": 7.0}, "rope_theta 7.0 contradicts rope_parameters.rope_theta 500.0"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor 2.0 contradicts rope_parameters.factor 5.0"),
        ("llama", {"rope_parameters": {"rope_type": "mrope"}}, "rope_type: expected one of default, linear, .*'mrope'"),
        ("llama", {"rope_parameters": {**families.LLAMA3, "mscale": 1.0}}, "unknown field mscale"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor is missing"),
        ("llama", {"partial_rotary_factor": 0.5}, "unknown field partial_rotary_factor"),
        ("llama", {"quantization_config": {"bits": 4}}, "unknown field quantization_config"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types: expected 4 of full_attention, sliding_attention"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4, "use_sliding_window": False}, "sliding_window: expec"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected False, got True"),
        ("gemma2", {"sliding_window": None}, "sliding_window: expected a whole number"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected None, got 50.0"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function: expected 'gelu_new' or .*, got 'tanh'"),
        ("gpt2", {"n_head": 5}, "n_head"),
        ("gpt_neox", {"num_attention_heads": 5}, "num_attention_heads"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "short_factor is missing"),
    ],
)
def test_what_we_cannot_honour_is_refused(name, change, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(families.CASES[name] | change))
    with pytest.raises(UserError, match=expected) as error:
        read_lm_config(tmp_path)
    assert len(error.value.lines) == 1


@pytest.mark.parametrize("name", but(AGAIN))
def test_what_was_read_is_written_to_the_bit(name, loaded):
    """Every tensor, and the fields where the family can be written."""
    said, (shapes, _) = families.CASES[name], families.stored(name)
    lm, found = nnx.merge(*loaded(name)), family(said["model_type"], "")
    tensors = dict(written(lm, found.rules(lm.config, names_of(lm))))
    assert tensors.keys() == shapes.keys()
    for key, x in tensors.items():
        np.testing.assert_array_equal(x, families.draw(key, shapes[key]), strict=True)
    if hasattr(found, "export"):
        assert config_json(lm.config, "transformers")["model_type"] == said["model_type"]


@pytest.mark.oracle
@pytest.mark.slow
@cases
@pytest.mark.parametrize("file", ["single", "sharded bf16"])
def test_what_transformers_writes_is_read(name, file, tmp_path):
    """transformers' own folder: logits of a text whole, and of one in two pieces and then token by token."""
    torch = pytest.importorskip("torch", reason="needs the extra `oracles`")
    pytest.importorskip("transformers", reason="needs the extra `oracles`")
    model = families.torch_model(families.CASES[name])
    if file == "sharded bf16":
        model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
        model = families.torch_model(families.CASES[name])  # its frequencies stay as they are
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    else:
        shapes, logits = families.make(name)
        assert shapes == families.stored(name)[0]
        assert_close(logits, families.stored(name)[1], TOL.f32_forward)
        model.save_pretrained(tmp_path)
    graph, params = nnx.split(load_lm(tmp_path, dtype="float32", param_dtype="float32"))
    ids = families.tokens(name)
    pieces = (families.FIRST, *[1] * (families.TIME - families.FIRST))
    assert_close(in_pieces(graph, params, ids), families.torch_logits(model, ids, pieces), TOL.f32_forward)
    if file == "single":
        model = families.torch_model(families.CASES[name])  # scalings remember how far they were asked to reach
        assert_close(whole(graph, params, ids), families.torch_logits(model, ids), TOL.f32_forward)
