"""Prefect tasks of data preparation."""

from tasks.orchestration import node_task
from tasks.prepare.node import prepare_arrival, prepare_evaluation

prepare = node_task("prepare", prepare_arrival)
prepare_evaluation_sets = node_task("prepare-evaluation", prepare_evaluation)
