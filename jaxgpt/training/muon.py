"""Muon: momentum, orthogonalised, for the matrices of the blocks.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with
the scale of arXiv 2502.16982. `optax.contrib.muon` computes the same, one matrix after
another, which takes longer for the many small ones of a small model: here all of one
shape are one stack.
"""

from __future__ import annotations

import collections
import math

import jax
import jax.numpy as jnp
import optax

from jaxgpt.model.cpu import accumulator
from jaxgpt.parallel import sharding

# Root mean square of an update before the learning rate: about that of AdamW's, so that
# both share a rate (arXiv 2502.16982, section 2.2).
UPDATE_RMS = 0.2
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# The mesh axes that split parameters: their devices share the matrices of a stack.
SHARED = ("fsdp", "tensor")


def scale_by_muon(momentum: float, dtype: str) -> optax.GradientTransformation:
    """Returns Nesterov momentum, orthogonalised, of a tree of matrices.

    Args:
      momentum: decay of the sum of gradients.
      dtype: of the operands of products.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda updates, _: orthogonalise_tree(updates, dtype)),
    )


def orthogonalise_tree(tree: dict, dtype: str) -> dict:
    """Returns each matrix orthogonalised, of root mean square `UPDATE_RMS`."""
    leaves, structure = jax.tree.flatten(tree)
    wide = [leaf if leaf.shape[0] <= leaf.shape[1] else leaf.T for leaf in leaves]
    for shape in sorted({matrix.shape for matrix in wide}):
        members = [i for i, matrix in enumerate(wide) if matrix.shape == shape]
        stack = orthogonalise_stack(jnp.stack([wide[i] for i in members]), dtype)
        scale = UPDATE_RMS * math.sqrt(shape[1])
        for i, matrix in zip(members, stack, strict=True):
            wide[i] = scale * matrix
    done = [
        new if new.shape == leaf.shape else new.T
        for new, leaf in zip(wide, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, done)


def orthogonalise_stack(x_NAB: jax.Array, dtype: str) -> jax.Array:
    """Calls `orthogonalise`, with each matrix as a whole on one device.

    A split matrix travels once to the device that works on it, and back in parts.
    """
    N, (rows, columns) = len(x_NAB), SHARED
    padding = -N % sharding.size(SHARED)
    x_NAB = jnp.pad(x_NAB, ((0, padding), (0, 0), (0, 0)))
    # One axis of the mesh at a time, so that XLA moves parts (all-to-all): for two at
    # once it gathers everything everywhere.
    stages = [(None, *SHARED), (rows, None, columns), (SHARED, None, None)]
    for axes in stages:
        x_NAB = sharding.constrain(x_NAB, *axes)
    y_NAB = orthogonalise(x_NAB, dtype)
    for axes in reversed(stages):
        y_NAB = sharding.constrain(y_NAB, *axes)
    return y_NAB[:N]


def orthogonalise(x_NAB: jax.Array, dtype: str) -> jax.Array:
    """Brings all singular values of each matrix [A, B], A <= B, to about 1.

    Newton-Schulz: X <- a X + (b G + c G G) X with G = X X^T, from a Frobenius norm of
    1. Large singular values end between 0.7 and 1.2, and zero stays zero.

    Args:
      dtype: of the operands of products.
    """
    a, b, c = COEFFICIENTS
    A, B = x_NAB.shape[1:]
    through_gram = uses_gram(A, B, dtype)
    # By default TPUs and GPUs round the operands of float32 products, and G's steps
    # diverge with rounded ones, see `uses_gram`.
    precision = jax.lax.Precision.HIGHEST if through_gram else None

    def product(subscripts: str, p: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.einsum(
            subscripts,
            p.astype(dtype),
            q.astype(dtype),
            precision=precision,
            preferred_element_type=accumulator(dtype),
        )

    x_NAB = x_NAB / (jnp.linalg.norm(x_NAB, axis=(1, 2), keepdims=True) + 1e-8)
    eye_AA = jnp.eye(A, dtype=x_NAB.dtype)
    y_NAB = jnp.broadcast_to(eye_AA, (len(x_NAB), A, A)) if through_gram else x_NAB
    gram_NAA = product("nab,ncb->nac", x_NAB, x_NAB)
    for step in range(ITERATIONS):
        square_NAA = product("nab,nbc->nac", gram_NAA, gram_NAA)
        factor_NAA = a * eye_AA + b * gram_NAA + c * square_NAA
        y_NAB = product("nab,nbc->nac", factor_NAA, y_NAB)
        if step < ITERATIONS - 1 and through_gram:
            half_NAA = product("nab,nbc->nac", factor_NAA, gram_NAA)
            gram_NAA = product("nab,nbc->nac", half_NAA, factor_NAA)
        elif step < ITERATIONS - 1:
            gram_NAA = product("nab,ncb->nac", y_NAB, y_NAB)
    return product("nab,nbc->nac", y_NAB, x_NAB) if through_gram else y_NAB


def orthogonalise_flops(
    shapes: list[tuple[int, ...]], devices: int, dtype: str
) -> float:
    """Returns the FLOPs of `orthogonalise_tree` on the busiest device.

    Args:
      devices: how many share them.
    """
    total = 0.0
    counts = collections.Counter(tuple(sorted(shape)) for shape in shapes)
    for (A, B), count in counts.items():
        if uses_gram(A, B, dtype):
            one = 2 * A * A * (2 * B + A * (4 * ITERATIONS - 2))
        else:
            one = 2 * A * A * (2 * B + A) * ITERATIONS
        total += math.ceil(count / devices) * one
    return total


def uses_gram(A: int, B: int, dtype: str) -> bool:
    """Returns whether the steps update G alone, and X is multiplied once at the end.

    Each step multiplies X from the left by a polynomial of G, so G from both sides:
    cheaper where B > A. In bfloat16 this diverges.
    """
    return A < B and jnp.dtype(dtype).itemsize >= 4
