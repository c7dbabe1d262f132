"""From a Transformer to a student: the same model with other mixers, and everything that can be copied copied."""

import math
from typing import Annotated, Literal, Self, TypeVar, cast

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.config import Config, did_you_mean
from effarch.mixers.base import MixerChoice, MixerConfig
from effarch.mixers.softmax_attention import Attention, SoftmaxAttention, StandIn
from effarch.models.block import Block
from effarch.models.encoder import Encoder, EncoderConfig
from effarch.models.lm import LM, LMConfig
from effarch.models.stack import Stack

Place = Literal["mixer", "teacher"]


class StudentConfig(Config):
    """What replaces the teacher's attention, and where."""

    mixer: MixerChoice = pydantic.Field("gated_deltanet", validate_default=True, description="what replaces attention")
    pattern: Annotated[tuple[Place, ...], pydantic.Field(min_length=1)] = pydantic.Field(
        ("mixer",),
        description='repeated over the layers: "mixer" replaces, "teacher" keeps; '
        "[mixer, mixer, mixer, teacher] is 3 to 1",
    )
    keep: tuple[Annotated[int, pydantic.Field(ge=0)], ...] = pydantic.Field(
        (), description="layers, from 0, that keep the teacher's attention beside those of the pattern"
    )

    own: tuple[str, ...] = pydantic.Field(
        (),
        description="keys of the mixer that stay as they are, defaults too, where others follow the teacher's: "
        "[rope_theta] leaves rotary off where it is off by default",
    )

    @pydantic.model_validator(mode="after")
    def _own_are_there(self) -> Self:
        fields = type(self.mixer).model_fields
        for name in self.own:
            if name not in fields:
                hint = did_you_mean(name, fields)
                raise ValueError(f"own: expected keys of {self.mixer.type_name}, got {name!r}{hint}")
        return self

    @pydantic.field_validator("mixer")
    @classmethod
    def _can_stand_in(cls, mixer: MixerConfig) -> MixerConfig:
        if not mixer.stands_in_for_attention:
            raise ValueError(f"mixer: expected one that takes over attention's weights, got {mixer.type_name}")
        return mixer

    def in_place_of(self, attention: SoftmaxAttention, length: int | None) -> MixerConfig:
        """The mixer for a layer: head layout as the attention's; ``length`` of rows, where they have one."""
        return self.mixer.matching(attention).replace(**{name: getattr(self.mixer, name) for name in self.own})


class EncoderStudentConfig(StudentConfig):
    """What replaces an encoder's attention: mixers that take over none of its weights, too, whose own are fresh."""

    mixer: MixerChoice = pydantic.Field("bidirectional", validate_default=True, description="what replaces attention")

    @pydantic.field_validator("mixer")
    @classmethod
    def _can_stand_in(cls, mixer: MixerConfig) -> MixerConfig:
        return mixer

    def in_place_of(self, attention: SoftmaxAttention, length: int | None) -> MixerConfig:
        """Made for rows of the teacher's length, where the mixer is for one and its own was not chosen."""
        mixer = super().in_place_of(attention, length)
        if not mixer.fixed_length or getattr(mixer, "length", None) != type(mixer).model_fields["length"].default:
            return mixer
        return mixer.replace(length=length)


C = TypeVar("C", bound=LMConfig | EncoderConfig)
M = TypeVar("M", bound=LM | Encoder)


def student_config(teacher: C, student: StudentConfig) -> C:
    """The teacher's config with its mixers replaced; head layout and rotary base follow the teacher where not given.

    Raises:
      ValueError: a layer to be replaced is not softmax attention, or one to be kept does not exist.
    """
    if beyond := [i for i in student.keep if i >= teacher.num_layers]:
        raise ValueError(f"keep: expected layers 0 to {teacher.num_layers - 1}, got {beyond[0]}")
    period = teacher.num_layers if student.keep else math.lcm(len(teacher.pattern), len(student.pattern))
    blocks = []
    for i in range(period):
        block = teacher.pattern[i % len(teacher.pattern)]
        if student.pattern[i % len(student.pattern)] == "mixer" and i not in student.keep:
            if not isinstance(block.mixer, SoftmaxAttention):
                raise ValueError(f"teacher: expected softmax attention in layer {i}, got {block.mixer.type_name}")
            block = block.replace(mixer=student.in_place_of(block.mixer, getattr(teacher, "length", None)))
        blocks.append(block)
    return teacher.replace(pattern=tuple(blocks))


def _transfer_block(teacher: Block, student: Block, config: MixerConfig) -> Block:
    student.mixer_norm = teacher.mixer_norm
    student.channel_norm = teacher.channel_norm
    student.mixer_post_norm = teacher.mixer_post_norm
    student.channel_post_norm = teacher.channel_post_norm
    student.channel = teacher.channel
    if isinstance(teacher.mixer, Attention) and type(teacher.mixer) is not type(student.mixer):
        if config.stands_in_for_attention:
            student.mixer = cast(StandIn, student.mixer).from_attention(teacher.mixer)
    else:
        student.mixer = teacher.mixer
    return student


def transfer(teacher: M, student: M) -> M:
    """A student with the teacher's embeddings, norms, channel mixers and heads.

    Its mixers take over attention's weights, where they can. What has no counterpart (gates, decays, convolutions)
    keeps the student's initial values. Pure: call it under ``jax.jit``.

    Args:
      teacher: the model to copy from. student: freshly initialised from :func:`student_config`.
    """
    graph, state = nnx.split(student)
    student = nnx.merge(graph, jax.tree.map(lambda x: x, state))  # variables of its own: the argument stays as it is
    mixers = [student.config.block(i).mixer for i in range(student.config.num_layers)]
    layers = zip(teacher.stack.layers(), student.stack.layers(), mixers, strict=True)
    student.stack = Stack.of(student.stack.layout, [_transfer_block(*layer) for layer in layers])
    for name, part in vars(student).items():
        if name != "stack" and isinstance(part, nnx.Module | nnx.Variable):
            setattr(student, name, getattr(teacher, name))
    graph, state = nnx.split(student)
    return nnx.merge(graph, jax.tree.map(jnp.copy, state))  # arrays of its own
