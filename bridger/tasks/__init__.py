"""Tasks: for each head what its data are, how it is trained, and how it is judged."""

from bridger.tasks.base import Result, Task
from bridger.tasks.registry import find_data, get_task, list_tasks, register_task

__all__ = ["Result", "Task", "find_data", "get_task", "list_tasks", "register_task"]
