"""Derivatives of tile IR, as tile IR: a record per op (`elementwise`, `structural`), and the two walks over a program that apply them
(`modes`)."""
