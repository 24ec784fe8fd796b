"""Prefect tasks of initialization and training."""

from tasks.orchestration import node_task
from tasks.train import node

initialize = node_task("initialize", node.initialize)
train = node_task("train", node.train)
