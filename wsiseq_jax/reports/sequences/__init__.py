"""The page of a pretraining run: the job `report`."""
