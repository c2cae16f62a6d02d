"""The codec "safe": what needs no code to be read. A tree of tagged nodes, and large buffers."""

from remotedict.pure.safe import arrays, arrow, frames, plain
from remotedict.pure.safe.tree import RefusedError, read, written

__all__ = ["RefusedError", "arrays", "arrow", "frames", "plain", "read", "written"]
