"""Two-dimensional pictures of embedding spaces."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from pipeline.errors import MissingDependencyError, OssicleError

PERPLEXITY = 30.0
UMAP_NEIGHBOURS = 15
CLIPS_AT_LEAST = 5


def tsne(embedding: Float[np.ndarray, "clips dim"], seed: int = 0) -> Float32[np.ndarray, "clips 2"]:
    """Return the t-SNE map of ``embedding`` (van der Maaten and Hinton, JMLR 2008): cosine, started from PCA.

    Equal seeds give equal maps on one machine. Perplexity is 30, less where there are few clips.

    Raises:
        OssicleError: fewer than 5 clips.
    """
    _enough(embedding)
    perplexity = min(PERPLEXITY, (len(embedding) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed)
    with threadpool_limits(limits=1, user_api="blas"):
        mapped: np.ndarray = model.fit_transform(np.asarray(embedding, dtype=np.float32))
    return mapped.astype(np.float32)


def umap(embedding: Float[np.ndarray, "clips dim"], seed: int = 0) -> Float32[np.ndarray, "clips 2"]:
    """Return the UMAP map of ``embedding`` (McInnes, Healy and Melville, 2018): cosine, 15 neighbours.

    Equal seeds give equal maps on one machine (on one thread).

    Raises:
        MissingDependencyError: umap-learn is not installed.
        OssicleError: fewer than 5 clips.
    """
    _enough(embedding)
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingDependencyError(
            "UMAP needs umap-learn", got=str(error), run="pip install 'ossicle[umap]'"
        ) from error
    neighbours = min(UMAP_NEIGHBOURS, len(embedding) - 1)
    # A spectral start needs more clips than it has dimensions to solve for.
    start = "spectral" if len(embedding) > UMAP_NEIGHBOURS else "random"
    model = UMAP(n_neighbors=neighbours, metric="cosine", init=start, random_state=seed, n_jobs=1)
    with threadpool_limits(limits=1, user_api="blas"):
        mapped: np.ndarray = model.fit_transform(np.asarray(embedding, dtype=np.float32))
    return mapped.astype(np.float32)


def _enough(embedding: np.ndarray) -> None:
    if len(embedding) < CLIPS_AT_LEAST:
        raise OssicleError("too few clips for a map", expected=f">= {CLIPS_AT_LEAST}", got=len(embedding))
