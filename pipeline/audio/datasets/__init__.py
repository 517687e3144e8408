"""Published datasets, one file each: from the dataset's own metadata to manifest rows."""
