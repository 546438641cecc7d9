"""Evaluation: what a genotype is worth, from proxies that see one batch to training on folds; in this process or in workers."""
