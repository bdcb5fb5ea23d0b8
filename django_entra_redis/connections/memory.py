"""The C library's memory for large values.

glibc asks the kernel for new memory for each block that is larger than any that has
been freed so far, and gives memory back from twice that size on (mallopt(3),
``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD``). Each page of a large value is a page
fault then, and these are six sevenths of what a value of 1 MB costs. On other C
libraries, what is done here does nothing.
"""

#: Bytes of the largest block for which there is always memory, and of the largest block
#: for which it can be kept.
SMALL, _LARGEST = 128 * 1024, 31 * 1024 * 1024
#: Bytes of the largest value for which memory is kept. Two threads that set it at once
#: both do what one would do.
_kept = SMALL


def keep_memory(size: int) -> None:
    """Have the memory of a value kept for the next one, once its pages have been used.

    Parameters:
        size: the value's size in bytes.
    """
    global _kept
    if size > _kept and _kept < _LARGEST:
        # For values of up to twice that size: what is a little larger finds it done.
        _kept = 2 * size
        # A block that is larger than any before is allocated, and freed: no page of it
        # is touched. It is for the bytes and for what is made of them, which is text of
        # four bytes a character at most.
        bytes(min(4 * _kept, _LARGEST))
