"""What few-step policies learn where the answer is known: problems, trainings, measures and the commands over them."""
