"""The GPU library: kernels for NVIDIA GPUs, written with Numba's ``@cuda.jit``, one algorithm a file."""
