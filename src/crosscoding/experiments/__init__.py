"""The paper's experiments, run on this implementation.

`figures` measures and draws, `claims` judges, `recorded_runs` runs and keeps results, and
`catalogue` lists all experiments.
"""
