"""`fcgen.attention`: arguments, heads and strides as torch has them, and the library kernels behind it."""
