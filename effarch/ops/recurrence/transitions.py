"""What A_t is: the transition of ``S_t = A_t S_{t-1} + k_t v_t^T``, told by its type.

Decays are natural logarithms, <= 0. Each head may have its own, or gates of fewer heads serve groups of them.
"""

import dataclasses
from functools import partial

import jax

from effarch.typing import Array, Float


@partial(jax.tree_util.register_dataclass, data_fields=["log_decay"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Constant:
    """``A_t = a I``, one decay per head, the same for every token: linear attention (a = 1), RetNet, Lightning.

    Attributes:
      log_decay: ``[H]`` natural log of a, <= 0.
    """

    log_decay: Float[Array, " H"]


@partial(jax.tree_util.register_dataclass, data_fields=["log_decay"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Scalar:
    """``A_t = a_t I``: Mamba-2 (SSD), gated retention, mLSTM.

    Attributes:
      log_decay: ``[B, T, H]`` natural log of a_t, <= 0.
    """

    log_decay: Float[Array, "B T H"]


@partial(jax.tree_util.register_dataclass, data_fields=["log_decay"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Diagonal:
    """``A_t = Diag(a_t)``: GLA, HGRN2, RWKV-5, RWKV-6.

    Attributes:
      log_decay: ``[B, T, Hg, K]`` natural log of a_t, <= 0; Hg divides H.
    """

    log_decay: Float[Array, "B T Hg K"]


@partial(jax.tree_util.register_dataclass, data_fields=["beta", "log_decay"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Delta:
    """``A_t = (I - b_t k_t k_t^T) Diag(a_t)``, and the write is ``b_t k_t v_t^T``: DeltaNet, Gated DeltaNet, KDA.

    Attributes:
      beta: ``[B, T, H]`` write strength b_t, in (0, 1), or (0, 2) for negative eigenvalues (with unit k).
      log_decay: ``[B, T, H]`` (one decay per head), ``[B, T, Hg, K]`` (per channel), or None (a = 1);
        natural log, <= 0.
    """

    beta: Float[Array, "B T H"]
    log_decay: Float[Array, "B T H"] | Float[Array, "B T Hg K"] | None = None


@partial(jax.tree_util.register_dataclass, data_fields=["log_decay", "p", "r"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class DiagonalPlusRankOne:
    """``A_t = Diag(a_t) + p_t r_t^T``: RWKV-7. r reads the state before this token's decay, p writes what was read.

    Attributes:
      log_decay: ``[B, T, Hg, K]`` natural log of a_t, <= 0.
      p: ``[B, T, Hp, K]``.
      r: ``[B, T, Hr, K]``.
    """

    log_decay: Float[Array, "B T Hg K"]
    p: Float[Array, "B T Hp K"]
    r: Float[Array, "B T Hr K"]


Transition = Constant | Scalar | Diagonal | Delta | DiagonalPlusRankOne
