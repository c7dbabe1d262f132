"""Sparse and forgetting attention of flash-linear-attention as whole layers, without Triton and FlashAttention.

Its own layers, its own choice of blocks, its own mixing of branches; in place of kernels its naive functions where it
has them, else torch: FlashAttention, rotary positions, norms, pooling. Needs the extra `oracles` when called, not when
imported.
"""

from tests.golden.fla_layers import load


def native_sparse_attention(**options):
    """``NativeSparseAttention`` around ``naive_nsa``."""
    import torch

    def mean_pooling(x, size, cu_seqlens=None):
        return torch.stack([x[:, at : at + size].mean(1) for at in range(0, x.shape[1], size)], 1)

    def flash_attn_func(q, k, v, *, causal, window_size):
        lead, time = window_size[0], q.shape[1]
        at = torch.arange(time)
        distance = at[:, None] - at[None, :]
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[3] ** -0.5
        logits = logits.masked_fill((distance < 0) | (distance > lead), -torch.inf)
        return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)

    naive = load(
        "ops/nsa/naive",
        fla__ops__utils={"prepare_chunk_offsets": None},
        fla__ops__utils__pooling={"mean_pooling": mean_pooling},
        flash_attn={"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": None},
    )
    return load(
        "layers/nsa",
        **_layer(),
        fla__ops__nsa__parallel={"parallel_nsa": naive.naive_nsa},
        fla__ops__utils__index={"prepare_lens_from_mask": None},
    ).NativeSparseAttention(**options)


def mixture_of_block_attention(**options):
    """``MoBA`` around ``parallel_moba``, without the norm that the layer has on its heads' outputs."""
    index = load(
        "ops/utils/index",
        triton={"cdiv": lambda x, y: -(-x // y), "Config": dict, "autotune": lambda **_: _as_is, "jit": _as_is},
        triton__language={"constexpr": None},
        fla__utils={"autotune_cache_kwargs": {}, "tensor_cache": _as_is},
    )
    parallel = load(
        "ops/moba/parallel",
        fla__ops__utils__index=vars(index),
        flash_attn={"flash_attn_varlen_func": _varlen_forward},
        flash_attn__flash_attn_interface={
            "_flash_attn_varlen_forward": _varlen_forward,
            "_flash_attn_varlen_backward": _varlen_backward,
        },
    )
    return load(
        "layers/moba",
        **_layer(),
        fla__ops__moba={"parallel_moba": parallel.parallel_moba},
        fla__ops__utils__index=vars(index),
    ).MoBA(**options)


def forgetting_attention(**options):
    """``ForgettingAttention`` around ``naive_forgetting_attn``."""
    naive = load("ops/forgetting_attn/naive")

    def parallel(q, k, v, g, cu_seqlens=None):
        return naive.naive_forgetting_attn(q, k, v, g)

    return load(
        "layers/forgetting_attn",
        **_layer(),
        fla__ops__attn__decoding={"attn_decoding_one_step": None},
        fla__ops__forgetting_attn__parallel={"parallel_forgetting_attn": parallel},
    ).ForgettingAttention(**options)


def _as_is(function):
    return function


def _layer() -> dict[str, dict]:
    """What the layers import beside their operation."""
    import torch
    from torch import nn

    class RotaryEmbedding(nn.Module):
        def __init__(self, dim, base):
            super().__init__()
            self.rates = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

        def forward(self, q, k, **_):
            angle = torch.arange(q.shape[1])[:, None] * self.rates
            cos, sin = (f(angle)[:, None].to(q.dtype) for f in (torch.cos, torch.sin))

            def turned(x):
                a, b = x.chunk(2, -1)
                return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

            return turned(q), turned(k)

    class GroupNorm(nn.Module):
        def __init__(self, num_groups, hidden_size, is_rms_norm):
            super().__init__()
            assert is_rms_norm
            self.groups, self.weight = num_groups, nn.Parameter(torch.empty(hidden_size))

        def forward(self, x):
            y = x.unflatten(-1, (self.groups, -1))
            return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).flatten(-2) * self.weight

    norms = {"RMSNorm": lambda *_, **__: nn.Identity(), "FusedRMSNormGated": None, "GroupNorm": GroupNorm}
    return {
        "fla__layers__utils": {"pad_input": None, "unpad_input": None},
        "fla__modules": {"RotaryEmbedding": RotaryEmbedding, **norms},
    }


def _spans(q, k, cu_seqlens_q, cu_seqlens_k, scale, causal):
    """Slices of queries and of keys that belong together, and their logits ``[H, Q, K]``."""
    import torch

    edges = list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True))
    for (from_q, from_k), (to_q, to_k) in zip(edges, edges[1:], strict=False):
        of_q, of_k = slice(from_q, to_q), slice(from_k, to_k)
        logits = torch.einsum("qhd,khd->hqk", q[of_q], k[of_k]) * scale
        if causal:
            logits = logits.masked_fill(~torch.ones(logits.shape[1:]).tril().bool(), -torch.inf)
        yield of_q, of_k, logits


def _varlen_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, **_):
    """FlashAttention of packed rows: outputs ``[T, H, V]`` and log-sums ``[H, T]``."""
    import torch

    o, logsumexp = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    for of_q, of_k, logits in _spans(q, k, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal):
        logsumexp[:, of_q] = logits.logsumexp(-1)
        o[of_q] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), v[of_k])
    return o, logsumexp, None, None


def _varlen_backward(
    *, dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, **_
):
    """Its gradients, given outputs and log-sums of a softmax that may have had other keys too."""
    import torch

    shift = (dout * out).sum(-1)
    for of_q, of_k, logits in _spans(q, k, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal):
        weights = (logits - softmax_lse[:, of_q, None]).exp()
        dv[of_k] = torch.einsum("hqk,qhd->khd", weights, dout[of_q])
        dlogits = weights * (torch.einsum("qhd,khd->hqk", dout[of_q], v[of_k]) - shift[of_q].T[..., None])
        dq[of_q] = torch.einsum("hqk,khd->qhd", dlogits, k[of_k]) * softmax_scale
        dk[of_k] = torch.einsum("hqk,qhd->khd", dlogits, q[of_q]) * softmax_scale
