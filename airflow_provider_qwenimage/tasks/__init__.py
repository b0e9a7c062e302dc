"""An Airflow task at work: what it submits, records, waits for and reports."""
