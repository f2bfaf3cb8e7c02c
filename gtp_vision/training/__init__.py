"""Everything that runs an algorithm: trainer, checkpoints, evaluation, collection, report, bench, demo."""
