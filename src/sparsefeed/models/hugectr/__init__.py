"""HugeCTR 24.06: the script that trains in NVIDIA's container, its files, and the way there and back."""
