"""The Prefect task of evaluation."""

from tasks.evaluate import node, parts
from tasks.nodes import Split
from tasks.orchestration import node_task

evaluate = node_task("evaluate", node.evaluate, Split(parts.divide, parts.RESULT.name, parts.join))
