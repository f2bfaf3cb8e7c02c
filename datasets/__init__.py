"""Files in, batches out: readers per format, the store, the sampler, validation."""
