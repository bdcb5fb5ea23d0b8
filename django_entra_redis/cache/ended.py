"""The number of computations of ``get_or_set()`` that have ended in this process.

Whoever has missed a key before a computation ended asks for the key again. It stands
here since :mod:`.computations` is imported at first use.
"""

#: The number. Writes are guarded by the lock of the computations, a read is atomic.
ended = [0]
