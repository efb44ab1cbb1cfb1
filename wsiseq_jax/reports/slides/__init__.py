"""Pages of slides and their cohort: the job `mil_report`."""
