"""GPU families (limits and instruction records), budgets, and the CUDA C++ printer."""
