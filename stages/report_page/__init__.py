"""The report's page: evidence read from artifacts, figures, tables, one HTML file and one picture."""
