"""Triton: configuration, export, server, steps and client."""
