"""What a person or a CI system reads: HTML page, plots, terminal, JUnit."""
