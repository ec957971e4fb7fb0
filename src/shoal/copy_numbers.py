"""The descriptors of a process that makes copies of itself, and of a copy: numbers that plans are made with, here, and carried out, there.

Imports nothing: whoever makes copies has as little in its memory as possible.
"""

from __future__ import annotations

REQUESTS, INIT, CONFIGURATION, LIFE, EMPTY, NETWORK = 3, 4, 5, 6, 7, 8
"""Of the maker from its beginning: who asks it; shoal-init; what it reads first; a pipe that ends with its owner; a mount namespace with
nothing in it, and a network handed over, where there are such."""
KEEPER_END, CONTROL, KEEPER, TALK, STDOUT, STDERR, GROUP, ID_MAP = 10, 11, 12, 13, 14, 15, 16, 17
"""Of one copy, while it is made: both ends of the socket of its cell's pid 1, the pidfd of that, the copy's socket, output and error
output, the cgroup it begins in, and the id map of what it may write."""
INSIDE_TALK = 3
"""The socket of a copy, in the copy."""
COMM = "shoal-call"
"""What ps shows for a copy."""
