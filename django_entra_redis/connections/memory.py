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
#: The size of the largest value so far. Two threads that set it at once both do what
#: one would do.
_known = SMALL


def keep_memory(size: int) -> None:
    """Have the memory of a value kept for the next one, once its pages have been used.

    Parameters:
        size: the value's size in bytes.
    """
    global _known
    if size > _known:
        _known = size
        # A larger block is allocated, and freed: as large as the bytes and what is made
        # of them, which is text of four bytes a character at most. No page is touched.
        bytes(min(4 * size, _LARGEST))
