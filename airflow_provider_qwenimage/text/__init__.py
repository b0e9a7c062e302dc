"""What any text needs that comes from outside or goes into a message: knows nothing of the API or of Airflow."""
