"""The Prefect task of deployment."""

from tasks.merge import node
from tasks.orchestration import node_task

deploy = node_task("deploy", node.deploy)
