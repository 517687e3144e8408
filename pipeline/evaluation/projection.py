"""Two-dimensional pictures of embedding spaces."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from pipeline.errors import OssicleError

PERPLEXITY = 30.0


def tsne(embedding: Float[np.ndarray, "clips dim"], seed: int = 0) -> Float32[np.ndarray, "clips 2"]:
    """Return the t-SNE map of ``embedding`` (van der Maaten and Hinton, JMLR 2008): cosine, started from PCA.

    Equal seeds give equal maps on one machine. Perplexity is 30, less where there are few clips.

    Raises:
        OssicleError: fewer than 5 clips.
    """
    if len(embedding) < 5:
        raise OssicleError("too few clips for a map", expected=">= 5", got=len(embedding))
    perplexity = min(PERPLEXITY, (len(embedding) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed)
    with threadpool_limits(limits=1, user_api="blas"):
        mapped: np.ndarray = model.fit_transform(np.asarray(embedding, dtype=np.float32))
    return mapped.astype(np.float32)
