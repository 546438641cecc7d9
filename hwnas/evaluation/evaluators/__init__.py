"""One file per evaluator, each with a class `Evaluator`."""
