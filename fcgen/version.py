"""The package's version: also part of the key of what is cached."""

__version__ = "0.1.0"
