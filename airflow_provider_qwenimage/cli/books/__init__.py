"""``airflow qwenimage books``: what was spent, the tables for it, and rows whose end is not known yet."""
