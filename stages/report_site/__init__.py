"""The report as a small static site: an overview, one page a run, one a task, and the published numbers."""
