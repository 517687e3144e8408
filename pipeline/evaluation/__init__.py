"""How good frozen embeddings are: tasks, probes, intervals, structure and projection."""
