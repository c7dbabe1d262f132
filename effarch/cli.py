"""``effarch list | bench | plan | ...``: one grammar for every verb. Heavy imports stay in their verb."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pydantic

from effarch.config import Config, UserError, did_you_mean, main

if TYPE_CHECKING:
    from effarch.mixers.base import MixerConfig


#: Schema (or what tells it from the path of a file), function, positionals.
Verb = tuple[type[Config] | Callable[[str | None], type[Config]], Callable[..., int], str | tuple[str, ...]]


class ListConfig(Config):
    """What to list, and the model that state sizes are for."""

    kind: Literal["all", "mixer", "channel"] = pydantic.Field("all", description="mixers, channel mixers, or both")
    dim: int = pydantic.Field(1024, gt=0, multiple_of=64, description="width of the model; heads are 64 wide")
    dtype: Literal["float32", "bfloat16"] = pydantic.Field(
        "float32", description="of activations, and so of caches; sums and recurrent states are float32 in any case"
    )


class GenerateConfig(Config):
    """What to generate from, and how."""

    run: str = pydantic.Field(description="folder of a run, or of a checkpoint of the Hugging Face hub")
    prompt: str = pydantic.Field("def ", description="text to continue")
    max_new_tokens: int = pydantic.Field(200, gt=0, description="tokens to add at most")
    temperature: float = pydantic.Field(0.8, ge=0, description="0 takes the most likely token")
    top_k: int | None = pydantic.Field(None, gt=0, description="keep the k most likely tokens; null: all")
    top_p: float | None = pydantic.Field(
        None, gt=0, le=1, description="keep the likeliest tokens of this mass; null: all"
    )
    seed: int = pydantic.Field(0, ge=0, description="of the draws")


def described(name: str, cls: "type[MixerConfig]", dim: int, dtype: str) -> dict[str, Any]:
    """A row of ``effarch list``, by its columns; None for what a mixer does not have.

    ``state at 1k`` and ``1M``: bytes of one row in one layer, as the mixer's default config would stand in for softmax
    attention of ``dim / 64`` heads of 64.
    """
    from effarch.mixers.softmax_attention import SoftmaxAttention

    matched = cls().matching(SoftmaxAttention(num_heads=dim // 64, num_kv_heads=dim // 64, head_dim=64))
    flags = ("causal", "recurrent", "fixed_length", "context_parallel")
    return {
        "name": name,
        "transition": cls.transition or None,
        "flags": " ".join(flag for flag in flags if getattr(cls, flag)) or None,
        "forms": " ".join(cls.forms),
        "state at 1k": (matched.state_bytes(dim, 1024, dtype) or None) if cls.causal else None,
        "state at 1M": (matched.state_bytes(dim, 2**20, dtype) or None) if cls.causal else None,
        "paper": cls.paper or None,
    }


def list_mixers(config: ListConfig) -> int:
    """``effarch list``: every registered mixer, and below them the channel mixers."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch import registry
    from effarch.eval.table import Column, Table, size
    from effarch.mixers.base import MixerConfig

    columns = {
        "mixer": ("transition", "flags", "forms", "state at 1k", "state at 1M", "paper"),
        "channel": ("flags", "state at 1k", "paper"),
    }
    for kind in columns if config.kind == "all" else (config.kind,):
        known = cast(dict[str, type[MixerConfig]], registry.configs(kind))
        rows = tuple(described(name, cls, config.dim, config.dtype) for name, cls in known.items())
        shown = [
            Column(c, c, format=size) if c.startswith("state") else Column(c, c, align="left") for c in columns[kind]
        ]
        print(Table((Column("name", kind), *shown), rows).plain(), end="\n\n")
    print(
        f"State: what a layer carries from token to token for one row; width {config.dim}, {config.dtype}, the defaults"
        f" of each mixer\nwith the {config.dim // 64} heads of 64 of the softmax attention that it would replace."
        " -: it carries none, or sees whole rows."
    )
    return 0


