"""E2VPT's pruning: score the prompts of a run, remove the least important, train again."""
