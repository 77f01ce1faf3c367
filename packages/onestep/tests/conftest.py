import os
import tempfile

# Compiling is most of the time here, and what is compiled is small. Child processes have it, too.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

# The same programs are compiled by many tests, both workers and child processes: they share what is compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="onestep-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import psutil
import pytest

MOST = 2 << 30  # bytes of this process, above which compiled programs are let go


@pytest.fixture(scope="module", autouse=True)
def programs_do_not_pile_up():
    """Those of all files together would take four gigabytes."""
    yield
    if psutil.Process().memory_info().rss > MOST:
        jax.clear_caches()


@pytest.fixture(scope="module")
def quick_to_compile():
    """For tests of what does not depend on how well XLA optimises: compiling takes most of their time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
