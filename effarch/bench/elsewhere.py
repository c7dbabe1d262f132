"""Mixers compiled for accelerators that are not here: ``effarch bench "targets=[v5e,h100]"``.

Each target has a process of its own, since its compiler reads the environment before jax starts; mixers and lengths
follow one another there, and answers come back as lines of JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from effarch.bench.targets import Target, compile_for, get
from effarch.config import UserError
from effarch.mixers.base import Context, LayerInfo, MixerConfig


@dataclasses.dataclass(frozen=True)
class Gradient:
    """Gradient of a mixer's outputs for parameters and inputs: what ``scaling.measure`` times, for compiling alone.

    Attributes:
      config: the mixer. dim: width D. batch_size: rows B. length: T. dtype: of inputs and activations.
    """

    config: MixerConfig
    dim: int
    batch_size: int
    length: int
    dtype: str

    @property
    def flops(self) -> int:
        """Three times those of the forward pass, as the mixer counts them."""
        return 3 * self.batch_size * self.config.flops(self.dim, self.length)

    @property
    def bytes(self) -> int:
        """Arguments and results, each once."""
        import jax

        arguments = jax.eval_shape(self.arguments, jax.random.key(0))
        return 2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments))

    def _parts(self) -> tuple[Any, ...]:
        import jax
        from flax import nnx

        layer = LayerInfo(dtype=self.dtype)
        module = jax.eval_shape(lambda: self.config.make(self.dim, layer=layer, rngs=nnx.Rngs(0)))
        return nnx.split(module, nnx.Param, ...)

    def arguments(self, key: Any) -> tuple[Any, ...]:
        """Parameters, what is fixed, and inputs ``[B, T, D]``; zeros, as only their shapes matter."""
        import jax
        import jax.numpy as jnp

        _, params, fixed = self._parts()
        x = jnp.zeros((self.batch_size, self.length, self.dim), self.dtype)
        return *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, fixed)), x

    def run(self, params: Any, fixed: Any, x: Any) -> Any:
        """The gradients."""
        import jax
        import jax.numpy as jnp
        from flax import nnx

        graph = self._parts()[0]

        def loss(params: Any, x: Any) -> Any:
            ctx, _ = Context.of(*x.shape[:2])
            y, _, _ = nnx.merge(graph, params, fixed)(x, None, ctx)
            return (y.astype(jnp.float32) ** 2).mean()

        return jax.grad(loss, argnums=(0, 1))(params, x)


def estimates(
    target: Target,
    mixers: Mapping[str, MixerConfig],
    *,
    dim: int,
    lengths: Sequence[int],
    batch_size: int = 1,
    dtype: str = "float32",
) -> Iterator[dict[str, Any]]:
    """Rows as they come: ``mixer``, ``length``, and the fields of ``targets.Estimate``.

    Args:
      target: what to compile for. mixers: by the name to show. dim: width of their input.
      lengths: T. batch_size: rows. dtype: of inputs and activations.

    Raises:
      UserError: the target's compiler is not installed, or the process that compiles ends early.
    """
    if reason := target.missing():
        raise UserError(reason)
    job = {
        "target": target.name,
        "mixers": {name: config.model_dump(mode="json") for name, config in mixers.items()},
        "sizes": [{"dim": dim, "length": length, "batch_size": batch_size, "dtype": dtype} for length in lengths],
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "effarch.bench.elsewhere", json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | target.environment(),
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        said = process.stderr.read().strip().splitlines()
    if process.returncode:
        raise UserError(f"targets: compiling for {target.name} ended early: {said[-1] if said else 'it said nothing'}")


def main(text: str) -> None:
    """One job: a line of JSON for each mixer and length."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch.registry import get as registered

    job = json.loads(text)
    for name, given in job["mixers"].items():
        config = registered("mixer", given.pop("type"))(**given)
        for sizes in job["sizes"]:
            found = compile_for(get(job["target"]), Gradient(config, **sizes))  # ty: ignore[invalid-argument-type]
            print(json.dumps({"mixer": name, "length": sizes["length"], **dataclasses.asdict(found)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