def generate(config: GenerateConfig) -> int:
    """``effarch generate RUN``: continues a prompt with the model of a run or of a checkpoint."""
    from effarch import hub
    from effarch.data.token_file import load_tokenizer
    from effarch.models.generate import Sampling
    from effarch.models.generate import generate as continue_prompts
    from effarch.training.load import load_lm

    lm = hub.load_lm(config.run) if Path(config.run, "config.json").is_file() else load_lm(config.run)
    tokenizer = load_tokenizer(config.run)
    prompt = [int(i) for i in tokenizer.encode(config.prompt, bos=True)]
    if not prompt:
        raise UserError("prompt: expected some text, the tokenizer has no token that begins one")
    sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    (new,) = continue_prompts(
        lm,
        [prompt],
        max_new_tokens=config.max_new_tokens,
        sampling=sampling,
        stop_tokens=tokenizer.stop_tokens,
        seed=config.seed,
    )
    print(config.prompt + tokenizer.continuation(prompt, new))
    return 0


def bench() -> Verb:
    """``effarch bench``, whose config names mixers."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch.bench.command import bench as measure
    from effarch.bench.config import BenchConfig

    return BenchConfig, measure, ()


def bench_compare() -> Verb:
    """``effarch bench compare BEFORE AFTER``."""
    from effarch.bench.compare import CompareConfig, compare

    return CompareConfig, compare, ("before", "after")


def plan() -> Verb:
    """``effarch plan CONFIG target=v5e:4x4``."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch.plan.command import command
    from effarch.plan.config import schema_of

    return schema_of, command, "config"


def plan_compare() -> Verb:
    """``effarch plan compare FILE``."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch.plan.compare import CompareConfig, compare

    return CompareConfig, compare, "config"


def convert() -> Verb:
    """``effarch convert SOURCE TARGET``."""
    from effarch.hub.convert import ConvertConfig
    from effarch.hub.convert import convert as write

    return ConvertConfig, write, ("source", "target")


def select_layers() -> Verb:
    """``effarch select-layers RUN keep=N``."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch.eval.select_layers import SelectConfig, select

    return SelectConfig, select, ("run",)


def evaluate() -> Verb:
    """``effarch evaluate RUN``."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch.bench.evaluate import EvaluateConfig, evaluate

    return EvaluateConfig, evaluate, ("run",)


VERBS: dict[str, tuple[Callable[[], Verb], str]] = {
    "list": (
        lambda: (ListConfig, list_mixers, ()),
        "Lists every registered mixer, and the state it carries in a model of some width.",
    ),
    "bench": (bench, "Measures time and memory of ops, mixers, blocks and models over the length."),
    "bench compare": (bench_compare, "Compares two reports of effarch bench; exit code 1 where something regressed."),
    "plan": (plan, "Compiles the steps of a run for TPUs or GPUs that are not here: what fits, what they would take."),
    "plan compare": (plan_compare, "Plans several runs on several targets: one table."),
    "convert": (convert, "Writes the model of a run or of a checkpoint as a folder that others can load."),
    "select-layers": (
        select_layers,
        "Ranks the layers of a distilled student by what the teacher's attention would bring back there.",
    ),
    "evaluate": (
        evaluate,
        "Scores the model of a run or of a checkpoint: text, recall, decoding.",
    ),
    "generate": (lambda: (GenerateConfig, generate, ("run",)), "Continues a prompt with the model of a run."),
}


def run(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: effarch VERB [key=value ...]\n")
        print("\n".join(f"  {name:15}{description}" for name, (_, description) in VERBS.items()))
        return 0 if words else 2
    if words[0] not in VERBS:
        print(f'error: unknown verb "{words[0]}"{did_you_mean(words[0], VERBS)}', file=sys.stderr)
        return 2
    length = 2 if " ".join(words[:2]) in VERBS else 1
    verb = " ".join(words[:length])
    parts, description = VERBS[verb]
    schema, function, positionals = parts()
    return main(
        schema,
        function,
        argv=words[length:],
        prog=f"effarch {verb}",
        description=description,
        positional=positionals,
        required=bool(positionals),
    )


if __name__ == "__main__":
    sys.exit(run())
