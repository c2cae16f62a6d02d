"""The codec "safe": what needs no code to be read. A tree of tagged nodes, and large buffers."""
