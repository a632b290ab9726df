"""Maps a file page by page, as it is read, where Linux would map more at a time.

What Linux caches in pages of 2 MB it maps whole: rows of large tables are then found with fewer
misses in address translation, but each row read makes 2 MB resident. And around a page that is read
it maps what else is cached, 64 KB or (from Linux 6.18 on) the whole large page. Both ends here: the
first by `madvise`, the second by watching for writes through userfaultfd, which needs pages to be
mapped one by one. Nobody writes, and nobody listens; nothing is sent.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import weakref

# linux/userfaultfd.h
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API, _REGISTER = 0xC018AA3F, 0xC020AA00
_VERSION, _WATCH_WITHOUT_LISTENER = 0xAA, 1 << 15
_WATCH_WRITES = 2


def map_singly(memory: mmap.mmap) -> str | None:
    """Let only those pages of `memory` become resident that are read; all answers stay the same.

    It holds in this process, not in those forked from it, for as long as `memory` lives.

    Returns:
        None, or why Linux does not do that (it takes 6.7, and a sandbox may forbid it): pages of
        2 MB are then mapped in smaller pieces, but still with their neighbours.
    """
    try:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        watch = _opened()
        weakref.finalize(memory, os.close, watch)
        fcntl.ioctl(watch, _API, struct.pack("QQQ", _VERSION, _WATCH_WITHOUT_LISTENER, 0))
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        length = -(-len(memory) // mmap.PAGESIZE) * mmap.PAGESIZE
        fcntl.ioctl(watch, _REGISTER, struct.pack("QQQQ", start, length, _WATCH_WRITES, 0))
    except (OSError, AttributeError) as error:  # no madvise, or no such advice
        return str(error)
    return None


def _opened() -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(f"userfaultfd is not known on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    watch: int = libc.syscall(number, os.O_CLOEXEC | _USER_MODE_ONLY)
    if watch < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"userfaultfd: {os.strerror(error)}")
    return watch
