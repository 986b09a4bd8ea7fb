"""From CUDA C++ text to a running kernel: NVRTC, cubin facts, the disk cache, the driver, launches and tensors.

In: generated source, a GPU architecture, tensors of any array library. Out: cubins, what ptxas says about them, loaded
kernels, launches. Guaranteed: importing anything here neither imports torch nor touches a driver, and everything up to
the cubin works on a machine without a GPU.
"""
