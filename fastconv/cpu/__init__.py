"""CPU kernels: one algorithm per file, all on the same microkernel (`contract`)."""
