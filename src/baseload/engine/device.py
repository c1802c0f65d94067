"""Process-wide settings of the device, made before JAX initialises its backend."""

import os


def configure(*, threads: int) -> None:
    """Bounds the CPU threads of XLA's pool; 0 leaves it at one per core. Call before any use of JAX in the process.

    XLA's CPU client reads NPROC once, when it starts (seen in its thread count: `tf_XLAEigen` threads); there is no
    flag for it.
    """
    if threads > 0:
        os.environ["NPROC"] = str(threads)
