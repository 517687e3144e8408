"""Students and frontend as C99: weights and kernels in headers, no library, no allocation."""
