"""The axis glossary, and the array types that speak it.

    B batch             T query time        S key (cache) time     D model width
    H heads             K key dim per head  V value dim per head   F feed-forward width
    N chunks            C chunk length      L layers               W convolution width

Layout is always ``[B, T, H, .]``. Head counts that may differ within one call are ``Hq``, ``Hk`` and ``H`` (values).
"""

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKeyArray", "PyTree"]
