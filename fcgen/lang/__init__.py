"""The DSL: a traced Python function over tiles."""
