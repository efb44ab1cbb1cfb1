"""Pages on who sits where: of a slide, and of the cohort."""
