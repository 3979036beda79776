"""Tasks: for each head what its data are, how it is trained, and how it is judged."""

from bridger.tasks.base import Result, Task
from bridger.tasks.registry import get_task, list_tasks, register_task

__all__ = ["Result", "Task", "get_task", "list_tasks", "register_task"]
