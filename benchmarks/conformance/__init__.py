"""Other projects' own tests of attention, run against fcgen: thin adapters, which fetch nothing.

    python -m benchmarks.conformance sdpa flex varlen --pytorch CHECKOUT --json FILE
    python -m benchmarks.conformance flash_attn --flash-attention CHECKOUT --every 50 --limit 120 --done FILE --keep FILE

The checkouts are the caller's, best of the versions that are installed; a file SOURCES in one, which says what it holds, is recorded. A
test passes, fails, or is not applicable: it skips itself, asks for what fcgen refuses (the reason is the refusal's), or has nothing to do
with fcgen's kernels. Tests that a limit of time stopped, or did not let begin, are counted as such.
"""
