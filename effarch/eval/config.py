"""What is evaluated, and how much of it: each key makes a report better and slower."""

from typing import Annotated

import pydantic

from effarch.config import Config

Length = Annotated[int, pydantic.Field(gt=1)]
Depth = Annotated[float, pydantic.Field(ge=0, le=1)]


class EvalConfig(Config):
    """Evaluation on held-out rows."""

    every: int = pydantic.Field(0, ge=0, description="steps between evaluations while training; 0: none")
    rows: int = pydantic.Field(64, gt=0, description="rows of validation text, and of recall")
    window: int = pydantic.Field(64, gt=0, description="tokens; what recall is split at")
    sinks: int = pydantic.Field(4, ge=0, description="of the training-free window + sinks baseline")
    lengths: tuple[Length, ...] = pydantic.Field(
        (512, 2048, 8192),
        description="tokens of the rows for perplexity, needle and mqar, cut to what the text has; []: none",
    )
    tokens: int = pydantic.Field(16384, gt=0, description="tokens of validation text scored at each of the lengths")
    depths: tuple[Depth, ...] = pydantic.Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), description="places of the planted facts, 0: first, 1: last; []: none"
    )
    trials: int = pydantic.Field(2, gt=0, description="rows of needle, and of mqar, at each depth of each length")
    pairs: int = pydantic.Field(4, gt=0, le=10, description="facts planted in a row of mqar")
    contexts: tuple[Length, ...] = pydantic.Field(
        (1024, 16384), description="tokens of context that decoding is timed at; more than 64 each; []: none"
    )
