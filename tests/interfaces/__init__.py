"""What stands around `fcgen.attention` for PyTorch and Hugging Face: on torch's CPU tensors, kernels interpreted."""
