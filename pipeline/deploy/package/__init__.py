"""A trained student as one folder that anyone can use: files, model card, licences, examples."""
