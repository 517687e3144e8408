"""Stage 1's work: shards of a plan rendered, heard by the teacher and written, by a pool of processes."""
