"""BERT, RoBERTa and ViT checkpoints give transformers' hidden states and logits."""

import json
from functools import lru_cache, partial

import jax
import numpy as np
import pytest
from flax import nnx

from effarch import cli
from effarch.config import UserError
from effarch.hub import export_encoder, load_encoder, load_lm, read_encoder_config, write_checkpoint
from effarch.hub.families import encoder_family
from effarch.hub.parameters import names_of, written
from effarch.models.classifier import Classifier
from effarch.models.masked_lm import MaskedLM
from tests.hub import encoders
from tests.models.tiny import same_bits
from tests.tolerances import TOL, assert_close

FAST = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on
CASES = list(encoders.CASES)
DEFAULT = ("bert_masked", "roberta_classes", "vit")
cases = pytest.mark.parametrize("name", CASES)


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def answers(graph, params, asked):
    """The input of every layer, the last hidden states, and what stands on them."""
    model = nnx.merge(graph, params)
    out = model.hidden(**asked, taps=("block_in",))
    if isinstance(model, MaskedLM):
        output = model.head(model.transformed(out.hidden))
    else:
        output = model.pool(out.hidden, asked.get("mask"))
        output = model.head(output) if isinstance(model, Classifier) else output
    return {"layers": out.taps["block_in"], "hidden": out.hidden, "output": output}


