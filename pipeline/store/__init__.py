"""The store: stage 1's artifact, plain Zarr v3 arrays beside parquet tables."""
