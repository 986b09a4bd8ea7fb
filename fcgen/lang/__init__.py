"""The DSL: a Python function over tiles, traced to tile IR."""
