"""Search: strategies that ask and tell, under a budget, with a durable history. Evaluator and predictor are arguments."""
