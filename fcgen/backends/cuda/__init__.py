"""The CUDA C++ printer: `printer.print_cuda`, one file per kind of op."""
