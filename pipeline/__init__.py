"""The nouns of Ossicle, in data-flow order; ``stages`` holds the verbs."""

__version__ = "0.1.0"
