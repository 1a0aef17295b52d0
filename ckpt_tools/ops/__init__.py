"""The verbs: orchestration of layouts, rules and reports, and nothing else."""
