"""The version of the package; its metadata read it from this file. Tested in ``tests/test_package.py``."""

__version__ = "0.1.0"
