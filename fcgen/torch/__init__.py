"""What PyTorch calls attention, on fcgen's kernels: operators for graphs, SDPA's and FlexAttention's signatures, a FlashAttention backend.

Imported when it is asked for (`fcgen.scaled_dot_product_attention`, `fcgen.flex_attention`): nothing here is loaded with `fcgen`, and
nothing of torch's is changed before `register_flash_attention()` is called.
"""