def write(folder, name, tensors=None, **change):
    """A checkpoint of a case, some of it changed."""
    tensors = encoders.drawn(encoders.stored(name)[0]) if tensors is None else tensors
    return write_checkpoint(folder, {**encoders.CASES[name], **change}, tensors.items())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Graph and parameters of a case, read from a folder."""

    @lru_cache
    def load(name):
        return nnx.split(load_encoder(write(tmp_path_factory.mktemp(name) / "checkpoint", name)))

    return load


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_they_give_the_answers_of_transformers(name, loaded):
    """Of every token that is not padding, at every layer; and the heads or the pooler on top."""
    asked, expected = encoders.inputs(name), encoders.stored(name)[1]
    found = answers(*loaded(name), asked)
    for key, value in expected.items():
        mine = np.asarray(found[key])
        real = asked["mask"][..., None] if "mask" in asked and value.ndim > 2 else 1
        assert np.linalg.norm(value * real) > 1
        assert_close(mine * real, value * real, TOL.f32_forward, key)


@cases
def test_it_goes_out_in_our_format_to_the_bit(name, loaded, tmp_path):
    graph, variables = loaded(name)
    model = nnx.merge(graph, variables)
    assert export_encoder(tmp_path / "out", model, card="# Card") == "effarch_encoder"
    back = load_encoder(tmp_path / "out")
    assert type(back) is type(model) and back.config == model.config
    assert same_bits(nnx.split(back)[1], variables)
    assert (tmp_path / "out" / "README.md").read_text() == "# Card"


def test_it_is_converted_by_the_command(tmp_path, capsys):
    folder = write(tmp_path / "bert", "bert_masked")
    assert cli.run(["convert", str(folder), str(tmp_path / "out")]) == 0
    assert "effarch_encoder" in capsys.readouterr().out
    pair = [nnx.split(load_encoder(path))[1] for path in (folder, tmp_path / "out")]
    assert same_bits(*pair)
    assert cli.run(["convert", str(folder), str(tmp_path / "no"), "format=fla"]) == 2
    assert "format: expected auto or effarch, for encoders" in capsys.readouterr().err


def test_padding_on_the_left_is_padding_on_the_right(loaded):
    """Positions are counted from the first token, and the head reads it."""
    asked = encoders.inputs("roberta_classes")
    shift = [encoders.TIME - length for length in encoders.LENGTHS]
    left = {k: np.stack([np.roll(row, n) for row, n in zip(x, shift, strict=True)]) for k, x in asked.items()}
    one, two = (answers(*loaded("roberta_classes"), batch) for batch in (asked, left))
    assert_close(two["output"], one["output"], TOL.f32_forward)


@cases
def test_every_field_is_honoured(name, tmp_path):
    """Without any one of them the model is another, or none."""
    said, tensors = encoders.CASES[name], encoders.drawn(encoders.stored(name)[0])
    (tmp_path / "whole").mkdir()
    config = read_encoder_config(write(tmp_path / "whole" / "x", name, tensors))
    for field in said.keys() - {"model_type", "pad_token_id"}:
        less = write(tmp_path / field, name, tensors)
        (less / "config.json").write_text(json.dumps({key: value for key, value in said.items() if key != field}))
        try:
            other = read_encoder_config(less)
        except UserError:
            continue
        bare = field == "architectures" and said[field][0].endswith("Model")  # it is one without a name too
        assert (other == config) == bare, f"{field} says nothing"


@cases
def test_what_was_read_is_written_to_the_bit(name, loaded):
    model, shapes = nnx.merge(*loaded(name)), encoders.stored(name)[0]
    found = encoder_family(encoders.CASES[name]["model_type"], "")
    tensors, known = dict(written(model, found.rules(model.config, names_of(model)))), found.renamed(list(shapes))
    assert tensors.keys() == set(known.values())
    for key, shape in shapes.items():
        x, expected = tensors[known[key]], encoders.draw(key, shape)
        first = 2 if key == "roberta.embeddings.position_embeddings.weight" else 0  # rows that no token reads
        np.testing.assert_array_equal(x[first:], expected[first:], strict=True)


def test_files_as_they_are_on_the_hub(tmp_path, loaded):
    """BERT's own file: of pretraining, norms with gamma and beta, the table once more, heads that are not asked for."""
    tensors = encoders.drawn(encoders.stored("bert_masked")[0])
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x for k, x in tensors.items()}
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old |= {"bert.pooler.dense.weight": np.zeros((32, 32)), "cls.seq_relationship.weight": np.zeros((2, 32))}
    old["bert.embeddings.position_ids"] = np.arange(14)[None]
    model = load_encoder(write(tmp_path / "old", "bert_masked", old, architectures=["BertForPreTraining"]))
    for mine, theirs in zip(
        jax.tree.leaves(nnx.split(model)[1]), jax.tree.leaves(loaded("bert_masked")[1]), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    old["cls.predictions.decoder.weight"] = old["cls.predictions.decoder.weight"] + 1
    with pytest.raises(UserError, match=r"expected cls.predictions.decoder.weight to be the copy of bert.embeddings"):
        load_encoder(write(tmp_path / "other", "bert_masked", old, architectures=["BertForPreTraining"]))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "bert",
            {"architectures": ["BertForQuestionAnswering"]},
            "architectures: expected one that ends in Model, For",
        ),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type: expected 'absolute', got 'rel"),
        ("bert", {"is_decoder": True}, "is_decoder: expected False, got True"),
        ("bert", {"hidden_act": "silu"}, "hidden_act: expected 'gelu' or .*, got 'silu'"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads .n_head.: expected a divisor of the width 32, got 5"),
        ("bert", {"embedding_size": 16}, "unknown field embedding_size = 16"),
        (
            "bert",
            {"model_type": "brt"},
            r"expected an encoder \(bert, effarch_encoder, roberta, vit\), got 'brt'; did you mean \"bert\"",
        ),
        ("bert", {"vocab_size": 49}, r"word_embeddings.weight: expected shape \[49, 32\], got \[48, 32\]"),
        ("bert_masked", {"tie_word_embeddings": False}, "tie_word_embeddings: expected True, got False"),
        ("bert_classes", {"id2label": {"0": "score"}}, "id2label: expected at least 2 classes, got 1"),
        ("roberta_masked", {"pad_token_id": 0}, "pad_token_id: expected 1, got 0"),
        ("roberta_masked", {"max_position_embeddings": 2}, "max_position_embeddings: expected at least 3, got 2"),
        ("vit", {"patch_size": [4, 2]}, "patch_size: expected squares, got 4 x 2"),
        ("vit", {"patch_size": 5}, "patch: expected a divisor of 8 and 12, got 5"),
        ("vit", {"image_size": [8, 12, 3]}, "image_size: expected one or two whole numbers above 0"),
        ("vit", {"pooler_act": "relu"}, "pooler_act: expected 'tanh', got 'relu'"),
        ("vit", {"pooler_output_size": 8}, "pooler_output_size: expected None or 32, got 8"),
    ],
)
def test_what_we_cannot_honour_is_refused(name, change, expected, tmp_path):
    with pytest.raises(UserError, match=expected) as error:
        load_encoder(write(tmp_path / "checkpoint", name, **change))
    assert len(error.value.lines) == 1


def test_an_encoder_is_no_language_model(tmp_path):
    with pytest.raises(UserError, match="bert is an encoder: effarch.hub.load_encoder reads it"):
        load_lm(write(tmp_path / "checkpoint", "bert"))


@pytest.mark.oracle
@pytest.mark.slow
@cases
def test_transformers_still_says_so(name):
    pytest.importorskip("torch", reason="needs the extra `oracles`")
    pytest.importorskip("transformers", reason="needs the extra `oracles`")
    shapes, found = encoders.make(name)
    expected = encoders.stored(name)
    assert shapes == expected[0] and found.keys() == expected[1].keys()
    for key, value in found.items():
        assert_close(value, expected[1][key], TOL.f32_forward, key)
