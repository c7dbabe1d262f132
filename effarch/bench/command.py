"""``effarch bench``: how time, compiled memory and the operations that mixers count grow with T."""

from typing import cast

import pydantic

from effarch.bench.elsewhere import estimates
from effarch.bench.scaling import exponent, measure
from effarch.bench.targets import get
from effarch.config import Config, UserError
from effarch.eval.table import Column, Table, context, size
from effarch.mixers.base import MixerChoice, MixerConfig
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.registry import configs


class BenchConfig(Config):
    """What to measure: mixers in the place of softmax attention with heads of 64, forward and backward, float32."""

    mixers: tuple[MixerChoice, ...] = pydantic.Field(
        (), description="names, or mappings with keys of the mixer; empty: all whose length is not fixed"
    )
    dim: int = pydantic.Field(128, gt=0, multiple_of=64, description="width of the model; heads are 64 wide")
    lengths: tuple[int, ...] = pydantic.Field((8192, 16384, 32768, 65536), description="tokens T, ascending")
    batch_size: int = pydantic.Field(1, gt=0, description="rows")
    repeats: int = pydantic.Field(3, gt=0, description="runs of each length; the fastest counts")
    targets: tuple[str, ...] = pydantic.Field(
        (), description="accelerators to compile for instead of running here: v5e, v5p, v6e, h100"
    )

    def chosen(self) -> dict[str, MixerConfig]:
        """The mixers with the head layout of the attention that they replace; names say what is not the default."""
        heads = self.dim // 64
        attention = SoftmaxAttention(num_heads=heads, num_kv_heads=heads, head_dim=64)
        known = cast(dict[str, type[MixerConfig]], configs("mixer")).values()
        every = self.mixers or tuple(cls() for cls in known if not cls.fixed_length)
        return {f"{m.type_name} {m.differences(type(m)())}".strip(): m.matching(attention) for m in every}


def bench(config: BenchConfig) -> int:
    """Measures the mixers one after another and prints the table of their exponents."""
    if config.targets:
        return compiled(config)
    columns = (
        Column("name", "mixer"),
        Column("memory", "memory ~ T^", format=".3f"),
        Column("bytes", "per token", format=size),
        Column("flops", "flops ~ T^", format=".3f"),
        Column("time", "time ~ T^", format=".3f"),
        *(Column(str(length), context(length), "s", format=".3g") for length in config.lengths),
    )
    rows, chosen, dim = [], config.chosen(), config.dim
    for number, (name, mixer) in enumerate(chosen.items(), 1):
        try:
            found = measure(mixer, dim, config.lengths, batch_size=config.batch_size, repeats=config.repeats)
        except ValueError as error:
            raise UserError(str(error)) from error
        rows.append(
            {
                "name": name,
                "memory": found.memory_exponent,
                "bytes": found.bytes_per_token,
                "flops": exponent(config.lengths, [mixer.flops(dim, time) for time in config.lengths]),
                "time": found.time_exponent,
                **{str(t): s for t, s in zip(found.lengths, found.seconds, strict=True)},
            }
        )
        told = f"memory {found.memory_exponent:.3f}, time {found.time_exponent:.3f}"
        print(f"[{number}/{len(chosen)}] {name}: {told}", flush=True)
    print(Table(columns, tuple(rows)).plain())
    return 0


def compiled(config: BenchConfig) -> int:
    """Compiles the mixers for each target and prints what they need there; nothing runs."""
    for target in [get(name) for name in config.targets]:
        seconds, bytes_, rows = [], [], []
        for row in estimates(
            target, config.chosen(), dim=config.dim, lengths=config.lengths, batch_size=config.batch_size
        ):
            if not rows or rows[-1]["name"] != row["mixer"]:
                rows.append({"name": row["mixer"]})
            length, memory = row["length"], row["memory"]
            rows[-1][f"bytes {length}"] = size(memory["temporaries"]) if memory else row["reason"]
            rows[-1][f"seconds {length}"] = row["seconds"] if not row["reason"] else None
            print(f"{target.name} {row['mixer']} T = {length}: {rows[-1][f'bytes {length}']}", flush=True)
        for length in config.lengths:
            bytes_.append(Column(f"bytes {length}", context(length), "temporary", format=str))
            seconds.append(Column(f"seconds {length}", context(length), "s, estimated", format=".2e"))
        print(f"{target.chip}: compiled, nothing ran. Bytes are the compiler's; times are rooflines.")
        print(Table((Column("name", "mixer"), *bytes_, *seconds), tuple(rows)).plain())
    return 0
