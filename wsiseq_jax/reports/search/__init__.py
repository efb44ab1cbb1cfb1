"""What a search found, as a table and a page."""
