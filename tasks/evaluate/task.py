"""The Prefect task of evaluation."""

from tasks.evaluate import node
from tasks.orchestration import node_task

evaluate = node_task("evaluate", node.evaluate)
