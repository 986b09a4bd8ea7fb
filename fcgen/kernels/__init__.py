"""The library, written in the DSL."""
