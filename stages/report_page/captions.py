"""What stands below each figure and table: what was measured, on what, and what it does not say."""

from __future__ import annotations

GAP = (
    "Scores in per cent, mean ± standard deviation over seeds. Gap recovered: how far the student stands between "
    "the untrained networks' mean and the teacher, each seed by itself, then averaged; above 100 % it beats the "
    "teacher. Int8 loss: points of the int8 file against float32."
)
SCORES_FIGURE = (
    "Score of every model, mean over folds and seeds. Lines are 95 % bootstrap intervals over recordings, averaged "
    "over seeds: they hold for one model on these recordings, not for another training run."
)
SCORES = (
    "Score in per cent; below it the 95 % interval by recording and the retention (student / teacher). All models "
    "are probed on the same frozen clips, folds and settings."
)
COST = (
    "FLOPs for one window against parameters, both axes logarithmic. Filled: the backbone alone. Open: with the "
    "frontend that turns sound into its input. The students' frontend is counted as exported (its DFT is one "
    "convolution); the teacher's FFT is not counted, so its open circle is a lower bound."
)
INSTRUCTIONS = (
    "Executed aarch64 instructions for one window, counted under emulation (QEMU user mode, the least of several "
    "runs). A count, not a time: no caches, no stalls."
)
BENCHMARK = (
    "One window of {seconds:.2f} s, batch 1. 1 MAC = 2 FLOPs. KB = 1024 bytes; peak KB: the most that activations "
    "take at once. S8S8 is the file for ARM, U8S8 is for x86 time alone. % int8: share of MACs that run in 8-bit "
    "arithmetic as ARM executes the file. x86 time: median with p10–p95 below, one thread of {machine}; the "
    "teacher's is torch, the others' ONNX Runtime. M instructions: millions of executed aarch64 instructions under "
    "emulation, never milliseconds. ARM = x86: how the emulated outputs compare."
)
MAP = (
    "{method} of the clip embeddings on {task}: the same {clips} clips and colours in each. Each map is fitted alone, "
    "so only what lies together means something, not where."
)
STRUCTURE = (
    "Overlap: share of a clip's 10 nearest neighbours (cosine) that it has in the teacher's space too. CKA: linear "
    "centred kernel alignment with the teacher. Rank: effective rank, exp of the entropy of the singular values, "
    "out of as many dimensions as the width says; near 1 the space has collapsed. Means over seeds."
)
LOSS = (
    "Training loss (mean since the last record) and validation loss on held-out rows of the store. Each panel has "
    "its own scale: a distillation loss and a classification loss cannot be compared."
)
TRAINING = (
    "The end of every run, measured on the store's validation rows: overlap of the 10 nearest neighbours with the "
    "teacher's, and effective rank of the embeddings."
)
EXPORT = (
    "ONNX − torch: largest difference over eight lengths and batches that the export did not see, as a share of "
    "the largest output. Centred cosine: mean cosine between int8 and float32 embeddings after the mean embedding "
    "is subtracted, on rows that did not calibrate; the plain cosine flatters."
)
SPECTROGRAMS = (
    "Rows of the store as the student hears them: log-mel, one colour scale. A mix is several clips at drawn "
    "levels, a texture is synthetic; the teacher heard exactly the same signal."
)
DATASETS = "Windows in the store, by dataset."
SEARCH = (
    "A budget search ({limits}): {candidates} students trained for {steps} steps from the same store, {refused} "
    "draws refused before any training for what they would cost. Orange: nothing found is both better and cheaper. "
    "Crosses: stopped early, at the score they had then. Diamonds: hand-made students trained alike. Dashed: the "
    "limit. Hypervolume of the set: {hypervolume:.3f} (score times decades of cost). One seed a student: a lead of a "
    "hundredth or two may be luck."
)
SEARCH_TABLE = (
    "The Pareto set, the cheapest first, and the hand-made students below it. Beats: hand-made students that a member "
    "is no worse than in score and cost, and better in one. Each member is a recipe in the search's folder."
)
