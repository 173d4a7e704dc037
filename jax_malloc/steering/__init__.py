"""Asking the TPU compiler for a better memory mapping; see `jax_malloc.tpu.steer`."""
