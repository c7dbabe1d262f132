"""configs/backbones: as many parameters as the published models have.

Counts come from the classes of transformers (again below, where it is installed) or flash-linear-attention, and for
RWKV-5 to 7 from the authors' formulas. Where experts are one dense layer here, theirs were built with dense layers too.
"""

import math
from functools import cache, partial
from pathlib import Path

import jax
import pytest

from effarch.config import load
from effarch.experiment.config import PretrainConfig
from effarch.models.lm import make_lm, parameter_count
from tests.test_configs import ROOT

FOLDER = ROOT / "configs" / "backbones"
COUNTS = {
    "based": None,  # the authors' name says 360M; no independent count
    "deltanet": 374_362_112,
    "gated_deltanet": 379_764_350,
    "gla": 374_475_776,
    "griffin": 2_682_862_080,
    "hgrn2": 373_916_672,
    "kimi_linear": 3_469_117_824,
    "mamba1": 129_135_360,
    "mamba2": 128_989_632,
    "minimax01": 48_387_577_856,
    "qwen3_next": 3_824_499_456,
    "retnet": 380_171_264,
    "rwkv4": 169_342_464,
    "rwkv5": 13 * 2048**2 * 24 + 14 * 2048 * 24 + 4 * 2048 + 2 * 2048 * 65536,
    "rwkv6": 13 * 2048**2 * 24 + 464 * 2048 * 24 + 4 * 2048 + 2 * 2048 * 65536,
    "rwkv7": 191_034_624,
    "samba": None,  # the authors' name says 421M; no independent count
    "xlstm": 6_865_424_896,
}
MIXER, CHANNEL = "model.pattern.0.mixer.", "model.pattern.0.channel."
WIDE = ["model.dim=2048", f"{CHANNEL}hidden=5632"]
SIZES = {  # other published sizes of the same config
    ("retnet", 1_351_727_104): [
        "model.dim=2048",
        f"{CHANNEL}hidden=2816",
        f"{MIXER}num_heads=8",
    ],
    ("gla", 1_365_514_240): [*WIDE, f"{MIXER}head_dim=256", f"{MIXER}value_head_dim=512"],
    ("deltanet", 1_365_677_056): [*WIDE, f"{MIXER}num_heads=16"],
    ("hgrn2", 1_364_396_032): [*WIDE, f"{MIXER}num_heads=16"],
    ("gated_deltanet", 1_387_348_732): [*WIDE, f"{MIXER}num_heads=6"],
    ("gated_deltanet", 512_272_124): [f"{MIXER}num_heads=6"],
    ("mamba1", 371_516_416): ["model.dim=1024", "model.num_layers=48"],
    ("mamba2", 368_346_624): ["model.dim=1024", "model.num_layers=48", f"{MIXER}num_heads=32"],
    ("mamba2", 1_371_839_488): [
        "model.vocab_size=32000",
        "model.dim=2048",
        "model.num_layers=48",
        "model.tie_embeddings=false",
        f"{MIXER}num_heads=64",
    ],
    ("rwkv7", 167_638_272): ["model.vocab_size=50304"],
    ("rwkv7", 450_767_872): [
        "model.dim=1024",
        "model.num_layers=24",
        f"{MIXER}num_heads=16",
        f"{CHANNEL}hidden=4096",
    ],
    ("rwkv7", 1_527_404_544): [
        "model.dim=2048",
        "model.num_layers=24",
        f"{MIXER}num_heads=32",
        f"{CHANNEL}hidden=8192",
        *(f"{MIXER}rank_{name}={rank}" for name, rank in (("w", 96), ("a", 96), ("v", 64), ("g", 256))),
    ],
}


@cache
def parameters(name: str, *overrides: str) -> int:
    config = load(PretrainConfig, FOLDER / f"{name}.yaml", overrides)
    return parameter_count(jax.eval_shape(partial(make_lm, config.model)))


def test_all_are_counted():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_published_model(name):
    """And those that the file's header tells."""
    header = " ".join(Path(FOLDER / f"{name}.yaml").read_text().split("run_name")[0].replace("#", " ").split())
    assert f": {parameters(name):,} parameters" in header
    if COUNTS[name] is not None:
        assert parameters(name) == COUNTS[name]


@pytest.mark.parametrize(("name", "count"), SIZES)
def test_other_sizes(name, count):
    assert parameters(name, *SIZES[name, count]) == count


def theirs() -> dict:
    """Configs of transformers for the same models; the experts of some are a dense layer, or one expert."""
    import transformers as t

    kimi = ["full_attention" if i in (4, 8, 12, 16, 20, 24, 27) else "linear_attention" for i in range(1, 28)]
    return {
        "griffin": t.RecurrentGemmaConfig(intermediate_size=15360, num_key_value_heads=1),
        "kimi_linear": t.KimiLinearConfig(layer_types=kimi, mlp_layer_types=["dense"] * 27),
        "mamba1": t.MambaConfig(num_hidden_layers=24),
        "mamba2": t.Mamba2Config(
            vocab_size=50288, hidden_size=768, num_hidden_layers=24, num_heads=24, n_groups=1, tie_word_embeddings=True
        ),
        "minimax01": t.MiniMaxConfig(
            vocab_size=200064,
            hidden_size=6144,
            intermediate_size=2 * 9216,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=128,
            num_local_experts=1,
            num_experts_per_tok=1,
            layer_types=[*["linear_attention"] * 7, "full_attention"] * 10,
        ),
        "qwen3_next": t.Qwen3NextConfig(mlp_only_layers=list(range(48))),
        "rwkv4": t.RwkvConfig(vocab_size=50277, hidden_size=768, num_hidden_layers=12),
        "xlstm": t.xLSTMConfig(),
    }


@pytest.mark.oracle
def test_transformers_counts_as_many():
    pytest.importorskip("transformers", reason="needs the extra `oracles`")
    torch = pytest.importorskip("torch", reason="needs the extra `oracles`")
    from transformers import AutoModelForCausalLM

    for name, config in ((n, c) for n, c in theirs().items() if n in COUNTS):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        shapes = {key: p.shape for key, p in model.named_parameters() if not key.endswith("mlp.gate.weight")}
        assert sum(map(math.prod, shapes.values())) == COUNTS[name], name
