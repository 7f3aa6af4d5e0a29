"""Published judges of images, one file each; `benchmark.metrics.evaluators` says what each needs and loads it by id."""
