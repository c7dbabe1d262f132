"""What ``effarch bench`` takes, and what it measures then."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pydantic
import yaml

from effarch.bench.ops import BASELINES, OPS
from effarch.bench.peers import peers_of
from effarch.bench.presets import PRESETS
from effarch.bench.subject import DType, Level, Mode, Subject
from effarch.bench.targets import TARGETS
from effarch.config import Config, UserError, did_you_mean
from effarch.config.yaml import read
from effarch.mixers.base import MixerChoice, MixerConfig
from effarch.mixers.sliding_window import SlidingWindow
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.models.lm import LMConfig
from effarch.registry import configs


class BenchConfig(Config):
    """What to measure, at which sizes, within which limits. A preset says what the other keys are by default."""

    preset: Literal["quick", "paper", "long"] | None = pydantic.Field(
        None, description="quick: a first look in two minutes; paper: published shapes; long: lengths up to 1M"
    )
    levels: tuple[Level, ...] = pydantic.Field((), description="what to measure; empty: what the other keys name")
    modes: tuple[Mode, ...] = pydantic.Field(
        ("training",), description="training (forward and backward), prefill (forward), decode (context already read)"
    )
    ops: tuple[str, ...] = pydantic.Field((), description=f"any of {', '.join(OPS)}; empty: all")
    mixers: tuple[MixerChoice, ...] = pydantic.Field(
        (), description="names, or mappings with keys of the mixer; empty: all whose length is not fixed"
    )
    model: str | None = pydantic.Field(
        None,
        description="YAML file with a language model; measured as it is, and with each of the mixers in it",
    )
    lengths: tuple[int, ...] = pydantic.Field((8192, 16384, 32768, 65536), min_length=1, description="tokens T")
    dim: int = pydantic.Field(128, gt=0, multiple_of=64, description="width of mixers and blocks; heads are 64 wide")
    heads: int = pydantic.Field(8, gt=0, description="of ops")
    head_dim: int = pydantic.Field(64, gt=0, description="of ops")
    batch_size: int = pydantic.Field(1, gt=0, description="rows")
    dtype: DType = pydantic.Field("float32", description="of activations and parameters")
    repeats: int = pydantic.Field(5, gt=0, description="runs of each program, after one to warm up")
    time_limit: float = pydantic.Field(
        20.0, gt=0, description="seconds for the runs of a row; what would take longer once is not begun"
    )
    memory_limit: float | None = pydantic.Field(
        None, gt=0, description="GiB beyond which a program is not run; null: what is free"
    )
    baselines: bool = pydantic.Field(True, description="measure softmax and window attention in the same run")
    peers: bool = pydantic.Field(True, description="measure other people's code that is installed in the same run")
    targets: tuple[str, ...] = pydantic.Field(
        (), description=f"compile for {', '.join(TARGETS)} instead of running here"
    )
    accuracy: str | None = pydantic.Field(
        None, description="results.jsonl of a sweep, to plot accuracy against state bytes beside speed"
    )
    output_dir: str = pydantic.Field("runs", description="where runs are kept")
    run_name: str = pydantic.Field("bench", description="folder of this run; the same again continues it")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        name = data.get("preset") if isinstance(data, Mapping) else None
        name = getattr(name, "text", name)
        return {"run_name": f"bench-{name}", **PRESETS[name], **data} if name in PRESETS else data

    @pydantic.model_validator(mode="after")
    def _known(self) -> "BenchConfig":
        if unknown := [op for op in self.ops if op not in OPS]:
            raise ValueError(
                f'ops: expected any of {", ".join(OPS)}, got "{unknown[0]}"{did_you_mean(unknown[0], OPS)}'
            )
        if unknown := [target for target in self.targets if target not in TARGETS]:
            near = did_you_mean(unknown[0], TARGETS)
            raise ValueError(f'targets: expected any of {", ".join(TARGETS)}, got "{unknown[0]}"{near}')
        return self

    def chosen_levels(self) -> tuple[Level, ...]:
        """The levels, said or meant."""
        meant: dict[Level, bool] = {
            "op": bool(self.ops),
            "mixer": bool(self.mixers and not self.model) or not (self.ops or self.model),
            "model": bool(self.model),
        }
        return self.levels or tuple(level for level, named in meant.items() if named)

    def subjects(self) -> list[Subject]:
        """Everything to measure: what belongs to one curve one after another, its lengths ascending.

        Raises:
          UserError: the model's file cannot be read.
        """
        lengths, found = sorted(set(self.lengths)), []
        for level in self.chosen_levels():
            for mode in self.modes:
                for fields in self._named(level, mode):
                    found += [Subject(level=level, mode=mode, length=t, **self._sizes(), **fields) for t in lengths]
        if not self.targets:
            return found
        here = [s for s in found if s.peer is None]
        return [s.replace(target=target) for target in self.targets for s in here]

    def _sizes(self) -> dict[str, Any]:
        names = ("batch_size", "heads", "head_dim", "dim", "dtype")
        return {name: getattr(self, name) for name in names}

    def _named(self, level: Level, mode: Mode) -> Iterator[dict[str, Any]]:
        """What is measured at a level: baselines first."""
        if level == "op":
            yield from self._ops(mode)
        elif level == "model":
            yield from self._models()
        else:
            for mixer, baseline in self._mixers():
                if mixer.causal or mode != "decode":
                    yield {"name": named(mixer), "mixer": mixer.matching(self._attention()), "baseline": baseline}

    def _ops(self, mode: Mode) -> Iterator[dict[str, Any]]:
        names = [op for op in OPS if op in (self.ops or OPS) or (self.baselines and op in BASELINES)]
        if mode == "decode":  # one token at a time, all softmax attention is the same
            names = [op for op in names if op not in ("softmax_materialised", "softmax_platform")]
        for op in names:
            yield {"name": op, "baseline": op in BASELINES}
            for peer in peers_of(op) if self.peers and mode != "decode" else ():
                if peer.missing() is None:
                    yield {"name": op, "peer": peer.name, "baseline": op in BASELINES}

    def _attention(self) -> SoftmaxAttention:
        """What mixers stand in for: as many heads of 64 as the width has room for."""
        return SoftmaxAttention(num_heads=self.dim // 64, num_kv_heads=self.dim // 64, head_dim=64)

    def _mixers(self) -> Iterator[tuple[MixerConfig, bool]]:
        """As they were chosen, and whether they are baselines."""
        baselines = [SoftmaxAttention(), SlidingWindow(window=512, sinks=0), SlidingWindow(window=512, sinks=4)]
        known = cast(dict[str, type[MixerConfig]], configs("mixer")).values()
        every = self.mixers or tuple(cls() for cls in known if not cls.fixed_length)
        yield from ((mixer, True) for mixer in baselines if self.baselines)
        yield from ((mixer, False) for mixer in every if not (self.baselines and mixer in baselines))

    def _models(self) -> Iterator[dict[str, Any]]:
        base = read_model(self.model)
        yield {"name": "as it is", "model": base, "baseline": True}
        for mixer in self.mixers:
            yield {"name": named(mixer), "model": base.with_mixer(mixer)}


def named(mixer: MixerConfig) -> str:
    """The mixer's type, and what is not its default."""
    return f"{mixer.type_name} {mixer.differences(type(mixer)())}".strip()


def read_model(path: str | None) -> LMConfig:
    """The model of a training config, or the config of a model alone.

    Raises:
      UserError: no file, or none that describes a language model.
    """
    if path is None:
        raise UserError("model: expected a YAML file for the level model, got none")
    try:
        data = read(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"model: {path}: {str(error).splitlines()[0]}") from error
    if isinstance(data, Mapping) and isinstance(data.get("model"), Mapping):
        data = data["model"]
    try:
        return LMConfig.model_validate(data)
    except pydantic.ValidationError as error:
        raise UserError(f"model: {path}: {error.errors(include_url=False)[0]['msg']}") from error
