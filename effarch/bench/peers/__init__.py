"""Other people's implementations of the same operations, in the same run, compared before they are timed.

    pip install 'effarch[peers]'

On CPU torch's scaled_dot_product_attention and the chunk functions of transformers, on NVIDIA GPUs also the Triton
kernels of flash-linear-attention, and FlashAttention where it is installed.
"""

from effarch.bench.peers.measure import Outcome, environment, measure
from effarch.bench.peers.protocol import Peer
from effarch.bench.peers.torch_code import PEERS, peers_of

__all__ = ["PEERS", "Outcome", "Peer", "environment", "measure", "peers_of"]
