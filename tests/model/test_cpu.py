"""What keeps XLA:CPU fast and shows in no result."""

import platform
import subprocess
import sys

import pytest

# Prints the page faults of a call, in bytes; x @ x.T is a temporary buffer of 151 MB.
PROGRAM = """
import resource, statistics
from jaxgpt import backend
backend.set_up_jax()
import jax, jax.numpy as jnp

step = jax.jit(lambda x: ((x @ x.T) @ x).sum())
x = jnp.ones((6144, 8))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [faults() for _ in range(10)]
print(statistics.median(found) * resource.getpagesize())
"""


@pytest.mark.process
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library's heap is as it is"
)
def test_a_step_faults_in_no_buffer_that_the_step_before_had():
    program = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(program, check=True, capture_output=True, text=True)
    assert float(found.stdout) < 10e6
