"""NVIDIA HPS's ps.json: declared key by key, read, checked and written."""
