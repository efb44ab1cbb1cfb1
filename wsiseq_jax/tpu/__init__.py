"""What a step would cost on chips that are not there: the job `aot`."""
