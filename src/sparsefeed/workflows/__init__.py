"""Recipes, the command line, serving, release and the report."""
