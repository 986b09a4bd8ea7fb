"""Other projects' own tests of attention, run against fcgen: thin adapters, which fetch nothing.

    python -m benchmarks.conformance sdpa --checkout PYTORCH [--every 20] [-k EXPRESSION] [--json FILE]
    python -m benchmarks.conformance flex --checkout PYTORCH
    python -m benchmarks.conformance varlen --checkout PYTORCH
    python -m benchmarks.conformance flash_attn --checkout FLASH_ATTENTION

The checkout is the caller's, best of the version that is installed. A test passes, fails, or is not applicable: it is skipped by itself,
asks for what fcgen refuses (the reason is the refusal's), or never reaches one of fcgen's kernels.
"""
