"""Teachers trained on a labelled manifest before they embed."""
