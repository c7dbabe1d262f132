"""One thing to measure, as data: what, in which mode, at which size."""

import hashlib
import json
from typing import Any, Literal

import jax.numpy as jnp
import pydantic

from effarch.bench import layers
from effarch.bench.ops import OPS, op_program
from effarch.bench.platform_attention import unavailable
from effarch.bench.program import Program
from effarch.config import Config
from effarch.mixers.base import MixerChoice
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

Level = Literal["op", "mixer", "block", "model"]
Mode = Literal["training", "prefill", "decode"]
DType = Literal["float32", "bfloat16"]


class Subject(Config):
    """What one row of a report is about."""

    level: Level = pydantic.Field("op", description="op, mixer, block or model")
    name: str = pydantic.Field("", description="of the op, or what the report calls it")
    mode: Mode = pydantic.Field("training", description="forward and backward; forward; tokens one by one")
    length: int = pydantic.Field(1024, gt=0, description="tokens T; decoding: of context")
    batch_size: int = pydantic.Field(1, gt=0, description="rows")
    heads: int = pydantic.Field(8, gt=0, description="of ops")
    head_dim: int = pydantic.Field(64, gt=0, description="of ops")
    dim: int = pydantic.Field(512, gt=0, description="width of mixers and blocks")
    dtype: DType = pydantic.Field("float32", description="of activations and parameters")
    mixer: MixerChoice | None = pydantic.Field(None, description="of a mixer or block")
    model: LMConfig | None = pydantic.Field(None, description="of a model")
    baseline: bool = pydantic.Field(False, description="what the others are measured against")
    peer: str | None = pydantic.Field(None, description="somebody else's implementation of the op")
    target: str | None = pydantic.Field(None, description="an accelerator that is not here, to compile for")

    @property
    def key(self) -> str:
        """Tells this subject from every other."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def series(self) -> tuple[str, str, str, str]:
        """What its rows at other lengths have in common: level, mode, name, target."""
        return self.level, self.mode, self.label, self.target or ""

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.peer or self.name

    def refused(self) -> str | None:
        """Why it cannot be measured at all, in words; None where it can."""
        if self.level == "op" and self.name == "softmax_platform":
            return unavailable(self.dtype)
        return None

    def program(self) -> Program:
        """What is to be compiled and run.

        Raises:
          ValueError: sizes that do not fit; names the field.
        """
        sizes: dict[str, Any] = {"batch": self.batch_size, "length": self.length}
        if self.level == "op":
            if self.name not in OPS:
                raise ValueError(f'ops: expected any of {", ".join(OPS)}, got "{self.name}"')
            dtype = jnp.dtype(self.dtype)
            return op_program(self.name, self.mode, heads=self.heads, head_dim=self.head_dim, dtype=dtype, **sizes)
        if self.level == "model":
            if self.model is None:
                raise ValueError("model: expected the config of a language model, got none")
            return layers.model_program(self.model, self.mode, **sizes)
        if self.mixer is None:
            raise ValueError("mixers: expected a mixer, got none")
        if self.mixer.fixed_length:
            raise ValueError(
                f"mixers: expected a mixer for any length, got {self.mixer.type_name}, whose length is fixed"
            )
        if self.mode == "decode" and not self.mixer.causal:
            raise ValueError(f"mixers: expected a causal mixer to decode, got {self.mixer.type_name}")
        sizes |= {"dim": self.dim, "dtype": jnp.dtype(self.dtype)}
        if self.level == "mixer":
            return layers.mixer_program(self.mixer, self.mode, **sizes)
        return layers.block_program(BlockConfig(mixer=self.mixer), self.mode, **sizes)
