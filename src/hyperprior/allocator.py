"""Memory that is freed is kept for the next step."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tells glibc not to hand freed memory back to the system; true if it agreed, false on other C libraries.

    A training step on the CPU allocates and frees the same few gigabytes again and again, in blocks of tens of
    megabytes. By default each goes back to the system at once and every page of the next one faults: some two fifths of
    the time of a step (benchmarks/README.md has the figures). The process then stays as large as its largest step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all((mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 2**27)))
