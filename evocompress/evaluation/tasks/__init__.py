"""Questions with choices, by which finished models are compared beside held-out text.

`files` reads questions from plain files, `harness` has lm-evaluation-harness ask them, and `scores`
compares the answers of a model with the dense model's to the same questions.
"""

from evocompress.evaluation.tasks.files import LocalTask, Question, read_task
from evocompress.evaluation.tasks.harness import PACKAGE, Answers, ask, find_tasks
from evocompress.evaluation.tasks.scores import Score, score

__all__ = [
    "PACKAGE",
    "Answers",
    "LocalTask",
    "Question",
    "Score",
    "ask",
    "find_tasks",
    "read_task",
    "score",
]
