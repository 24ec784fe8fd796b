"""``python -m tasks.evaluate``."""

from tasks.console import main
from tasks.evaluate.node import evaluate

if __name__ == "__main__":
    main(evaluate)
