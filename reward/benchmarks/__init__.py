"""Public benchmarks as suites: one small file each.

published files ──items──▶ prompts ──policy──▶ answers ─┬─ count ──▶ metrics with intervals, here
                                                        └─ answer_files ──▶ what the official evaluator reads
"""
