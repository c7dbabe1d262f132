"""Trains a masked language model: ``python -m train.pretrain_masked CONFIG.yaml [key=value ...]``.

Repeating the command continues a run that was stopped. Exit codes as ``train.pretrain``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import pydantic
from flax import nnx

from effarch.config import Config, UserError, main
from effarch.data.batches import Batches
from effarch.data.masking import Masking, MaskingConfig
from effarch.data.prepare import DataConfig, Prepared, prepare
from effarch.data.recall import RecallConfig
from effarch.distill.masked import hidden_tokens, hiding
from effarch.eval.masked import masked_scores
from effarch.eval.scores import Batch
from effarch.eval.suite import first_batches
from effarch.experiment.abstractly import abstractly
from effarch.experiment.config import TextConfig
from effarch.hub.export import export_run
from effarch.mixers.encoder_attention import EncoderAttention
from effarch.mixers.gelu_mlp import GeluMLP
from effarch.models.block import BlockConfig
from effarch.models.inputs import Ids
from effarch.models.lm import parameter_count
from effarch.models.masked_lm import MaskedLM, MaskedLMConfig, make_masked_lm
from effarch.parallel.processes import first_before_others, of_this_process, on_first
from effarch.training.faults import StopSignal
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.phase import Phase
from train.alone import attended, train_alone
from train.loop import metadata

_BLOCK = BlockConfig(mixer=EncoderAttention(), channel=GeluMLP(approximate=False))
BERT = MaskedLMConfig(
    input=Ids(vocab_size=259, length=512, token_types=2),
    pattern=(_BLOCK,),
    norm_after=True,
    embed_norm=True,
    positions="learned",
    pool="first",
    norm_eps=1e-12,
)


class MaskedEvalConfig(Config):
    """Evaluation on held-out rows."""

    every: int = pydantic.Field(0, ge=0, description="steps between evaluations while training; 0: none")
    rows: int = pydantic.Field(64, gt=0, description="rows of validation text")


class MaskedConfig(TextConfig):
    """What every run of a masked language model has."""

    data: DataConfig = DataConfig(recall=RecallConfig(fraction=0.0, eval_rows=0))
    masking: MaskingConfig = MaskingConfig()
    eval: MaskedEvalConfig = MaskedEvalConfig()

    def validation(self, prepared: Prepared) -> Iterator[Batch]:
        """The first rows of validation text, in batches."""
        return first_batches(prepared.validation, self.eval.rows, self.batch_size)


class PretrainMaskedConfig(MaskedConfig):
    """The pretraining of a masked language model."""

    steps: int = pydantic.Field(1000, gt=0, description="updates")
    model: MaskedLMConfig = BERT
    optimizer: OptimizerConfig = OptimizerConfig()

    @pydantic.model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.seq_len > (length := self.model.input.tokens):
            raise ValueError(f"seq_len: expected at most model.input.length, {length}, got {self.seq_len}")
        return self


def masking_for(config: MaskedConfig, prepared: Prepared, model: MaskedLMConfig) -> Masking:
    """What is hidden. Raises ``UserError`` where the model has no row for the mask token."""
    masking = Masking.of(config.masking, prepared.tokenizer)
    if (rows := model.vocab_size) < masking.rows:
        raise UserError(f"input.vocab_size: expected at least {masking.rows}, with the mask token, got {rows}")
    return masking


def pretrain_masked(
    config: PretrainMaskedConfig, prepared: Prepared, *, stop: StopSignal, name: str = "train"
) -> MaskedLM:
    """Trains, or continues to train, the model of a run; one that is finished is only read back."""
    masking = masking_for(config, prepared, config.model)

    def make() -> MaskedLM:
        return make_masked_lm(config.model, config.seed)

    graph = nnx.split(jax.eval_shape(make), nnx.Param, ...)[0]
    tx, schedule = make_optimizer(config.optimizer, config.steps)

    def evaluate(params: Any, rest: Any) -> dict[str, float]:
        model = nnx.merge(graph, params, rest)
        found = masked_scores(model, config.validation(prepared), masking)
        return {"masked_bits": found.bits_per_token, "masked_accuracy": found.accuracy}

    loss, every = hiding(masking, hidden_tokens(graph)), config.eval.every
    phase = Phase(name, 0, config.steps, loss, tx, schedule, evaluate=evaluate, evaluate_every=every)
    state = train_alone(
        config,
        phase,
        make,
        batches=Batches(prepared.train, config.batch_size, config.seed),
        about=metadata(config, config.model, kind="masked_lm", tokenizer=prepared.tokenizer.about()),
        stop=stop,
        begin=prepared.tokenizer.save,
    )
    return nnx.merge(graph, state.params, state.rest)


def run(config: PretrainMaskedConfig, dry_run: bool = False) -> int:
    """The command."""
    model = abstractly(lambda: make_masked_lm(config.model, config.seed))
    if dry_run:
        print(f"{parameter_count(model):,} parameters; nothing was written")
        return 0
    folder = Path(config.output_dir) / config.run_name

    def work(stop: StopSignal) -> None:
        prepared = first_before_others(lambda: prepare(config.data, config.seq_len, config.cache_dir))
        masking = masking_for(config, prepared, config.model)
        model = of_this_process(pretrain_masked(config, prepared, stop=stop))

        def finish() -> None:
            found = masked_scores(model, config.validation(prepared), masking)
            export_run(folder, model)
            print(f"{folder}: {found.accuracy:.1%} of hidden tokens found, {found.bits_per_token:.3f} bits per token")

        on_first(finish)

    return attended(work, config.processes)


if __name__ == "__main__":
    command = "python -m train.pretrain_masked"
    sys.exit(main(PretrainMaskedConfig, run, prog=command, description="Trains a masked language model."))
