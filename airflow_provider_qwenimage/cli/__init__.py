"""The commands of ``airflow qwenimage …``; `definition` describes them, and a module for each of them runs it."""
