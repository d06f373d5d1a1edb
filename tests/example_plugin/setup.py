"""Builds the row functions; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("absolute_norm.rows", ["absolute_norm/rows.pyx"])])
