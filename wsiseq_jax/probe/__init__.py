"""What frozen or fine-tuned features know: the job `probe`."""
