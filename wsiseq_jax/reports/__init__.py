"""Pages: templates, style, charts."""
